"""DCGAN: the paper's counts, the alternation, the losses, and its side of the contract."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import config as house
from gen_jax.errors import UserError
from gen_jax.gans import dcgan


@functools.cache
def game():
    return dcgan._game(small())


def small(**changes):
    config = house.default('gans.dcgan')
    config.update_from_flattened_dict(
        {
            'data.image_size': 16,
            'model.width': 4,
            'gan.latent_dim': 6,
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def batch_of(n, size=16, channels=1):
    shape = (n, size, size, channels)
    return {'image': jax.random.uniform(jax.random.key(5), shape, minval=-1.0)}


@functools.cache
def start(**changes):
    """(method, fresh state) of a small model."""
    method = dcgan.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of(2))


discriminator_step = jax.jit(dcgan.discriminator_step, static_argnums=0)
generator_step = jax.jit(dcgan.generator_step, static_argnums=(0, 3))


def differ(a, b):
    """Which leaves differ anywhere."""
    return jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b))


# --- the nets ------------------------------------------------------------------------------------


def test_paper_size_has_the_papers_parameters():
    config = runpy.run_path('configs/dcgan_folder64.py')['get_config']()
    method = dcgan.create(config)
    state = jax.eval_shape(method.init, jax.random.key(0), batch_of(2, 64, 3))
    count = lambda net: sum(leaf.size for leaf in jax.tree.leaves(net.params))  # noqa: E731
    assert count(state.generator) == 3_576_704
    assert count(state.discriminator) == 2_765_568


@pytest.mark.parametrize(('size', 'stages'), [(16, 2), (32, 3), (64, 4), (128, 5)])
def test_sizes(size, stages):
    sized = dcgan._game(small(**{'data.image_size': size, 'data.channels': 3}))
    key, z, x = jax.random.key(0), jnp.zeros((2, 6)), jnp.zeros((2, size, size, 3))
    image, g = jax.eval_shape(lambda: sized.generator.init_with_output(key, z, train=False))
    logit, d = jax.eval_shape(lambda: sized.discriminator.init_with_output(key, x, train=False))
    assert (image.shape, logit.shape) == ((2, size, size, 3), (2,))
    assert g['params']['conv_0']['kernel'].shape == (4, 4, 4 * 2 ** (stages - 1), 6)
    assert d['params'][f'conv_{stages}']['kernel'].shape == (4, 4, 4 * 2 ** (stages - 1), 1)
    # Batch norm in all layers but the generator's last and the discriminator's first and last.
    assert g['batch_stats'].keys() == {f'norm_{i}' for i in range(stages)}
    assert d['batch_stats'].keys() == {f'norm_{i}' for i in range(1, stages)}
    assert all('bias' not in g['params'][f'conv_{i}'] for i in range(stages + 1))
    assert all('bias' not in d['params'][f'conv_{i}'] for i in range(stages + 1))


def test_initial_weights_are_the_papers():
    method = dcgan.create(small(**{'model.width': 32, 'data.image_size': 32}))
    state = jax.jit(method.init)(jax.random.key(0), batch_of(2, 32))
    for params in (state.generator.params, state.discriminator.params):
        kernel, norm = params['conv_1']['kernel'], params['norm_1']
        assert abs(kernel.mean()) < 1e-3
        assert abs(kernel.std() - 0.02) < 1e-3
        assert abs(norm['scale'].mean() - 1) < 0.01
        assert 0.01 < norm['scale'].std() < 0.03
        assert (norm['bias'] == 0).all()


def test_running_variance_is_flaxs():
    """momentum 0.9 on the biased variance: 0.9 * 1 + 0.1 * E[(x - E x)^2]."""
    norm = dcgan._norm(True, jnp.float32, None)
    x = jnp.array([[0.0], [4.0]])
    _, variables = norm.init_with_output(jax.random.key(0), x)
    _, stats = norm.apply(variables, x, mutable=['batch_stats'])
    np.testing.assert_allclose(stats['batch_stats']['mean'], [0.2], rtol=1e-6)
    np.testing.assert_allclose(stats['batch_stats']['var'], [0.9 + 0.1 * 4], rtol=1e-6)


# --- the losses ----------------------------------------------------------------------------------


def test_losses_are_the_papers():
    """Against the logarithms themselves, in float64."""
    real, fake = np.random.default_rng(0).normal(size=(2, 9)) * 3
    d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    s = 0.1
    expected = -((1 - s) * np.log(d_real) + s * np.log(1 - d_real)).mean()
    expected -= np.log(1 - d_fake).mean()
    real, fake = jnp.float32(real), jnp.float32(fake)
    np.testing.assert_allclose(dcgan.discriminator_loss(real, fake, s), expected, rtol=1e-5)
    np.testing.assert_allclose(dcgan.generator_loss(fake), -np.log(d_fake).mean(), rtol=1e-5)
    assert np.isfinite(dcgan.generator_loss(jnp.array([-1e4])))


def test_smoothing_adds_s_times_the_real_logits():
    """-(1 - s) log D - s log(1 - D) = -log D + s * logit; the fake term stays."""
    real, fake = jnp.array([2.0, -1.0, 4.0]), jnp.array([0.5, 0.1, -2.0])
    added = dcgan.discriminator_loss(real, fake, 0.2) - dcgan.discriminator_loss(real, fake, 0.0)
    np.testing.assert_allclose(added, 0.2 * real.mean(), rtol=1e-5)


# --- the alternation -----------------------------------------------------------------------------


def test_each_step_changes_its_own_net_only():
    _, state = start()
    key, image = jax.random.key(1), batch_of(4)['image']
    after, metrics = discriminator_step(game(), key, state, image)
    assert not any(differ(after.generator, state.generator))
    assert all(differ(after.discriminator.params, state.discriminator.params))
    assert all(differ(after.discriminator.extra, state.discriminator.extra))
    assert set(metrics) == {'d_loss', 'd_grad_norm', 'd_real_accuracy', 'd_fake_accuracy'}
    after, metrics = generator_step(game(), key, state, 4)
    assert not any(differ(after.discriminator, state.discriminator))
    assert all(differ(after.generator.params, state.generator.params))
    assert all(differ(after.generator.extra, state.generator.extra))
    assert set(metrics) == {'g_loss', 'g_grad_norm'}


def test_the_generator_plays_against_the_new_discriminator():
    method, state = start()
    key, batch = jax.random.key(1), batch_of(4)
    d_key, g_key = jax.random.split(key)
    middle, _ = discriminator_step(game(), d_key, state, batch['image'])
    _, expected = generator_step(game(), g_key, middle, 4)
    _, stale = generator_step(game(), g_key, state, 4)
    _, metrics = jax.jit(method.train_step)(key, state, batch)
    np.testing.assert_allclose(metrics['g_loss'], expected['g_loss'], rtol=1e-5)
    assert abs(metrics['g_loss'] - stale['g_loss']) > 1e-4


@pytest.mark.slow
def test_discriminator_learns_at_its_own_rate():
    """Adam's first step is the rate times a sign, whatever the gradient."""
    moved = []
    for ratio in (1.0, 3.0):
        method, state = start(**{'gan.d_rate_ratio': ratio})
        after, _ = jax.jit(method.train_step)(jax.random.key(1), state, batch_of(4))
        pairs = zip(vars(after).values(), vars(state).values(), strict=True)
        moved.append(
            [
                jnp.abs(new.params['conv_1']['kernel'] - old.params['conv_1']['kernel']).max()
                for new, old in pairs
            ]
        )  # the generator's, the discriminator's
    np.testing.assert_allclose(moved, [(2e-4, 2e-4), (2e-4, 6e-4)], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize('ema_decay', [0.9, 0.0])
def test_running_statistics_are_those_of_the_generator_that_samples(ema_decay):
    method, state = start(ema_decay=ema_decay)
    key = jax.random.key(1)
    after, _ = jax.jit(method.train_step)(key, state, batch_of(4))
    z = jax.random.normal(jax.random.split(key)[1], (4, 6))
    sampler = after.generator.ema if ema_decay else after.generator.params
    variables = {'params': sampler, **state.generator.extra}
    _, expected = dcgan.apply_train(game().generator, variables, z)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.generator.extra, expected
    )
    assert (after.generator.ema is None) == (ema_decay == 0)
    assert after.discriminator.ema is None


# --- the contract --------------------------------------------------------------------------------


def test_samples_do_not_depend_on_how_many_there_are():
    method, state = start()
    state, _ = jax.jit(method.train_step)(jax.random.key(1), state, batch_of(4))
    keys, sample = jax.random.split(jax.random.key(2), 5), jax.jit(method.sample_step)
    together = sample(keys, state, {})
    assert (together.shape, together.dtype) == ((5, 16, 16, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)


def test_temperature_is_per_sample_and_traced():
    method, state = start()
    keys, warm = jax.random.split(jax.random.key(2), 2), {'temperature': jnp.ones(2)}
    sample = jax.jit(method.sample_step).lower(keys, state, warm).compile()
    ones = sample(keys, state, warm)
    mixed = sample(keys, state, {'temperature': jnp.array([0.0, 1.0])})
    np.testing.assert_allclose(mixed[0], jnp.zeros((16, 16, 1)), atol=1e-7)  # z = 0, no biases
    np.testing.assert_allclose(mixed[1], ones[1], atol=1e-6)
    assert jnp.abs(ones[0]).max() > 1e-4
    cold = dcgan.create(small(**{'sample.knobs.temperature': 0.0}))
    np.testing.assert_allclose(cold.sample_step(keys, state, {}), jnp.zeros((2, 16, 16, 1)))


SHAPES = {'model.width': 6, 'gan.latent_dim': 5, 'ema_decay': 0.0}


@pytest.mark.parametrize('field', SHAPES)
def test_fields_that_change_the_state(field):
    assert shapes(**{field: SHAPES[field]}) != shapes()


def shapes(**changes):
    method = dcgan.create(small(**changes))
    return str(jax.eval_shape(method.init, jax.random.key(0), batch_of(2)))


def test_compute_type_changes_the_numbers_but_not_their_type():
    images = []
    for dtype in ('float32', 'bfloat16'):
        method, state = start(**{'model.dtype': dtype})
        images.append(method.sample_step(jax.random.split(jax.random.key(2), 2), state, {}))
    assert images[1].dtype == jnp.float32
    assert 0 < jnp.abs(images[1] - images[0]).max() < 0.05


def test_label_smoothing_changes_the_numbers():
    losses = []
    for changes in ({}, {'gan.label_smoothing': 0.1}):
        method, state = start(**changes)
        _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch_of(4))
        losses.append(metrics['d_loss'])
    assert losses[0] != losses[1]


WRONG = [
    {'data.image_size': 28},
    {'data.image_size': 8},
    {'data.image_size': 1},
    {'data.image_size': 48},
    {'model.width': 0},
    {'model.dtype': 'float16'},
    {'gan.latent_dim': 0},
    {'gan.label_smoothing': 1.0},
    {'gan.d_rate_ratio': 0.0},
    {'ema_decay': 1.0},
    {'sample.knobs.temperature': -1.0},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as error:
        dcgan.create(small(**changes))
    assert '\n' not in str(error.value)


def test_a_wrong_image_is_told():
    method, state = start()
    with pytest.raises(UserError, match='has shape'):
        method.init(jax.random.key(0), batch_of(2, channels=3))
    with pytest.raises(UserError, match='has shape'):
        method.train_step(jax.random.key(0), state, batch_of(2, 32))


@pytest.mark.parametrize('name', ['dcgan_fashion_mnist', 'dcgan_folder64'])
def test_configs(name):
    get_config = runpy.run_path(f'configs/{name}.py')['get_config']
    house.validate(get_config())
    dcgan.create(get_config())
    tiny = get_config('tiny')
    house.validate(tiny)
    method = dcgan.create(tiny)
    batch = batch_of(tiny.batch_size, tiny.data.image_size, tiny.data.channels)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch)
    assert all(np.isfinite(value) for value in metrics.values())
