"""The method's side of the contract: samples, knobs, bad input, advice, resuming."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from games import SMALL, batch_of, small, started
from scipy.stats import truncnorm

from gen_jax import config as house
from gen_jax import train
from gen_jax.errors import UserError
from gen_jax.gans import adversarial
from gen_jax.gans.latents import clipped, within


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are():
    config = small('dcgan')
    method, state = started(config)
    keys, sample = jax.random.split(jax.random.key(2), 5), jax.jit(method.sample_step)
    together = sample(keys, state, {})
    assert (together.shape, together.dtype) == ((5, 16, 16, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'usual', 'changes'),
    [
        ('mlp', {'temperature': 1.0, 'truncation': 0.0}, {'temperature': 0.5, 'truncation': 0.5}),
        ('stylegan2', {'psi': 1.0}, {'psi': 0.5}),
    ],
)
def test_knobs_are_per_sample_and_traced(network, usual, changes):
    method, state = started(config := small(network))
    assert config.sample.knobs.to_dict() == usual
    # A mean w apart from what is drawn.
    extra = {name: jax.tree.map(lambda x: x + 1.0, y) for name, y in state.generator.extra.items()}
    state = state.replace(generator=state.generator.replace(extra=extra))
    keys = jax.random.split(jax.random.key(2), 2)
    usual = {name: jnp.full(2, value) for name, value in usual.items()}
    sample = jax.jit(method.sample_step).lower(keys, state, usual).compile()
    want = sample(keys, state, usual)
    np.testing.assert_allclose(jax.jit(method.sample_step)(keys, state, {}), want, atol=1e-5)
    for name, value in changes.items():
        got = sample(keys, state, usual | {name: usual[name].at[0].set(value)})
        assert jnp.abs(got[0] - want[0]).max() > 1e-4, name
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('network', 'knobs'),
    [('mlp', {'temperature': 0.5, 'truncation': 0.1}), ('stylegan2', {'psi': 0.3})],
)
def test_decoding_takes_latents_as_they_are(network, knobs):
    """Whatever samples are asked for: path lengths are of the whole prior."""
    config = small(network)
    method, state = started(config)
    if network == 'stylegan2':
        w_avg = jax.tree.map(lambda x: x + 1, state.generator.extra['w_avg'])
        extra = state.generator.extra | {'w_avg': w_avg}
        state = state.replace(generator=state.generator.replace(extra=extra))
    z = 2 * jax.random.normal(jax.random.key(1), (2, config.model.latent_dim))
    whole = jax.jit(method.decode)(state, z, {})
    config.sample.knobs.update(knobs)
    again = jax.jit(house.create(config).decode)(state, z, {})
    np.testing.assert_array_equal(again, whole)
    assert jnp.ptp(whole) > 0


def test_truncated_noise_is_the_truncated_normal():
    z = jax.random.normal(jax.random.key(0), (20_000,))
    limits = jnp.float32([0.5, 2.0])[:, None]
    for limit, found in zip((0.5, 2.0), np.asarray(within(z[None], limits)), strict=True):
        share = np.linspace(0.02, 0.98, 25)
        want = truncnorm.ppf(share, -limit, limit)
        np.testing.assert_allclose(np.quantile(found, share), want, atol=0.03)
        assert np.abs(found).max() <= limit * (1 + 1e-5)
    np.testing.assert_array_equal(within(z, jnp.zeros(1)), z)
    assert np.isfinite(within(jnp.float32([-6.0, 6.0]), jnp.full(1, 9.0))).all()


def test_what_is_saturated_has_a_gradient():
    """Or a search for the latents of an image could not leave it."""
    x = jnp.float32([-3.0, -1.0, 0.5, 2.0])
    np.testing.assert_array_equal(clipped(x), [-1, -1, 0.5, 1])
    np.testing.assert_array_equal(jax.grad(lambda x: (clipped(x) ** 2).sum())(x), [-2, -2, 1, 2])
    config = small(network='progressive')
    method, state = started(config)
    params = jax.tree.map(lambda x: x + 20.0, state.generator.params)
    state = state.replace(generator=state.generator.replace(params=params, ema=None))
    z = jnp.float32(np.random.default_rng(0).standard_normal((2, method.latents.dim)))

    def mean(z):
        images = method.latents.synthesis(state, method.latents.mapping(state, z, {}), {})
        return images.mean(), images

    gradient, images = jax.jit(jax.grad(mean, has_aux=True))(z)
    assert jnp.abs(images).min() == 1
    assert jnp.abs(gradient).max() > 0


WRONG = [
    {'gan.objective': 'hing'},
    {'gan.penalty': 'r3'},
    {'gan.augment': ('colour',)},
    {'gan.n_critic': 0},
    {'batch_size': 9, 'gan.n_critic': 2},
    {'gan.label_smoothing': 1.0},
    {'gan.fake_smoothing': -0.1},
    {'gan.label_smoothing': 0.6, 'gan.fake_smoothing': 0.4},
    {'gan.d_rate_ratio': 0.0},
    {'gan.penalty_weight': -1.0},
    {'gan.penalty_weight': float('inf')},
    {'gan.d_rate_ratio': float('inf')},
    {'gan.penalty_target': 0.0},
    {'gan.penalty_target': 2.0, 'gan.penalty': 'r1'},
    {'gan.penalty_every': 0},
    {'gan.feature_matching': 1.5},
    {'gan.unroll': -1},
    {'gan.unroll': 1, 'gan.penalty': 'r1', 'gan.penalty_every': 4},
    {'gan.clip_weights': 0.1},  # of a game that is no critic's
    {'gan.objective': 'wasserstein'},  # with nothing that bounds its gradient
    {'gan.objective': 'wasserstein', 'gan.penalty': 'wgan_gp', 'gan.penalty_weight': 0.0},
    {'gan.objective': 'hinge', 'gan.label_smoothing': 0.1},
    {'model.condition': 'concat'},  # without labels
    {'ema_decay': 1.0},
    {'ema_start': -1},
    {'sample.knobs.temperature': -1.0},
    {'sample.knobs.temperature': float('inf')},
    {'data.num_classes': 10},  # of which these networks are told nothing
    {'sample.standing': -1},
]


@pytest.mark.parametrize('changes', WRONG, ids=lambda x: next(iter(x)))
def test_a_wrong_config_is_told_in_one_line(changes):
    config = small()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=next(iter(changes)).replace('.', r'\.')) as error:
        house.create(config)
    assert '\n' not in str(error.value)


CRITIC_OF_BATCHES = {'gan.objective': 'wasserstein', 'model.d_spectral': True}
MISFITS = [
    ('stylegan2', {'model.mbstd_group': 3}),
    ('stylegan2', {'model.mbstd_group': 4, 'batch_size': 24, 'gan.n_critic': 2, 'accumulate': 2}),
    ('progressive', {'data.image_size': 2}),
    ('dcgan', CRITIC_OF_BATCHES),
]


@pytest.mark.parametrize(('network', 'changes'), MISFITS)
def test_what_does_not_fit_a_network_is_told_in_one_line(network, changes):
    with pytest.raises(UserError, match=f'config.{next(iter(changes))}=') as error:
        house.create(small(network, **changes))
    assert '\n' not in str(error.value)


def test_what_fits_is_not_refused():
    house.create(small('stylegan2', model__mbstd_group=64, batch_size=6))
    house.create(small('dcgan', **CRITIC_OF_BATCHES, model__d_batch_norm=False))


def test_path_length_is_stylegan2s():
    for network, weight in (('stylegan', 0.0), ('stylegan2', 2.0)):
        assert house.default('gans.adversarial', network=network).gan.path_length == weight


@pytest.mark.parametrize('network', ['mlp', 'dcgan'])
def test_spectral_normalisation_is_of_every_kernel(network):
    """Minibatch discrimination's too, or the slope had no bound."""
    changes = {'model.d_spectral': True, 'model.minibatch_kernels': 2}
    changes |= {'model.d_batch_norm': False} if network == 'dcgan' else {}
    config = small(network, **changes)
    state = jax.eval_shape(house.create(config).init, jax.random.key(0), batch_of(config))
    net = state.discriminator
    kernels = {path[:-1] for path in flatten_dict(net.params) if path[-1] == 'kernel'}
    assert kernels == {path[:-1] for path in flatten_dict(net.extra['spectral'])}


def test_batch_norm_forbids_a_penalty_of_single_images():
    changes = {'gan__penalty': 'wgan_gp', 'gan__objective': 'wasserstein'}
    with pytest.raises(UserError, match='ties the images of a batch'):
        house.create(small('dcgan', **changes))
    house.create(small('dcgan', **changes, model__d_batch_norm=False))
    with pytest.raises(UserError, match='ties the images of a batch'):
        house.create(small('deep_conv', **changes))
    house.create(small('deep_conv', **changes, model__d_spectral=True))


def test_a_wrong_image_is_told():
    method, state = started(small())
    for image in (jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 5, 5, 1))):
        with pytest.raises(UserError, match='has shape'):
            method.train_step(jax.random.key(0), state, {'image': image})


def test_advice():
    fine = {'d_real_accuracy': 0.8, 'd_fake_accuracy': 0.995, 'g_diversity': 0.9}
    assert adversarial.advise(fine) == {}
    wins = adversarial.advise(fine | {'d_real_accuracy': 0.999})
    assert '99.5%' in wins['the discriminator wins']
    collapsed = adversarial.advise({'g_diversity': 0.1})
    assert '10%' in collapsed['mode collapse']


def test_the_loop_says_once_what_goes_wrong(caplog):
    loop = train.Loop.__new__(train.Loop)
    loop.faults, loop.said = set(), set()
    both = {'a': 'do x', 'b': 'do y'}
    advice = [
        {'a': 'do x'},
        {'b': 'do y'},
        {'a': 'do x'},
        {'a': 'do x'},
        both,
        both,
        {},
        both,
        both,
    ]
    program = types.SimpleNamespace(method=types.SimpleNamespace(advise=advice.__getitem__))
    loop.program = program
    for i in range(len(advice)):
        loop.warn(i, i)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == ['step 3: a: do x', 'step 5: b: do y']
    assert sorted(said[2:]) == ['step 8: a: do x', 'step 8: b: do y']


RESIDUAL = {**SMALL['resnet'], 'data.num_classes': 10}
# What a run has beside parameters, of which a resumed one has to know how far it was.
KINDS = {
    'lazy penalty, fading noise': (
        'mlp',
        {
            'data.image_size': 8,
            'gan.penalty': 'r1',
            'gan.penalty_every': 2,
            'gan.instance_noise': 0.1,
            'gan.instance_noise_steps': 5,
        },
    ),
    'spectral vectors, statistics of classes': ('resnet', {**RESIDUAL, 'gan.n_critic': 2}),
    'BigGAN, augmented': (
        'biggan',
        {
            **RESIDUAL,
            'model.attention': (4,),
            'model.shared_dim': 4,
            'gan.augment': ('color', 'translation', 'cutout'),
            'gan.consistency': 1.0,
            'ema_start': 2,
        },
    ),
    'critic': (
        'dcgan',
        {
            'model.d_batch_norm': False,
            'gan.objective': 'wasserstein',
            'gan.penalty': 'wgan_gp',
            'gan.n_critic': 2,
            'accumulate': 2,
        },
    ),
    'path length, mean of w': (
        'stylegan2',
        {
            'gan.penalty': 'r1',
            'gan.penalty_every': 2,
            'gan.style_mixing': 0.9,
            'gan.path_length': 2.0,
            'gan.path_length_every': 2,
            'ema_rampup': 0.05,
        },
    ),
    'a size that fades in': ('progressive', {}),
    'and one with styles': ('stylegan', {'gan.style_mixing': 0.9}),
}


@pytest.mark.slow
@pytest.mark.usefixtures('traced_once')
@pytest.mark.parametrize('kind', KINDS)
def test_resumed_equals_uninterrupted(tmp_path, capsys, kind):
    network, changes = KINDS[kind]
    config = house.default('gans.adversarial', network=network)
    config.update_from_flattened_dict(SMALL.get(network, {}) | changes)
    changes = {'checkpoint_every': 4, 'sample_every': 0, 'log_every': 2, 'tensorboard': False}
    config.update(changes)

    def fingerprint(folder, steps):
        config.steps = steps
        train.run(config, tmp_path / folder)
        return capsys.readouterr().out.split('fingerprint ')[1].split()[0]

    whole = fingerprint('whole', 5)
    assert fingerprint('parts', 3) != whole  # between two lazy steps, and half faded in
    assert fingerprint('parts', 5) == whole
