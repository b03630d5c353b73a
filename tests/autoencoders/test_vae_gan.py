"""VAE-GAN: algorithm 1 written out, who learns from what, who rests; the contract."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import batch_of, same
from scipy import stats
from scipy.special import log_expit

from gen_jax import config as house
from gen_jax.autoencoders import vae_gan, vae_gan_networks
from gen_jax.autoencoders.vae_gan import Trio
from gen_jax.errors import UserError

NETS = Trio._fields
SMALL = {
    'batch_size': 4,
    'data.image_size': 8,
    'model.latent_dim': 3,
    'model.encoder_widths': (4,),
    'model.encoder_hidden': 6,
    'model.decoder_widths': (6, 4),
    'model.discriminator_widths': (3, 5),
    'model.discriminator_hidden': 7,
    'model.layer': 1,
    'vae_gan.gamma': 0.3,
}


def small(**changes):
    config = house.default('autoencoders.vae_gan')
    config.update_from_flattened_dict(SMALL | changes)
    return config


@functools.cache
def start(**changes):
    method = house.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of())


@functools.cache
def stepper(**changes):
    return jax.jit(start(**changes)[0].train_step)


@functools.cache
def stepped(**changes):
    """State before, state after and metrics of one step."""
    _, state = start(**changes)
    return state, *stepper(**changes)(jax.random.key(1), state, batch_of())


def parts(**changes):
    config, (_, state) = small(**changes), start(**changes)
    nets = Trio(*vae_gan_networks.from_config(config))
    variables = Trio(*(getattr(state, name).variables() for name in NETS))
    return config.vae_gan, nets, variables


def played(rules, nets, variables):
    keyed = jax.random.split(jax.random.key(1), 4), batch_of()['image']
    return vae_gan.played(nets, rules, variables, keyed)


# --- algorithm 1 ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('judged', [True, False])
def test_losses_are_those_of_algorithm_1(judged):
    """By NumPy and SciPy, of what the networks give."""
    rules, nets, variables = parts(**{'vae_gan.judge_reconstructions': judged})
    losses, _, _ = played(rules, nets, variables)
    x, keys = batch_of()['image'], jax.random.split(jax.random.key(1), 4)

    def run(name, x):
        net, given = getattr(nets, name), getattr(variables, name)
        return net.apply(given, x, train=True, mutable=['batch_stats'])[0]

    mu, log_var = map(np.float64, run('encoder', x))
    noise = np.stack(
        [[jax.random.normal(k, (3,)) for k in jax.random.split(key)] for key in keys], 1
    )
    back, drawn = (run('decoder', z) for z in (mu + np.exp(log_var / 2) * noise[0], noise[1]))
    logits, features = zip(
        *(run('discriminator', image) for image in (x, back, drawn)), strict=True
    )
    kl = (np.exp(log_var) + mu**2 - 1 - log_var).sum(1).mean() / 2
    # Without the constant of the density.
    density = stats.norm.logpdf(features[0], features[1]).sum(1) - stats.norm.logpdf(0) * 80
    llike = -density.mean()
    gan = -log_expit(logits[0]).mean() - log_expit(-logits[2]).mean()
    gan -= log_expit(-logits[1]).mean() if judged else 0.0
    want = kl + llike, rules.gamma * llike - gan, gan
    np.testing.assert_allclose(losses, want, rtol=1e-4)


@pytest.mark.slow
def test_each_net_learns_by_its_own_loss_alone():
    """Every parameter of it, by one step of SGD along its own gradient; noise is the same."""
    changes = {'optimizer.b2': 0.0, 'optimizer.eps': 1e8, 'optimizer.learning_rate': 1e7}
    rules, nets, variables = parts(**changes)
    before, after, metrics = stepped(**changes)
    for i, name in enumerate(NETS):

        def loss(params, name=name, i=i):
            mine = {name: getattr(variables, name) | {'params': params}}
            return played(rules, nets, variables._replace(**mine))[0][i]

        value, gradient = jax.jit(jax.value_and_grad(loss))(getattr(variables, name)['params'])
        np.testing.assert_allclose(metrics[f'{name}_loss'], value, rtol=1e-5)
        assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)), name
        # Adam with so large an epsilon steps along the gradient.
        want = jax.tree.map(lambda p, g: p - 0.1 * g, getattr(before, name).params, gradient)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            getattr(after, name).params,
            want,
        )


@pytest.mark.slow
def test_what_a_loss_depends_on():
    """The discriminator's has no gamma in it; the encoder's no L_GAN; the decoder's has both."""
    rules, nets, variables = parts()
    rules = rules.copy_and_resolve_references()
    before, _, _ = played(rules, nets, variables)
    rules.gamma = 2.0
    after, _, _ = played(rules, nets, variables)
    assert (before.encoder, before.discriminator) == (after.encoder, after.discriminator)
    assert before.decoder != after.decoder
    bias = variables.discriminator['params']['out']
    moved = variables.discriminator['params'] | {'out': bias | {'bias': bias['bias'] + 1}}
    moved = variables._replace(discriminator=variables.discriminator | {'params': moved})
    after, _, _ = played(rules, nets, moved)
    assert before.encoder == after.encoder
    assert before.discriminator != after.discriminator


# --- who rests -----------------------------------------------------------------------------------

# Costs of real images and of others, and who rests: equilibrium 0.7, margin 0.2.
CASES = [
    (0.7, 0.7, (False, False)),
    (0.4, 0.7, (False, True)),
    (0.7, 0.4, (False, True)),
    (1.0, 0.7, (True, False)),
    (0.7, 1.0, (True, False)),
    (0.4, 1.0, (False, False)),
]


@pytest.mark.parametrize(('real', 'fake', 'rest'), CASES)
def test_who_rests(real, fake, rest):
    config = small(**{'vae_gan.equilibrium': 0.7, 'vae_gan.margin': 0.2})
    assert tuple(map(bool, vae_gan.resting(config.vae_gan, real, fake))) == rest


@pytest.mark.slow
def test_who_rests_stays_but_for_statistics():
    before, after, metrics = stepped(**{'vae_gan.equilibrium': 0.1, 'vae_gan.margin': 0.05})
    plain, free, _ = stepped()
    assert same(plain, before)
    for name in NETS:
        net, old, other = (getattr(state, name) for state in (after, before, free))
        stays = name == 'decoder'
        assert same(net.params, (old if stays else other).params), name
        assert same(net.opt_state, (old if stays else other).opt_state), name
        assert not same(net.extra, old.extra)
    assert (metrics['decoder_rests'], metrics['discriminator_rests']) == (1, 0)


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_reaches_every_number():
    before, after, metrics = stepped()
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), after, before)
    assert all(jax.tree.leaves(changed)), changed
    assert {'encoder_kl', 'encoder_feature_distance', 'discriminator_fake_cost'} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_what_is_compared_comes_nearer():
    """While the discriminator rests, so that what it compares by stays."""
    rest = {'vae_gan.gamma': 1e3, 'vae_gan.equilibrium': 9.0, 'vae_gan.margin': 0.05}
    rest |= {'optimizer.learning_rate': 3e-3}
    _, before = start(**rest)
    state, step, found = before, stepper(**rest), []
    for i in range(40):
        state, metrics = step(jax.random.key(i), state, batch_of())
        found.append(metrics['encoder_feature_distance'])
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    assert same(state.discriminator.params, before.discriminator.params)
    assert not same(state.decoder.params, before.decoder.params)


@pytest.mark.slow
def test_resumed_from_the_state_alone():
    """Another method object, given the state's leaves, goes on as the first does."""
    _, state, _ = stepped()
    other, step = house.create(small()), stepper()
    leaves, tree = jax.tree.flatten(state)
    copied = jax.tree.unflatten(tree, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    ours, _ = step(jax.random.key(1), state, batch_of())
    theirs, _ = jax.jit(other.train_step)(jax.random.key(1), copied, batch_of())
    assert same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(('n', 'changes'), [(1, {}), (4, {'accumulate': 2})])
def test_batches_of_one_and_in_parts(n, changes):
    _, state = start(**changes)
    state, metrics = stepper(**changes)(jax.random.key(0), state, batch_of(n))
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_samples_latents_and_evaluation_are_per_example():
    method, state = start()
    keys, warm = jax.random.split(jax.random.key(2), 5), {'temperature': jnp.ones(5)}
    sample = jax.jit(method.sample_step)
    together = sample(keys, state, warm)
    assert (together.shape, together.dtype) == ((5, 8, 8, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)
    cold = sample(keys, state, {'temperature': jnp.zeros(5).at[0].set(1.0)})
    np.testing.assert_allclose(cold[0], together[0], atol=1e-6)
    np.testing.assert_allclose(cold[1], method.decode(state, jnp.zeros((1, 3)), {})[0], atol=1e-6)
    terms = jax.jit(method.evaluate_step)(keys[:4], state, batch_of())
    one = jax.tree.map(lambda x: x[2:3], batch_of())
    alone = method.evaluate_step(keys[2:3], state, one)
    assert terms.keys() == {'kl', 'feature_distance', 'squared_error'}
    for name, values in terms.items():
        assert values.shape == (4,)
        np.testing.assert_allclose(alone[name][0], values[2], rtol=1e-4)
    z = jax.jit(method.encode)(state, batch_of())
    assert (z.shape, method.latent_dim) == ((4, 3), 3)
    assert method.latents.truncation == 'temperature'


SHAPES = {
    'model.latent_dim': 2,
    'model.encoder_widths': (5,),
    'model.encoder_hidden': 5,
    'model.decoder_widths': (6, 5),
    'model.discriminator_widths': (3, 6),
    'model.discriminator_hidden': 6,
    'data.channels': 3,
}


@pytest.mark.parametrize('field', SHAPES)
def test_fields_that_change_the_state(field):
    assert shapes(**{field: SHAPES[field]}) != shapes()


def shapes(**changes):
    config = small(**changes)
    batch = batch_of(2, channels=config.data.channels)
    return str(jax.eval_shape(house.create(config).init, jax.random.key(0), batch))


@pytest.mark.slow
def test_fields_that_change_the_numbers():
    """The layer that compares, and the arithmetic."""
    deep = {
        'model.encoder_widths': (4, 4),
        'model.decoder_widths': (6, 4, 4),
        'model.discriminator_widths': (3, 5, 5),
    }
    _, state = start(**deep)
    found = []
    for changes in {}, {'model.layer': 2}, {'model.dtype': 'bfloat16'}:
        evaluate = jax.jit(house.create(small(**deep, **changes)).evaluate_step)
        keys = jax.random.split(jax.random.key(0), 2)
        found.append(evaluate(keys, state, batch_of(2))['feature_distance'].tolist())
    assert found[0] != found[1] != found[2] != found[0]


WRONG = [
    {'data.num_classes': 10},
    {'data.image_size': 7},
    {'model.latent_dim': 0},
    {'model.encoder_hidden': 0},
    {'model.discriminator_hidden': 0},
    {'model.encoder_widths': ()},
    {'model.encoder_widths': (0,)},
    {'model.decoder_widths': (6,)},
    {'model.discriminator_widths': (3, 5, 5)},
    {'model.layer': 0},
    {'model.layer': 2},
    {'model.dtype': 'float16'},
    {'vae_gan.gamma': -1.0},
    {'vae_gan.margin': -0.1},
    {'vae_gan.equilibrium': -0.1},
    {'sample.knobs.temperature': -1.0},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    field = next(iter(changes))
    with pytest.raises(UserError, match=field.replace('.', r'\.')) as error:
        house.create(small(**changes))
    assert '\n' not in str(error.value)


def test_a_wrong_image_is_told():
    method = house.create(small())
    for call in (
        lambda batch: method.init(jax.random.key(0), batch),
        lambda batch: method.train_step(jax.random.key(0), None, batch),
        lambda batch: method.evaluate_step(jax.random.split(jax.random.key(0), 2), None, batch),
        lambda batch: method.encode(None, batch),
    ):
        with pytest.raises(UserError, match='has shape'):
            call(batch_of(2, channels=3))


@pytest.mark.parametrize('variant', ['', 'draws', 'tiny'])
def test_config_of_fashion_mnist(variant):
    config = runpy.run_path('configs/vae_gan_fashion_mnist.py')['get_config'](variant)
    method, data = house.create(config), config.data
    batch = batch_of(2, data.image_size, data.channels)
    jax.eval_shape(method.init, jax.random.key(0), batch)
