import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default, method_module, validate
from gen_jax.diffusion import continuous, networks
from gen_jax.diffusion.continuous_time import draw_times
from gen_jax.errors import UserError
from gen_jax.runtime.program import Program

pytestmark = pytest.mark.usefixtures('small_network')
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
    'ladder': {
        'diffusion.process': 'ladder',
        'diffusion.levels': 10,
        'diffusion.range': (0.01, 1.0),
        'diffusion.prediction': 'score',
        'diffusion.told': 'level',
        'diffusion.times': 'levels',
        'sampler.spacing': 'linear',
        'sampler.name': 'annealed_langevin',
        'sampler.corrections': 3,
        'sample.knobs.snr': 0.16,
    },
}


def config(**changes):
    """A net of a few hundred parameters; `data__num_classes=3` sets config.data.num_classes."""
    config = default('diffusion.continuous', network='small')
    small = {
        'data.image_size': 4,
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
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return state.replace(net=state.net.replace(params=params, ema=params))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_training_lowers_the_loss_and_samples_are_images(kind):
    wide = {'model.channels': 64, 'optimizer.learning_rate': 1e-2}
    method = continuous.create(config(**KINDS[kind] | wide))
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


def preconditioned(chosen, state, x, sigma):
    """Karras et al. 2022, eq. 7 with table 1, written out."""
    net, s = networks.build(chosen), sigma[:, None, None, None]
    c_in, c_skip = 1 / np.sqrt(s**2 + 0.25), 0.25 / (s**2 + 0.25)
    c_out = s * 0.5 / np.sqrt(s**2 + 0.25)
    f = net.apply({'params': state.net.ema}, c_in * x, np.log(sigma) / 4)
    return c_skip * x + c_out * f


def test_edm_denoises_as_the_paper_says():
    method = continuous.create(chosen := config())
    state, x_0 = randomised(method), batch()['image']
    sigma = jnp.float32([0.01, 0.3, 2.0, 70.0])
    eps = jnp.asarray(np.random.default_rng(1).standard_normal(x_0.shape), jnp.float32)
    x = x_0 + sigma[:, None, None, None] * eps
    want = preconditioned(chosen, state, x, sigma)
    np.testing.assert_allclose(method.denoise(state, x, sigma, {}), want, atol=2e-5)


def test_losses_of_training_and_evaluation_are_edms_of_what_they_draw():
    """Karras et al. 2022, eq. 8 and table 1: lambda(sigma) |D - y|^2, log(sigma) normal."""
    method = continuous.create(chosen := config())
    state, x_0 = randomised(method), batch()['image']

    def loss(z, eps):
        sigma = jnp.exp(-1.2 + 1.2 * z)
        s = sigma[:, None, None, None]
        error = preconditioned(chosen, state, x_0 + s * eps, sigma) - x_0
        return jnp.mean((s**2 + 0.25) / (s * 0.5) ** 2 * error**2, (1, 2, 3))

    def drawn(i, shape):
        return jnp.stack([jax.random.normal(jax.random.fold_in(key, i), shape) for key in keys(B)])

    found = jax.jit(method.evaluate_step)(keys(B), state, batch())['loss']
    want = loss(drawn(0, (1,))[:, 0], drawn(1, (4, 4, 1)))
    np.testing.assert_allclose(found, want, rtol=1e-4)
    key_z, key_eps = jax.random.split(jax.random.key(3), 5)[:2]
    _, metrics = jax.jit(method.train_step)(jax.random.key(3), state, batch())
    want = loss(jax.random.normal(key_z, B), jax.random.normal(key_eps, x_0.shape)).mean()
    assert metrics['loss'] == pytest.approx(float(want), rel=1e-4)


def test_a_flow_is_trained_on_the_straight_path():
    """With a net that says v, one Euler step from t to 0 is x_t - t v: its x_0."""
    method = continuous.create(chosen := config(**FLOW))
    state = randomised(method)
    t = jnp.float32([0.1, 0.5, 0.9, 1.0])
    x_t = jnp.asarray(np.random.default_rng(1).standard_normal((B, 4, 4, 1)), jnp.float32)
    v = networks.build(chosen).apply({'params': state.net.ema}, x_t, 999 * t)
    want = x_t - t[:, None, None, None] * v
    np.testing.assert_allclose(method.denoise(state, x_t, t, {}), want, atol=1e-5)


@pytest.mark.slow
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
    negative = given | {'guidance': jnp.full(B, 3.0), 'negative_label': jnp.int32([1, 2, 0, 2])}
    away = method.denoise(state, x, jnp.full(B, 0.7), {'label': negative['negative_label']})
    found = method.denoise(state, x, jnp.full(B, 0.7), negative)
    np.testing.assert_allclose(found, away + 3 * (label - away), atol=1e-4)


def test_guidance_holds_within_its_interval_only():
    within = GUIDED | {'sampler.guidance_interval': (0.5, 1.0)}
    method, plain = (continuous.create(config(**x)) for x in (within, GUIDED))
    state, x = randomised(method), batch()['image']
    given, t = {'label': jnp.int32([0, 1, 2, 0])}, jnp.float32([0.4, 0.6, 1.0, 1.1])
    found, guided, unguided = (
        method.denoise(state, x, t, given | more)
        for method, more in ((method, {}), (plain, {}), (plain, {'guidance': jnp.ones(B)}))
    )
    for i, want in enumerate((unguided, guided, guided, unguided)):
        np.testing.assert_allclose(found[i], want[i], atol=1e-5)
    assert np.abs(guided - unguided).max((1, 2, 3)).min() > 1e-3


@pytest.mark.slow
def test_optimal_pairing_shortens_the_way_from_image_to_noise(monkeypatch):
    """Of the batch's pairings it is the best, and the one that the loss is of."""

    def way(x_0, eps, *_):
        return ((x_0 - eps) ** 2).sum((1, 2, 3)).sum()

    monkeypatch.setattr(
        continuous, 'make_squares', lambda *_: lambda variables, *args, **options: way(*args[0::2])
    )
    found = {}
    for pairing in ('random', 'optimal'):
        method = continuous.create(config(**FLOW, diffusion__pairing=pairing))
        state = jax.jit(method.init)(jax.random.key(0), batch())
        step = jax.jit(method.train_step)
        found[pairing] = float(step(jax.random.key(3), state, batch())[1]['loss'])
    eps = np.asarray(jax.random.normal(jax.random.split(jax.random.key(3), 5)[1], (B, 4, 4, 1)))
    each = [float(way(batch()['image'], eps[list(p)])) for p in itertools.permutations(range(B))]
    assert found['optimal'] == pytest.approx(min(each), rel=1e-5)
    assert found['random'] == pytest.approx(each[0], rel=1e-5)
    assert min(each) < 0.99 * each[0]


@pytest.mark.slow
def test_augmentation_is_told_in_training_and_none_is_asked_for_after():
    chosen = default('diffusion.continuous', network='song')
    small = {'model.channels': 8, 'model.multipliers': (1,), 'model.attention': ()}
    chosen.update_from_flattened_dict(small | {'diffusion.augment': 1.0, 'optimizer.warmup': 0})
    method, image = continuous.create(chosen), jnp.zeros((B, 8, 8, 1)).at[:, :2].set(1.0)
    state = jax.jit(method.init)(jax.random.key(0), {'image': image})
    told = state.net.params['embedding']['augment']['kernel']
    assert told.shape == (9, 8)
    step = jax.jit(method.train_step)
    for i in range(2):  # the network's last layer, which begins at 0, hides all else at first
        state, _ = step(jax.random.key(i), state, {'image': image})
    after = state.net.params['embedding']['augment']['kernel']
    assert (np.abs(after - told).max(1) > 0).all()
    silent = jax.tree.map(lambda x: x, state.net.ema)
    silent['embedding']['augment']['kernel'] = jnp.zeros_like(told)
    mute = state.replace(net=state.net.replace(ema=silent))
    found, want = (method.denoise(s, image, jnp.ones(B), {}) for s in (state, mute))
    np.testing.assert_array_equal(found, want)


@pytest.mark.slow
def test_log_sigma_is_what_score_sdes_network_is_told():
    """NCSN++ (VE) embeds log(sigma) of images in [0, 1] and divides by sigma: the score there."""
    chosen = default('diffusion.continuous', network='song')
    chosen.update_from_flattened_dict(
        {
            'diffusion.process': 've',
            'diffusion.range': (0.02, 100.0),
            'diffusion.prediction': 'score',
            'diffusion.told': 'log_sigma',
            'model.embedding': 'fourier',
            'model.channels': 8,
            'model.multipliers': (1,),
            'model.attention': (),
        }
    )
    method = continuous.create(chosen)
    net = networks.build(chosen).clone(scale_by_sigma=True)
    x, t = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 1))), jnp.float32([0, 1])
    shapes = jax.eval_shape(method.init, jax.random.key(0), {'image': jnp.zeros((2, 8, 8, 1))})
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)
    sigma = np.float32([0.01, 50.0])  # in [0, 1]; twice that in [-1, 1]
    score = net.apply(state.net.variables(ema=True), x, sigma)
    want = x + (2 * sigma[:, None, None, None]) ** 2 * score / 2
    found = method.denoise(state, x, t, {})
    np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3)


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


GUIDED = {'data.num_classes': 3, 'diffusion.label_dropout': 0.3, 'sample.knobs.guidance': 2.0}
CHANGES = [
    {'diffusion.process': 'vp_linear'},
    {'diffusion.prediction': 'v'},
    {'diffusion.told': 'time'},
    {'diffusion.told': 'log_sigma'},
    {'diffusion.weighting': 'min_snr'},
    {'diffusion.times': 'uniform'},
    {'diffusion.times_mean': 0.0},
    {'diffusion.times_std': 0.5},
    {'diffusion.sigma_data': 0.3},
    {'diffusion.range': (0.01, 10.0)},
    {'sampler.spacing': 'linear'},
    {'sampler.rho': 3.0},
    {'sampler.name': 'heun'},
    {'sampler.clip': True},
]


def program(**changes):
    """What a config computes for a loss, an estimate and a sample, as text."""
    method = continuous.create(config(**changes))
    state = jax.eval_shape(method.init, jax.random.key(0), batch())
    given = {'label': jnp.int32([0, 1, 2, 0])}

    def run(state):
        loss = method.evaluate_step(keys(B), state, batch())
        x_0 = method.denoise(state, batch()['image'], jnp.full(B, 0.7), given)
        return loss, x_0, method.sample_step(keys(B), state, given)

    traced = jax.make_jaxpr(run)(state)
    return str(traced), str(traced.consts)


@pytest.fixture(scope='module')
def plain():
    return program()


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: str(list(change.items())[-1]))
def test_every_field_changes_something(change, plain):
    assert program(**change) != plain


def test_a_program_is_the_same_twice(plain):
    assert program() == plain


@pytest.mark.parametrize(
    ('field', 'values', 'rest'),
    [
        ('diffusion.gamma', (5.0, 0.5), {'diffusion.weighting': 'min_snr'}),
        ('sampler.guidance_interval', ((), (0.8, 9.0)), GUIDED),
        ('sample.knobs.guidance_rescale', (0.0, 0.7), GUIDED),
        ('sample.knobs.negative_label', (-1, 2), GUIDED),
    ],
)
def test_fields_of_some_kinds_change_something(field, values, rest):
    one, other = (program(**rest | {field: value}) for value in values)
    assert one != other


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {'sampler.name': 'adaptive', 'sample.knobs.steps': 0, 'sample.knobs.tolerance': 0.01},
        {'sampler.name': 'unipc'},
    ],
    ids=lambda changes: changes['sampler.name'],
)
def test_samplers_of_the_registry_draw_by_label(changes):
    """Nothing of one sample's condition reaches the other."""
    method = continuous.create(config(**changes | GUIDED))
    state, sample = randomised(method), jax.jit(method.sample_step)
    one, other = (sample(keys(2), state, {'label': jnp.int32([0, i])}) for i in (1, 2))
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    assert np.abs(one[1] - other[1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('name', [x for x in networks.NETWORKS if x != 'refinenet'])  # has none
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


@pytest.mark.slow
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
        ({'diffusion.range': ('a', 'b')}, '0 < least < most'),
        ({'diffusion.range': (0.01, float('inf'))}, '0 < least < most'),
        (KINDS['vp'] | {'diffusion.range': (0.1, 400.0)}, 'nothing of the image in float32'),
        (FLOW | {'diffusion.range': (0.1, 1.0)}, "as process='flow' has none"),
        (FLOW | {'diffusion.prediction': 'eps'}, 'sigma / alpha is infinite'),
        (FLOW | {'diffusion.told': 'log_ratio'}, 'sigma / alpha is infinite'),
        (FLOW | {'sampler.spacing': 'karras'}, 'sigma / alpha is infinite'),
        (FLOW | {'diffusion.times': 'lognormal'}, 'sigma / alpha is infinite'),
        ({'diffusion.times': 'logit_normal'}, "is for process='flow'"),
        ({'diffusion.times_std': 0.0}, 'more than 0'),
        ({'diffusion.times_std': float('inf')}, 'more than 0'),
        ({'diffusion.times_mean': float('nan')}, 'a finite number'),
        ({'diffusion.sigma_data': 0.0}, 'more than 0'),
        ({'sampler.name': 'huen'}, "did you mean 'heun'"),
        (FLOW | {'sampler.name': 'dpmpp_2m'}, 'sigma / alpha is infinite'),
        ({'sample.knobs.churn': 1.0}, 'churn is for heun'),
        ({'sampler.name': 'heun', 'sample.knobs.churn': -1.0}, '0 or more'),
        ({'diffusion.gamma': 0.0}, 'more than 0'),
        ({'diffusion.pairing': 'optimum'}, "did you mean 'optimal'"),
        ({'diffusion.augment': 1.2}, 'a probability'),
        ({'diffusion.augment': 0.1}, "only 'song' is told"),
        ({'sampler.variance': 'learned'}, 'known are: between, fixed_large, fixed_small'),
        ({'sampler.share': 1.5}, '0 (fixed_small) to 1 (fixed_large)'),
        (GUIDED | {'sampler.guidance_interval': (2.0, 1.0)}, '0 <= least < most'),
        (GUIDED | {'sampler.guidance_interval': ('a', 'b')}, '0 <= least < most'),
        (GUIDED | {'sample.knobs.guidance': float('inf')}, 'a finite number'),
        (GUIDED | {'sample.knobs.guidance_rescale': 1.5}, '0 to 1'),
        ({'sampler.guidance_interval': (1.0, 2.0)}, 'cannot be guided'),
        ({'sample.knobs.guidance_rescale': 0.5}, 'cannot be guided'),
        ({'data.num_classes': 3, 'sample.knobs.negative_label': 1}, 'cannot be guided'),
        (GUIDED | {'sample.knobs.negative_label': 3}, 'a class below data.num_classes=3'),
        (GUIDED | {'sample.knobs.negative_label': -2}, '-1 (none)'),
        ({'sample.knobs.steps': 0}, '1 to 10000'),
        ({'sample.knobs.eta': 2.0}, '0 to 1'),
        ({'sampler.name': 'ancestral', 'sample.knobs.eta': 0.5}, 'eta is for ddim and dpmpp_2m'),
        ({'sample.knobs.guidance': 2.0}, 'cannot be guided'),
        ({'diffusion.label_dropout': 0.1}, 'no labels to hide'),
    ],
)
def test_what_cannot_be_is_told_in_one_line(changes, says):
    with pytest.raises(UserError) as error:
        continuous.create(config(**changes))
    assert says in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('dequantisation', ['uniform', 'none'])
def test_evaluation_gives_bits_per_dim(dequantisation):
    """Of a network that knows nothing: with outputs of 0 the model is a Gaussian."""
    options = {'divergence': 'exact', 'dequantisation': dequantisation, 'tolerance': 1e-4}
    method = continuous.create(config(**{f'likelihood__{x}': y for x, y in options.items()}))
    state = jax.jit(method.init)(jax.random.key(0), batch())
    found = jax.jit(method.evaluate_step)(keys(B), state, batch())
    name = {'uniform': 'ode_bits_per_dim', 'none': 'ode_density_bits_per_dim'}[dequantisation]
    assert set(found) == {'loss', name, 'ode_network_calls'}
    # x_0_hat = skip x_t (Karras et al. 2022, eq. 7) is the exact denoiser of N(0, 0.5^2).
    image = batch()['image']
    spread = (2 / 256) ** 2 / 12 if dequantisation == 'uniform' else 0.0
    nats = 0.5 * np.log(2 * np.pi * 0.25) + (image**2 + spread) / (2 * 0.25)
    want = nats.mean((1, 2, 3)) / np.log(2) + 7
    np.testing.assert_allclose(found[name], want, atol=0.02)
    assert (found['ode_network_calls'] % 6 == 1).all()
    again = method.evaluate_step(keys(B)[:1], state, {x: y[:1] for x, y in batch().items()})
    np.testing.assert_allclose(again[name], found[name][:1], rtol=1e-3)


def test_training_begins_where_the_config_says():
    for t_min, least in ((0.0, 1e-3), (1e-5, 1e-5)):
        chosen = config(**KINDS['vp'], diffusion__t_min=t_min)
        model = continuous.Model.from_config(chosen)
        t = draw_times(chosen.diffusion, model.taught, jax.random.key(0), 100_000)
        assert least <= t.min() < least + 1e-4 < 0.9999 < t.max() <= 1
        assert model.process.t_min == 1e-3  # sampling's


@pytest.mark.slow
def test_bits_per_dim_begin_where_the_config_says():
    """At sigma = 0.09 the density is that of N(0, 0.5^2 + 0.09^2)."""
    options = {'likelihood__divergence': 'exact', 'likelihood__dequantisation': 'none'}
    method = continuous.create(config(**options, diffusion__t_min=0.09))
    state = jax.jit(method.init)(jax.random.key(0), batch())
    found = jax.jit(method.evaluate_step)(keys(B), state, batch())
    image, variance = batch()['image'], 0.25 + 0.09**2
    nats = 0.5 * np.log(2 * np.pi * variance) + image**2 / (2 * variance)
    want = nats.mean((1, 2, 3)) / np.log(2) + 7
    np.testing.assert_allclose(found['ode_density_bits_per_dim'], want, atol=0.002)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            {'likelihood__divergence': 'rademache'},
            "config.likelihood.divergence='rademache': .* did you mean 'rademacher'",
        ),
        ({'likelihood__divergence': 'exact', 'data__image_size': 64}, 'at most 1024'),
        (
            {'likelihood__divergence': 'gaussian', 'likelihood__tolerance': 0.0},
            'config.likelihood.tolerance=0.0: expected a tolerance',
        ),
        (
            {'likelihood__divergence': 'gaussian', 'likelihood__probes': 0},
            'config.likelihood.probes=0: expected a whole number',
        ),
        ({'diffusion__t_min': 0.5}, 'diffusion.t_min=0.5: expected 0'),
        ({'diffusion__t_min': 0.05, 'diffusion__range': (0.002, 0.04)}, r'more, below 0\.04'),
        ({'ema_rampup': -0.1}, 'ema_rampup=-0.1: expected 0'),
        ({'ema_rampup': float('inf')}, 'ema_rampup=inf: expected 0 .* finite'),
        ({'diffusion__weighting': 'likelihood'}, "'uniform' with weighting='likelihood'"),
        (
            {'likelihood__divergence': 'rademacher', 'likelihood__tolerance': 1e-12},
            'tolerance=1e-12: expected a tolerance below 1, of 1e-07',
        ),
        ({'diffusion__told': 'level'}, "for process='ladder'"),
        ({'diffusion__process': 'ladder'}, "'level' with process='ladder'"),
        ({'diffusion__levels': 1}, 'at least 2'),
    ],
)
def test_mistakes_about_likelihood_and_levels_are_named(changes, says):
    with pytest.raises(UserError, match=says) as error:
        continuous.create(config(**changes))
    assert '\n' not in str(error.value)
