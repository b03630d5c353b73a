"""Models guided by another method: Gaussians, where what is sampled is known, and networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from gen_jax.config import create, default
from gen_jax.diffusion import guides, processes, samplers
from gen_jax.diffusion.guides import Guided
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas
from gen_jax.errors import UserError
from gen_jax.method import Method

pytestmark = pytest.mark.usefixtures('small_network')
B, T = 4, 20
STD, BLUR = 0.6, 0.4  # of the images' values, and of what a label says of them
MEANS = jnp.float32([-0.5, 0.8])  # what the labels say


def small(method='diffusion.gaussian', **changes):
    """A model of 4x4 images; `data__num_classes=3` sets config.data.num_classes."""
    config = default(method, network='small')
    config.update_from_flattened_dict(
        {
            'data.image_size': 4,
            'sampler.clip': False,
            'sample.knobs.steps': 3,
        }
    )
    if method == 'diffusion.gaussian':
        config.update_from_flattened_dict({'diffusion.timesteps': T, 'diffusion.beta_max': 0.4})
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return config


def classifier(time='discrete', **changes):
    """Of the noise that `small`'s models know."""
    config = default('diffusion.noised_classifier', time=time)
    config.update_from_flattened_dict(
        {
            'data.image_size': 4,
            'data.num_classes': 3,
            'model.channels': 8,
            'model.multipliers': (1,),
            'model.attention': (),
            'model.groups': 4,
            'model.head_channels': 8,
        }
    )
    if time == 'discrete':
        config.update_from_flattened_dict({'diffusion.timesteps': T, 'diffusion.beta_max': 0.4})
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
    return create(config)


def by(config, guide):
    """The method of a config that names a guide, guided."""
    config.guide.workdir = 'there'
    return create(config, guide)


def batch():
    image = np.random.default_rng(0).uniform(-1, 1, (B, 4, 4, 1)).astype(np.float32)
    return {'image': jnp.asarray(image), 'label': jnp.arange(B, dtype=jnp.int32) % 3}


def randomised(method, seed=0):
    """A state whose every parameter is random: the initial values hide what starts near zero."""
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes.net.params
    )
    ema = None if shapes.net.ema is None else params
    return shapes.replace(net=shapes.net.replace(params=params, ema=ema))


def keys(n):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(n))


def full(value, **others):
    return {'guide': jnp.full(B, value, jnp.float32), 'label': batch()['label'], **others}


# Gaussians.


def exact(process, x_t, t):
    """E[x_0 | x_t] and its variance, of values N(0, STD^2)."""
    alpha, sigma = process.level(t)
    variance = (alpha * STD) ** 2 + sigma**2
    return alpha * STD**2 / variance * x_t, STD**2 * sigma**2 / variance


def log_prob(process, x_t, t, label):
    """Of a label that says each value to be N(MEANS[label], BLUR^2), up to a constant."""
    mean, variance = exact(process, x_t, t)
    std = jnp.sqrt(variance + BLUR**2)
    return norm.logpdf(MEANS[label][:, None, None, None], mean, std).sum((1, 2, 3))


# Each with the spacing of its 100 times.
NOISES = {
    'discrete': (DiscreteProcess.from_betas(linear_betas(100, 1e-3, 0.2)), 'linear'),
    'edm': (processes.edm(), 'karras'),
    've': (processes.ve(), 'log_snr'),
    'vp': (processes.vp_linear(), 'quadratic'),
    'flow': (processes.flow(), 'trailing'),
}


@pytest.mark.parametrize(
    ('noise', 'scale'), [('discrete', 0.0), *((noise, 1.0) for noise in NOISES)]
)
def test_a_classifier_makes_of_the_prior_the_posterior(noise, scale):
    """With the exact classifier and s = 1: that of Gaussian values seen through Gaussian noise."""
    n, shape, (process, spacing) = 128, (8, 8, 1), NOISES[noise]
    # Its state is what knows the process.
    guide = Method(None, None, log_prob=log_prob, num_classes=2)
    steered = guides.steering(small(), guide, process.level)
    given = {'guide': jnp.full(n, scale), 'label': jnp.arange(n) % 2}
    state = Guided(None, process)

    def denoise(x_t, t):
        return steered(exact(process, x_t, t)[0], state, x_t, t, given)

    make = Trajectory.create if noise == 'discrete' else Path
    path = make(process, jnp.full(n, 100), spacing)
    x_0 = jax.jit(lambda: samplers.ddim(denoise, path, keys(n), shape, jnp.zeros(n)))()
    weight = scale * STD**2 / (STD**2 + BLUR**2)
    std = STD * np.sqrt(1 - weight)
    for label in range(2):
        values = np.ravel(x_0[label::2])  # 4096
        assert values.mean() == pytest.approx(weight * MEANS[label], abs=4 * std / 64 + 0.01)
        assert values.std() == pytest.approx(std, rel=0.05)


# Networks.


@pytest.mark.parametrize('method', ['diffusion.gaussian', 'diffusion.continuous'])
@pytest.mark.parametrize('clip', [False, True])
def test_a_worse_model_is_led_away_from_and_then_clipped(method, clip):
    plain = create(small(method, data__num_classes=3))
    good, bad = randomised(plain), randomised(plain, 1)
    guided = by(small(method, data__num_classes=3, sampler__clip=clip), plain)
    x_t, t = 2 * batch()['image'], jnp.full(B, 0.7 if 'continuous' in method else 9)
    x_good, x_bad = (plain.denoise(state, x_t, t, full(0.0)) for state in (good, bad))
    got = guided.denoise(Guided(good, bad), x_t, t, full(1.5))
    want = x_bad + 2.5 * (x_good - x_bad)
    np.testing.assert_allclose(got, jnp.clip(want, -1, 1) if clip else want, atol=2e-5)
    assert np.abs(x_good - x_bad).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('method', ['diffusion.gaussian', 'diffusion.continuous'])
def test_autoguidance_by_itself_changes_nothing_nor_does_none(method):
    """Guided by label too, as the guide then is."""
    free = {'data__num_classes': 3, 'diffusion__label_dropout': 0.1, 'sample__knobs__guidance': 2.0}
    plain = create(small(method, **free))
    good, bad = randomised(plain), randomised(plain, 1)
    guided = by(small(method, **free), plain)
    want = jax.jit(plain.sample_step)(keys(B), good, full(0.0))
    sample = jax.jit(guided.sample_step)
    # Another program rounds otherwise, at values of x_T of up to 80.
    np.testing.assert_allclose(sample(keys(B), Guided(good, bad), full(0.0)), want, atol=1e-4)
    np.testing.assert_allclose(sample(keys(B), Guided(good, good), full(3.0)), want, atol=1e-4)
    assert np.abs(sample(keys(B), Guided(good, bad), full(3.0)) - want).max() > 0.01
    # Who is not guided does not notice that another is.
    mixed = full(0.0, guide=jnp.float32([0, 3, 0, 0]))
    got = sample(keys(B), Guided(good, bad), mixed)
    np.testing.assert_allclose(np.delete(got, 1, 0), np.delete(want, 1, 0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('method', 'clip'),
    [('diffusion.gaussian', False), ('diffusion.gaussian', True), ('diffusion.continuous', False)],
)
def test_a_classifiers_gradient_is_added_to_what_was_clipped(method, clip):
    """Dhariwal and Nichol 2021, Algorithm 2, written by x_0; the model knows no classes."""
    if method == 'diffusion.gaussian':
        t, time = jnp.int32([0, 5, 12, 19]), 'discrete'
        alpha = np.sqrt(np.cumprod(1 - linear_betas(T, 1e-4, 0.4)))[t]
        sigma = np.sqrt(1 - alpha**2)
    else:
        t, time = jnp.float32([0.01, 0.3, 2.0, 20.0]), 'continuous'
        alpha, sigma = np.ones(B), t
    guide, plain = classifier(time), create(small(method, sampler__clip=clip))
    state = Guided(randomised(plain), randomised(guide, 1))
    guided = by(small(method, sampler__clip=clip), guide)
    assert guided.num_classes == 3
    x_t = 2 * batch()['image']

    def log_each(x_t):
        return guide.log_prob(state.guide, x_t, t, batch()['label'])

    gradient = jnp.stack([jax.grad(lambda x, i=i: log_each(x)[i])(x_t)[i] for i in range(B)])
    got = guided.denoise(state, x_t, t, full(4.0))
    own = plain.denoise(state.own, x_t, t, {})
    want = own + 4 * (sigma**2 / alpha)[:, None, None, None] * gradient
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert np.abs(want - own).max(axis=(1, 2, 3)).min() > 1e-3 * (sigma**2).min()
    np.testing.assert_array_equal(guided.denoise(state, x_t, t, full(0.0)), own)


@pytest.mark.slow
def test_the_interval_limits_the_guide():
    guide, ends = classifier(), (0.5, 1.2)
    plain = create(small())
    state = Guided(randomised(plain), randomised(guide, 1))
    within, always = (by(small(sampler__guidance_interval=x), guide) for x in (ends, ()))
    x_t, t = batch()['image'], jnp.int32([0, 4, 6, 19])
    alpha_bar = np.cumprod(1 - linear_betas(T, 1e-4, 0.4))[t]
    ratio = np.sqrt(1 / alpha_bar - 1)
    inside = (ends[0] < ratio) & (ratio <= ends[1])
    assert 0 < inside.sum() < B
    own = plain.denoise(state.own, x_t, t, {})
    moved = [method.denoise(state, x_t, t, full(4.0)) - own for method in (within, always)]
    np.testing.assert_allclose(moved[0], inside[:, None, None, None] * moved[1], atol=1e-5)


@pytest.mark.slow
def test_learned_variances_are_the_models_own():
    learned = {
        'diffusion__learned_variance': True,
        'diffusion__loss': 'hybrid',
        'sampler__name': 'ancestral',
        'sampler__variance': 'learned_range',
    }
    guide, plain = classifier(), create(small(**learned))
    own, guided = randomised(plain), by(small(**learned), guide)
    want = plain.sample_step(keys(B), own, {})
    sample = jax.jit(guided.sample_step)
    state = Guided(own, randomised(guide, 1))
    np.testing.assert_allclose(sample(keys(B), state, full(0.0)), want, atol=1e-5)
    moved = sample(keys(B), state, full(5.0))
    assert np.isfinite(moved).all()
    assert np.abs(moved - want).max() > 1e-3


@pytest.mark.slow
def test_where_nothing_is_left_of_the_image_a_classifier_says_nothing():
    changes = {'diffusion__zero_snr': True, 'diffusion__prediction': 'v'}
    changes |= {'sampler__spacing': 'trailing'}
    guide, plain = classifier(diffusion__zero_snr=True), create(small(**changes))
    state = Guided(randomised(plain), randomised(guide, 1))
    guided = by(small(**changes), guide)
    x_t, t = batch()['image'], jnp.full(B, T - 1)
    got = guided.denoise(state, x_t, t, full(4.0))
    np.testing.assert_array_equal(got, plain.denoise(state.own, x_t, t, {}))
    got = guided.denoise(state, x_t, t - 1, full(4.0))
    assert np.isfinite(got).all()
    assert np.abs(got - plain.denoise(state.own, x_t, t - 1, {})).max() > 1e-4


@pytest.mark.slow
def test_edits_are_guided():
    guide, plain = classifier(), create(small())
    state = Guided(randomised(plain), randomised(guide, 1))
    guided = by(small(), guide)
    given = {'image': batch()['image'], 'strength': jnp.full(B, 0.5), 'eta': jnp.zeros(B)}
    vary = jax.jit(guided.edits['vary'])
    _, none = vary(keys(B), state, full(0.0, **given))
    _, some = vary(keys(B), state, full(9.0, **given))
    np.testing.assert_allclose(plain.edits['vary'](keys(B), state.own, given)[1], none, atol=1e-5)
    assert np.abs(some - none).max() > 1e-3


@pytest.mark.slow
def test_likelihood_is_the_models_own_and_training_is_refused():
    guide, plain = classifier(), create(small())
    guided = by(small(), guide)
    state = Guided(randomised(plain), randomised(guide, 1))
    got = jax.jit(guided.evaluate_step)(keys(B), state, batch())
    want = jax.jit(plain.evaluate_step)(keys(B), state.own, batch())
    jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(UserError, match='does not train'):
        guided.train_step(jax.random.key(0), state, batch())


def test_the_state_holds_both():
    guide, plain = classifier(), create(small())
    state = jax.eval_shape(by(small(), guide).init, jax.random.key(0), batch())
    for part, method in ((state.own, plain), (state.guide, guide)):
        shapes = jax.eval_shape(method.init, jax.random.key(0), batch())
        assert jax.tree.structure(part) == jax.tree.structure(shapes)


@pytest.mark.parametrize('method', ['diffusion.gaussian', 'diffusion.continuous'])
@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'sample__knobs__guide': 1.0}, r'knobs\.guide=1\.0: expected 0'),
        ({'guide__step': '7'}, r"guide\.step='7': expected ''"),
        ({'guide__workdir': 'there'}, r"guide\.workdir='there': expected ''"),
        ({'guide__workdir': 'there', 'sample__label': 0}, r'sample\.label=0'),
        ({'sampler__guidance_interval': (1.0, 2.0)}, 'cannot be guided'),
    ],
)
def test_mistakes_are_named(method, changes, says):
    with pytest.raises(UserError, match=says) as error:
        create(small(method, **changes))
    assert '\n' not in str(error.value)


def test_the_scale_is_finite_and_labels_are_what_the_classifier_knows():
    guide = classifier()
    guided = by(small(sample__label=2), guide)
    with pytest.raises(UserError, match=r'sample\.label=3.*below data\.num_classes=3'):
        by(small(sample__label=3), guide)
    shapes = jax.eval_shape(guided.init, jax.random.key(0), batch())
    with pytest.raises(UserError, match=r'knobs\.guide=inf: expected a finite number'):
        by(small(sample__knobs__guide=np.inf), guide)
    with pytest.raises(UserError, match="no 'label'"):
        jax.eval_shape(guided.sample_step, keys(B), shapes, {'guide': jnp.ones(B)})
