import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default, method_module, validate
from gen_jax.diffusion import continuous, networks
from gen_jax.errors import UserError
from gen_jax.runtime.program import Program

B = 4
FLOW = {
    'diffusion.process': 'flow',
    'diffusion.prediction': 'velocity',
    'diffusion.told': 'time',
    'diffusion.times': 'logit_normal',
    'sampler.spacing': 'trailing',
}
KINDS = {
    'edm': {},
    'flow': FLOW,
    'vp': {
        'diffusion.process': 'vp_linear',
        'diffusion.prediction': 'eps',
        'diffusion.times': 'uniform',
        'sampler.spacing': 'linear',
    },
    've': {
        'diffusion.process': 've',
        'diffusion.prediction': 'score',
        'diffusion.weighting': 'eps',
        'diffusion.times': 'uniform',
    },
    'sub_vp': {
        'diffusion.process': 'sub_vp',
        'diffusion.prediction': 'v',
        'diffusion.weighting': 'min_snr',
        'diffusion.times': 'uniform',
    },
    'cosine': {
        'diffusion.process': 'vp_cosine',
        'diffusion.prediction': 'x_0',
        'diffusion.weighting': 'edm',
        'diffusion.times': 'lognormal',
        'sampler.spacing': 'log_snr',
        'sampler.name': 'ancestral',
    },
}
SLOW = ('vp', 'sub_vp', 'cosine')  # enough are left


def config(**changes):
    """A net of a few thousand parameters; `data__num_classes=3` sets config.data.num_classes."""
    config = default('diffusion.continuous')
    small = {
        'data.image_size': 4,
        'model.channels': 8,
        'model.multipliers': (1,),
        'model.attention': (),
        'model.groups': 4,
        'model.dropout': 0.0,
        'optimizer.warmup': 0,
        'sample.knobs.steps': 4,
        'sampler.name': 'ddim',
    }
    changes = {name.replace('__', '.'): value for name, value in changes.items()}
    config.update_from_flattened_dict(small | changes)
    validate(config)
    return config


def batch():
    image = np.random.default_rng(0).uniform(-1, 1, (B, 4, 4, 1)).astype(np.float32)
    return {'image': jnp.asarray(image), 'label': jnp.arange(B, dtype=jnp.int32) % 3}


def keys(n):
    return jax.random.split(jax.random.key(5), n)


def randomised(method):
    """A state whose every parameter is random: the initial values hide what starts near zero."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: 0.4 * rng.standard_normal(x.shape, np.float32), shapes.net.params
    )
    return shapes.replace(net=shapes.net.replace(params=params, ema=params))


@pytest.mark.parametrize(
    'kind', [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in KINDS]
)
def test_training_lowers_the_loss_and_samples_are_images(kind):
    chosen = config(**KINDS[kind])
    method = continuous.create(chosen)
    state = jax.jit(method.init)(jax.random.key(0), batch())
    step = jax.jit(method.train_step)
    found = []
    for i in range(150):
        state, metrics = step(jax.random.key(i), state, batch())
        found.append(float(metrics['loss']))
    assert np.isfinite(found).all()
    assert np.mean(found[-30:]) < 0.9 * np.mean(found[:30])
    images = jax.jit(method.sample_step)(keys(3), state, {})
    assert images.shape == (3, 4, 4, 1)
    assert jnp.abs(images).max() <= 1
    assert images.std() > 0.01


def test_edm_denoises_and_is_trained_as_the_paper_says():
    """Karras et al. 2022, eq. 7 and 8 with table 1, written out."""
    method = continuous.create(chosen := config())
    state, x_0 = randomised(method), batch()['image']
    sigma = jnp.float32([0.01, 0.3, 2.0, 70.0])
    s = sigma[:, None, None, None]
    eps = jnp.asarray(np.random.default_rng(1).standard_normal(x_0.shape), jnp.float32)
    x = x_0 + s * eps
    net = networks.build(chosen)
    c_in, c_skip = 1 / np.sqrt(s**2 + 0.25), 0.25 / (s**2 + 0.25)
    c_out = s * 0.5 / np.sqrt(s**2 + 0.25)
    f = net.apply({'params': state.net.ema}, c_in * x, np.log(sigma) / 4)
    want = c_skip * x + c_out * f
    np.testing.assert_allclose(method.denoise(state, x, sigma, {}), want, atol=2e-5)

    found = method.evaluate_step(keys(B), state, batch())['loss']
    assert found.shape == (B,)
    # The mean over draws of lambda(sigma) |D - y|^2, sigma log-normal.
    many = jax.jit(lambda i: method.evaluate_step(jax.random.split(i, B), state, batch())['loss'])
    ours = np.mean([many(jax.random.key(i)) for i in range(400)])
    rng, theirs = np.random.default_rng(2), []

    @jax.jit
    def loss(sigma, eps):
        s = sigma[:, None, None, None]
        error = method.denoise(state, x_0 + s * eps, sigma, {}) - x_0
        return jnp.mean((s**2 + 0.25) / (s * 0.5) ** 2 * error**2)

    for _ in range(400):
        sigma = np.exp(-1.2 + 1.2 * rng.standard_normal(B)).astype(np.float32)
        theirs.append(loss(sigma, rng.standard_normal(x_0.shape).astype(np.float32)))
    assert ours == pytest.approx(np.mean(theirs), rel=0.05)


def test_a_flow_is_trained_on_the_straight_path():
    """With a net that says v, one Euler step from t to 0 is x_t - t v: its x_0."""
    method = continuous.create(chosen := config(**FLOW))
    state = randomised(method)
    t = jnp.float32([0.1, 0.5, 0.9, 1.0])
    x_t = jnp.asarray(np.random.default_rng(1).standard_normal((B, 4, 4, 1)), jnp.float32)
    v = networks.build(chosen).apply({'params': state.net.ema}, x_t, 999 * t)
    want = x_t - t[:, None, None, None] * v
    np.testing.assert_allclose(method.denoise(state, x_t, t, {}), want, atol=1e-5)


def test_guidance_moves_the_estimate_from_null_to_label_and_beyond():
    method = continuous.create(config(data__num_classes=3, diffusion__label_dropout=0.3))
    state, x = randomised(method), batch()['image']
    given = {'label': jnp.int32([0, 1, 2, 0])}

    def at(scale):
        guided = given | {'guidance': jnp.full(B, scale)}
        return method.denoise(state, x, jnp.full(B, 0.7), guided)

    null, label, beyond = at(0.0), at(1.0), at(3.0)
    assert jnp.abs(null - label).max() > 1e-3
    np.testing.assert_allclose(beyond, null + 3 * (label - null), atol=1e-4)


def test_steps_guidance_and_eta_need_no_new_program():
    chosen = config(data__num_classes=3, diffusion__label_dropout=0.3)
    method, traced = continuous.create(chosen), []

    @jax.jit
    def sample(state, condition):
        traced.append(1)
        return method.sample_step(keys(2), state, condition)

    state, label, made = randomised(method), jnp.int32([0, 1]), []
    for steps, guidance, eta in ((4, 1.0, 0.0), (7, 1.0, 0.0), (4, 2.0, 0.0), (4, 1.0, 0.8)):
        knobs = {'guidance': jnp.full(2, guidance), 'eta': jnp.full(2, eta)}
        made.append(sample(state, knobs | {'label': label, 'steps': jnp.full(2, steps)}))
    assert len(traced) == 1
    assert all(jnp.abs(made[0] - other).max() > 1e-4 for other in made[1:])


HEUN = {'sampler.name': 'heun'}
CHANGES = [
    {'diffusion.process': 'vp_linear'},
    {'diffusion.range': (0.01, 10.0)},
    {'diffusion.prediction': 'v'},
    {'diffusion.told': 'time'},
    {'diffusion.weighting': 'min_snr'},
    {'diffusion.times': 'uniform'},
    {'diffusion.times_mean': 0.0},
    {'diffusion.times_std': 0.5},
    {'diffusion.sigma_data': 0.3},
    {'sampler.spacing': 'linear'},
    *({'sampler.name': name} for name in ('ancestral', 'heun', 'dpmpp_2m')),
    HEUN | {'sample.knobs.churn': 40.0},
    {'sampler.clip': True},
]


def numbers(**changes):
    """A loss and a sample."""
    method = continuous.create(config(**changes))
    state = randomised(method)
    loss = jax.jit(method.evaluate_step)(keys(B), state, batch())['loss']
    return np.append(loss, jax.jit(method.sample_step)(keys(2), state, {}))


@pytest.fixture(scope='module')
def plain():
    return numbers()


def test_churns_fields_change_what_churn_does():
    churn = HEUN | {'sample.knobs.churn': 40.0}
    plain, ranged, louder = (
        numbers(**churn | change)
        for change in ({}, {'sampler.churn_range': (1.0, 60.0)}, {'sampler.churn_noise': 1.2})
    )
    assert np.abs(plain - ranged).max() > 1e-4
    assert np.abs(plain - louder).max() > 1e-4


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: str(list(change.items())[-1]))
def test_every_field_changes_something(change, plain):
    assert np.abs(numbers(**change) - plain).max() > 1e-4


@pytest.mark.parametrize('name', networks.NETWORKS)
@pytest.mark.parametrize('method', ['continuous', 'gaussian'])
def test_every_network_is_told_the_label_and_the_null_class(method, name):
    chosen = default(f'diffusion.{method}', network=name)
    chosen.data.num_classes, chosen.diffusion.label_dropout = 3, 0.1
    validate(chosen)
    made = method_module(chosen.method).create(chosen)
    image = jnp.zeros((2, 8, 8, 1))
    shapes = jax.eval_shape(made.init, jax.random.key(0), {'image': image, 'label': jnp.zeros(2)})
    rows = [x.shape[0] for x in jax.tree.leaves(shapes.net.params) if x.ndim == 2]
    assert (3 if name == 'song' else 4) in rows  # of the label embedding
    given = {'label': jnp.zeros(2, jnp.int32)}
    t = jnp.ones(2, jnp.int32 if method == 'gaussian' else jnp.float32)
    found = jax.eval_shape(made.denoise, shapes, image, t, given)
    assert found.shape == image.shape


def test_a_field_of_another_network_is_told_with_the_way_to_choose():
    chosen = config()
    chosen.network = 'dit'
    with pytest.raises(UserError, match=r'network=...\) chooses it') as error:
        validate(chosen)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match="did you mean 'unet'"):
        default('diffusion.continuous', network='une')


def test_the_program_runs_it_with_a_donated_state():
    chosen = config(sample__batch_size=2, batch_size=B)
    program = Program(chosen, continuous.create(chosen))
    state, metrics = program.train_step(0, program.init(), program.to_global(batch()))
    assert np.isfinite(metrics['loss'])
    assert program.sample(state, np.arange(3)).shape == (3, 4, 4, 1)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'diffusion.process': 'vp'}, 'known are: edm'),
        ({'diffusion.prediction': 'epsilon'}, 'diffusion.prediction'),
        ({'diffusion.range': (2.0, 1.0)}, '0 < least < most'),
        (FLOW | {'diffusion.range': (0.1, 1.0)}, "as process='flow' has none"),
        (FLOW | {'diffusion.prediction': 'eps'}, 'sigma / alpha is infinite'),
        (FLOW | {'diffusion.told': 'log_ratio'}, 'sigma / alpha is infinite'),
        (FLOW | {'sampler.spacing': 'karras'}, 'sigma / alpha is infinite'),
        (FLOW | {'diffusion.times': 'lognormal'}, 'sigma / alpha is infinite'),
        ({'diffusion.times': 'logit_normal'}, "is for process='flow'"),
        ({'diffusion.times_std': 0.0}, 'more than 0'),
        ({'diffusion.sigma_data': 0.0}, 'more than 0'),
        ({'sampler.name': 'huen'}, "did you mean 'heun'"),
        (FLOW | {'sampler.name': 'dpmpp_2m'}, 'sigma / alpha is infinite'),
        ({'sample.knobs.churn': 1.0}, "only 'heun' knows churn"),
        (HEUN | {'sample.knobs.churn': -1.0}, '0 or more'),
        (HEUN | {'sampler.churn_range': (2.0, 1.0)}, '0 <= low < high'),
        (HEUN | {'sampler.churn_noise': 0.0}, 'more than 0'),
        ({'sample.knobs.steps': 0}, '1 to 10000'),
        ({'sample.knobs.eta': 2.0}, '0 to 1'),
        ({'sampler.name': 'ancestral', 'sample.knobs.eta': 0.5}, "only 'ddim' knows eta"),
        ({'sample.knobs.guidance': 2.0}, 'cannot be guided'),
        ({'diffusion.label_dropout': 0.1}, 'no labels to hide'),
    ],
)
def test_what_cannot_be_is_told_in_one_line(changes, says):
    with pytest.raises(UserError) as error:
        continuous.create(config(**changes))
    assert says in str(error.value)
    assert '\n' not in str(error.value)
