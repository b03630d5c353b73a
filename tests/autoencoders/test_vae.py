"""The VAE: its terms against SciPy and against exact integrals, and its side of the contract."""

import functools
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from gen_jax import config as house
from gen_jax.autoencoders import vae
from gen_jax.errors import UserError


def small(**changes):
    config = house.default('autoencoders.vae')
    config.update_from_flattened_dict(
        {
            'data.image_size': 8,
            'model.channels': 4,
            'model.hidden': 16,
            'model.latent_dim': 3,
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def batch_of(n, size=8, channels=1):
    shape = (n, size, size, channels)
    return {'image': jax.random.uniform(jax.random.key(5), shape, minval=-1.0)}


@functools.cache
def start(**changes):
    """(method, fresh state) of a small model."""
    method = vae.create(small(**changes))
    return method, jax.jit(method.init)(jax.random.key(0), batch_of(2))


# --- the terms -----------------------------------------------------------------------------------


def test_bernoulli_is_scipys_on_binary_images():
    rng = np.random.default_rng(0)
    x, logits = rng.integers(0, 2, (3, 4, 4, 1)), rng.normal(size=(3, 4, 4, 1)) * 3
    expected = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(axis=(1, 2, 3))
    ours = vae.bernoulli_log_likelihood(jnp.float32(x), jnp.float32(logits))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_bernoulli_on_grey_levels_is_the_expectation_over_binarisations():
    """The term is linear in x: at 0.3 it is 0.3 of the value at 1 and 0.7 of that at 0."""
    logits = jnp.full((1, 2, 2, 1), 1.7)
    value = lambda level: vae.bernoulli_log_likelihood(jnp.full_like(logits, level), logits)  # noqa: E731
    np.testing.assert_allclose(value(0.3), 0.3 * value(1.0) + 0.7 * value(0.0), rtol=1e-6)


def test_gaussian_is_scipys():
    rng = np.random.default_rng(0)
    x, mean = rng.normal(size=(2, 3, 4, 4, 2))
    expected = scipy.stats.norm.logpdf(x, mean, 0.4).sum(axis=(1, 2, 3))
    ours = vae.gaussian_log_likelihood(jnp.float32(x), jnp.float32(mean), jnp.log(0.4))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_kl_agrees_with_monte_carlo():
    mu, log_var = np.array([[0.7, -1.2]]), np.array([[-0.5, 0.8]])
    sigma = np.exp(log_var / 2)
    z = mu + sigma * np.random.default_rng(0).normal(size=(200_000, 2))
    q, p = scipy.stats.norm(mu, sigma), scipy.stats.norm(0, 1)
    ratios = (q.logpdf(z) - p.logpdf(z)).sum(axis=1)
    standard_error = ratios.std() / np.sqrt(len(ratios))
    ours = vae.kl_divergence(jnp.float32(mu), jnp.float32(log_var))
    assert abs(ours[0] - ratios.mean()) < 4 * standard_error
    assert vae.kl_divergence(jnp.zeros((1, 2)), jnp.zeros((1, 2)))[0] == 0


SIGMA = 0.5
W = np.array([[0.6, 0.4, 0.0, -0.2], [0.4, -0.6, 0.2, 0.0]])  # orthogonal rows


class ExactPosterior(nn.Module):
    """q(z|x) = p(z|x) of the linear-Gaussian model x = z W + SIGMA * noise, off by `offset`."""

    offset: float

    def __call__(self, x):
        precision = (W**2).sum(axis=1) / SIGMA**2 + 1
        mu = x.reshape(len(x), -1) @ W.T / SIGMA**2 / precision
        log_var = jnp.broadcast_to(-jnp.log(precision), mu.shape)
        return jnp.concatenate([mu + self.offset, log_var], axis=-1)


class Linear(nn.Module):
    def __call__(self, z):
        return (z @ W).reshape(-1, 2, 2, 1)


@pytest.mark.parametrize('offset', [0.0, 0.3])
def test_elbo_is_tight_at_the_exact_posterior_only(offset):
    """log p(x) - ELBO = KL(q(z|x) || p(z|x)), zero or what the offset makes it."""
    x = np.array([0.9, -0.4, 0.3, 0.1])
    evidence = scipy.stats.multivariate_normal(cov=W.T @ W + SIGMA**2 * np.eye(4)).logpdf(x)
    gap = 0.5 * offset**2 * ((W**2).sum(axis=1) / SIGMA**2 + 1).sum()
    module = vae.VAE(ExactPosterior(offset), Linear(), 'gaussian', SIGMA)
    n = 50_000
    images = jnp.broadcast_to(jnp.float32(x).reshape(1, 2, 2, 1), (n, 2, 2, 1))
    terms = vae.elbo(jax.random.split(jax.random.key(1), n), module, {}, images)
    standard_error = terms['elbo'].std() / np.sqrt(n)
    assert abs(terms['elbo'].mean() - (evidence - gap)) < 4 * standard_error


def test_binarize():
    image = jnp.full((400, 8, 8, 1), 0.5)  # 3/4 bright
    keys = jax.random.split(jax.random.key(0), 400)
    assert vae.binarize(keys, image, 'none') is image
    assert (vae.binarize(keys, image, 'threshold') == 1).all()
    drawn = vae.binarize(keys, image, 'stochastic')
    assert set(np.unique(drawn)) == {-1, 1}
    assert abs(drawn.mean() - 0.5) < 0.03
    np.testing.assert_array_equal(vae.binarize(keys[3:5], image[3:5], 'stochastic'), drawn[3:5])


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('likelihood', ['bernoulli', 'gaussian'])
def test_training_reaches_every_parameter_and_improves(likelihood):
    method, state = start(**{'vae.likelihood': likelihood})
    step, batch, before = jax.jit(method.train_step), batch_of(4), state.net.params
    losses = []
    for i in range(20):
        state, metrics = step(jax.random.key(i), state, batch)
        losses.append(metrics['loss'])
    assert losses[-1] < losses[0]
    assert metrics.keys() == {'loss', 'elbo', 'reconstruction', 'kl', 'grad_norm'}
    np.testing.assert_allclose(
        metrics['loss'], metrics['kl'] - metrics['reconstruction'], rtol=1e-5
    )
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.net.params)
    assert all(jax.tree.leaves(changed)), changed
    assert ('log_sigma' in state.net.params) == (likelihood == 'gaussian')


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_there_are():
    method, state = start()
    keys, sample = jax.random.split(jax.random.key(2), 5), jax.jit(method.sample_step)
    together = sample(keys, state, {})
    assert (together.shape, together.dtype) == ((5, 8, 8, 1), jnp.float32)
    assert jnp.abs(together).max() <= 1
    np.testing.assert_allclose(sample(keys[3:4], state, {})[0], together[3], atol=1e-6)


@pytest.mark.slow
def test_temperature_is_per_sample_and_traced():
    method, state = start()
    keys, warm = jax.random.split(jax.random.key(2), 2), {'temperature': jnp.ones(2)}
    sample = jax.jit(method.sample_step).lower(keys, state, warm).compile()
    ones = sample(keys, state, warm)
    mixed = sample(keys, state, {'temperature': jnp.array([0.0, 1.0])})
    np.testing.assert_allclose(mixed[0], method.decode(state, jnp.zeros((1, 3)), {})[0], atol=1e-6)
    np.testing.assert_allclose(mixed[1], ones[1], atol=1e-6)
    assert jnp.abs(mixed[0] - ones[0]).max() > 1e-3
    cold = vae.create(small(**{'sample.knobs.temperature': 0.0}))
    np.testing.assert_allclose(cold.sample_step(keys, state, {})[1], mixed[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('binarize', ['none', 'stochastic'])
def test_evaluation_is_per_example(binarize):
    method, state = start(**{'vae.binarize': binarize})
    keys, batch = jax.random.split(jax.random.key(2), 4), batch_of(4)
    evaluate = jax.jit(method.evaluate_step)
    terms = evaluate(keys, state, batch)
    alone = evaluate(keys[2:3], state, {'image': batch['image'][2:3]})
    for name in ('elbo', 'log_likelihood', 'kl'):
        assert terms[name].shape == (4,)
        np.testing.assert_allclose(alone[name][0], terms[name][2], rtol=1e-5)


@pytest.mark.slow
def test_encode_and_decode():
    method, state = start(**{'vae.likelihood': 'gaussian', 'data.channels': 1})
    z = jax.jit(method.encode)(state, batch_of(4))
    images = jax.jit(method.decode)(state, 100 * z, {})
    assert (z.shape, images.shape) == ((4, 3), (4, 8, 8, 1))
    assert jnp.abs(images).max() <= 1


@pytest.mark.slow
def test_averaged_parameters_are_what_samples():
    method, state = start()
    keys = jax.random.split(jax.random.key(2), 2)
    changed = state.replace(
        net=state.net.replace(params=jax.tree.map(jnp.zeros_like, state.net.ema))
    )
    np.testing.assert_array_equal(
        method.sample_step(keys, changed, {}), method.sample_step(keys, state, {})
    )
    assert start(ema_decay=0.0)[1].net.ema is None


SHAPES = {
    'model.channels': 6,
    'model.multipliers': (1,),
    'model.hidden': 8,
    'model.latent_dim': 2,
    'vae.likelihood': 'gaussian',
    'ema_decay': 0.0,
}


@pytest.mark.parametrize('field', SHAPES)
def test_fields_that_change_the_state(field):
    assert shapes(**{field: SHAPES[field]}) != shapes()


def shapes(**changes):
    method = vae.create(small(**changes))
    return str(jax.eval_shape(method.init, jax.random.key(0), batch_of(2)))


NUMBERS = [
    ({}, {'model.dtype': 'bfloat16'}),
    ({}, {'vae.binarize': 'threshold'}),
    ({'vae.binarize': 'threshold'}, {'vae.binarize': 'stochastic'}),
    ({'vae.likelihood': 'gaussian'}, {'vae.likelihood': 'gaussian', 'vae.sigma': 0.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(('before', 'after'), NUMBERS)
def test_fields_that_change_the_numbers(before, after):
    assert elbo_of(**before) != elbo_of(**after)


def elbo_of(**changes):
    method, state = start(**changes)
    terms = method.evaluate_step(jax.random.split(jax.random.key(0), 2), state, batch_of(2))
    assert terms['elbo'].dtype == jnp.float32
    return terms['elbo'].tolist()


WRONG = [
    {'data.image_size': 6},
    {'model.multipliers': ()},
    {'model.multipliers': (1, 0)},
    {'model.latent_dim': 0},
    {'model.dtype': 'float16'},
    {'vae.likelihood': 'normal'},
    {'vae.sigma': 0.5},
    {'vae.sigma': -1.0, 'vae.likelihood': 'gaussian'},
    {'vae.binarize': 'yes'},
    {'vae.binarize': 'threshold', 'vae.likelihood': 'gaussian'},
    {'ema_decay': 1.0},
    {'sample.knobs.temperature': -1.0},
]


@pytest.mark.parametrize('changes', WRONG)
def test_a_wrong_config_is_told_in_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))) as error:
        vae.create(small(**changes))
    assert '\n' not in str(error.value)


def test_a_wrong_image_is_told():
    method, state = start()
    for call in (
        lambda batch: method.init(jax.random.key(0), batch),
        lambda batch: method.train_step(jax.random.key(0), state, batch),
        lambda batch: method.evaluate_step(jax.random.split(jax.random.key(0), 2), state, batch),
        lambda batch: method.encode(state, batch),
    ):
        with pytest.raises(UserError, match='has shape'):
            call(batch_of(2, channels=3))


@pytest.mark.slow
def test_config_of_fashion_mnist():
    get_config = runpy.run_path('configs/vae_fashion_mnist.py')['get_config']
    house.validate(get_config())
    vae.create(get_config())
    tiny = get_config('tiny')
    house.validate(tiny)
    method = vae.create(tiny)
    batch = batch_of(tiny.batch_size, tiny.data.image_size, tiny.data.channels)
    state = method.init(jax.random.key(0), batch)
    _, metrics = jax.jit(method.train_step)(jax.random.key(0), state, batch)
    assert np.isfinite(metrics['loss'])
