"""p(x|z) by name: against SciPy, against sums over all levels, and against draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit, log_softmax, logsumexp

from gen_jax.autoencoders.likelihoods import (
    LIKELIHOODS,
    MIXTURES,
    levels_near,
    mass,
    table,
)
from gen_jax.errors import UserError

LEVELS = np.linspace(-1, 1, 256)
ALL = jnp.float32(LEVELS).reshape(256, 1, 1, 1)  # an image of one pixel for each level
BITS = [name for name, likelihood in LIKELIHOODS.items() if likelihood.bits]


def numbers_for(name, n, size, channels, seed=0, spread=1.0):
    shape = n, size, size, LIKELIHOODS[name].features(channels)
    return spread * jax.random.normal(jax.random.key(seed), shape)


def test_bernoulli_is_scipys_on_binary_images():
    rng = np.random.default_rng(0)
    x, logits = rng.integers(0, 2, (3, 4, 4, 1)), rng.normal(size=(3, 4, 4, 1)) * 3
    expected = scipy.stats.bernoulli.logpmf(x, expit(logits)).sum(axis=(1, 2, 3))
    ours = LIKELIHOODS['bernoulli'].log_prob(jnp.float32(2 * x - 1), jnp.float32(logits))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize('x', [3.0, -1.5])
def test_bernoulli_of_no_probability_is_told(x):
    with pytest.raises(UserError, match=rf'pixels from {x:g} to {x:g}: expected \[-1, 1\]'):
        LIKELIHOODS['bernoulli'].log_prob(jnp.full((1, 2, 2, 1), x), jnp.zeros((1, 2, 2, 1)))


def test_bernoulli_on_grey_levels_is_the_expectation_over_binarisations():
    """The term is linear in x: at 0.3 it is 0.3 of the value at 1 and 0.7 of that at 0."""
    logits = jnp.full((1, 2, 2, 1), 1.7)
    log_prob = LIKELIHOODS['bernoulli'].log_prob
    value = lambda level: log_prob(jnp.full_like(logits, 2 * level - 1), logits)  # noqa: E731
    np.testing.assert_allclose(value(0.3), 0.3 * value(1.0) + 0.7 * value(0.0), rtol=1e-6)


@pytest.mark.parametrize('name', ['gaussian', 'gaussian_per_pixel'])
def test_gaussian_is_scipys(name):
    rng = np.random.default_rng(0)
    x, mean, log_sigma = rng.normal(size=(3, 2, 4, 4, 2))
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_sigma)).sum(axis=(1, 2, 3))
    numbers = jnp.concatenate([jnp.float32(mean), jnp.float32(log_sigma)], -1)
    np.testing.assert_allclose(
        LIKELIHOODS[name].log_prob(jnp.float32(x), numbers), expected, rtol=1e-5
    )


@pytest.mark.parametrize('spread', [1.0, 4.0])
@pytest.mark.parametrize('name', BITS)
def test_levels_of_a_pixel_are_one_in_sum(name, spread):
    log_prob = jax.jit(LIKELIHOODS[name].log_prob)
    for seed in range(5):
        one = numbers_for(name, 1, 1, 1, seed, spread)
        found = log_prob(ALL, jnp.broadcast_to(one, (256, *one.shape[1:])))
        assert np.exp(np.float64(found)).sum() == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize('name', ['logistic', 'categorical', 'logistic_mixture'])
def test_pixels_and_channels_add_up(name):
    """Of independent pixels; channels of a mixture are told apart below."""
    channels = 1 if name == 'logistic_mixture' else 3
    numbers = numbers_for(name, 2, 3, channels)
    x = levels_near(jax.random.uniform(jax.random.key(1), (2, 3, 3, channels), minval=-1.0))
    whole, log_prob = LIKELIHOODS[name].log_prob(x, numbers), LIKELIHOODS[name].log_prob
    parts = sum(
        log_prob(x[:, i : i + 1, j : j + 1], numbers[:, i : i + 1, j : j + 1])
        for i, j in itertools.product(range(3), range(3))
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


@pytest.mark.parametrize('mean', [-1.2, 0.0, 0.3])
@pytest.mark.parametrize('log_scale', [-9.0, -7.0, -3.0, 0.0, 2.0])
def test_a_logistics_mass_is_scipys(mean, log_scale):
    """In float64, by the tail that is the smaller: also where the mass is 1e-300."""
    scale = np.exp(max(log_scale, -7.0))
    high, low = (LEVELS - mean + 1 / 255) / scale, (LEVELS - mean - 1 / 255) / scale
    low[0], high[-1] = -np.inf, np.inf
    flip = low > 0
    high, low = np.where(flip, -low, high), np.where(flip, -high, low)
    upper, lower = scipy.stats.logistic.logcdf(high), scipy.stats.logistic.logcdf(low)
    want = upper + np.log1p(-np.exp(lower - upper))
    found = mass(jnp.float32(LEVELS), jnp.float32(mean), jnp.float32(log_scale))
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-4)


def mixture_by_hand(x, numbers):
    """Of one pixel of colour, by loops over logistics and channels, float64."""
    k = MIXTURES
    log_weights, rest = log_softmax(numbers[:k]), numbers[k:].reshape(3, 3 * k)
    terms = []
    for i in range(k):
        total = log_weights[i]
        slopes = np.tanh(rest[:, 2 * k + i])
        for c in range(3):
            mean = rest[c, i]
            if c == 1:
                mean += slopes[0] * x[0]
            if c == 2:
                mean += slopes[1] * x[0] + slopes[2] * x[1]
            scale = np.exp(max(rest[c, k + i], -7.0))
            high = 1.0 if x[c] > 0.999 else expit((x[c] - mean + 1 / 255) / scale)
            low = 0.0 if x[c] < -0.999 else expit((x[c] - mean - 1 / 255) / scale)
            total += np.log(high - low)
        terms.append(total)
    return logsumexp(terms)


def test_a_mixture_of_colour_follows_the_channels_before():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(6, 1, 1, 10 * MIXTURES))
    x = LEVELS[rng.integers(0, 256, (6, 1, 1, 3))]
    x[0, 0, 0], x[1, 0, 0] = [-1, 1, -1], [1, -1, 1]
    want = [mixture_by_hand(a[0, 0], b[0, 0]) for a, b in zip(x, numbers, strict=True)]
    found = LIKELIHOODS['logistic_mixture'].log_prob(jnp.float32(x), jnp.float32(numbers))
    np.testing.assert_allclose(found, want, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', LIKELIHOODS)
def test_draws_have_the_mean_and_stay_apart(name, channels):
    """The mean of clipped tails is another: numbers are such that hardly any is clipped."""
    likelihood, n = LIKELIHOODS[name], 20_000
    one = numbers_for(name, 1, 2, channels, 3, 0.15)
    if 'logistic' in name or 'gaussian' in name:
        one = one.at[..., one.shape[-1] // 2 :].add(-2.5)
    if name == 'logistic_mixture':
        k, c = MIXTURES, channels
        rest = numbers_for(name, 1, 2, channels, 3, 0.15)[..., k:].reshape(1, 2, 2, c, -1)
        rest = rest.at[..., k : 2 * k].add(-3.5)
        one = jnp.concatenate([one[..., :k], rest.reshape(1, 2, 2, -1)], -1)
    if name == 'gaussian':  # as the module gives it, with its sigma
        one = jnp.concatenate([one, jnp.full_like(one, -2.5)], -1)
    keys = jax.random.split(jax.random.key(4), n)
    draw = jax.jit(likelihood.draw)
    x = draw(keys, jnp.broadcast_to(one, (n, *one.shape[1:])))
    assert x.shape == (n, 2, 2, channels)
    assert jnp.abs(x).max() <= 1
    error = x.std(0) / np.sqrt(n)
    assert (jnp.abs(x.mean(0) - likelihood.mean(one)[0]) < 4.5 * error + 1e-3).all()
    alone = draw(keys[7:8], one)
    np.testing.assert_allclose(alone[0], x[7], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', BITS)
def test_draws_are_as_frequent_as_they_are_probable(name):
    likelihood, n = LIKELIHOODS[name], 40_000
    one = numbers_for(name, 1, 1, 1, 5, 0.5)
    x = jax.jit(likelihood.draw)(
        jax.random.split(jax.random.key(6), n), jnp.broadcast_to(one, (n, *one.shape[1:]))
    )
    level = np.round((np.asarray(x).ravel() + 1) * 127.5).astype(int)
    found = np.bincount(level, minlength=256) / n
    log_prob = likelihood.log_prob(ALL, jnp.broadcast_to(one, (256, *one.shape[1:])))
    # Total variation of an empirical distribution of 256 outcomes: sqrt(256 / n) at most.
    assert np.abs(found - np.exp(log_prob)).sum() < np.sqrt(256 / n)


COLUMNS = 1, 3, 1, 2  # a number in channel 0, three values in 1 to 3, a number in 4, two values


def test_a_row_of_a_table_is_scipys():
    rng, likelihood = np.random.default_rng(0), table(COLUMNS)
    assert likelihood.features(7) == 9
    numbers = rng.normal(size=(5, 1, 1, 9))
    mean, log_sigma, three, two = np.split(numbers[:, 0, 0], [2, 4, 7], 1)
    x, which, other = rng.normal(size=(5, 2)), rng.integers(3, size=5), rng.integers(2, size=5)
    row = np.full((5, 7), -1.0)
    row[:, [0, 4]] = x
    row[np.arange(5), 1 + which] = row[np.arange(5), 5 + other] = 1
    want = scipy.stats.norm.logpdf(x, mean, np.exp(log_sigma)).sum(1)
    want += log_softmax(three, 1)[np.arange(5), which] + log_softmax(two, 1)[np.arange(5), other]
    ours = jax.jit(likelihood.log_prob)(jnp.float32(row)[:, None, None], jnp.float32(numbers))
    np.testing.assert_allclose(ours, want, rtol=1e-5)


@pytest.mark.parametrize('columns', [COLUMNS, (1, 1), (3,)])
def test_rows_that_are_drawn_have_the_mean(columns):
    likelihood, channels = table(columns), sum(columns)
    numbers = 0.3 * np.random.default_rng(0).normal(size=likelihood.features(channels))
    n, reals = 4000, columns.count(1)
    numbers[reals : 2 * reals] = -3  # far from where numbers are cut off
    shape = n, 1, 1, len(numbers)
    numbers = jnp.broadcast_to(jnp.float32(numbers), shape)
    rows = likelihood.draw(jax.random.split(jax.random.key(0), n), numbers)[:, 0, 0]
    assert rows.shape == (n, channels)
    error = np.std(rows, 0) / n**0.5
    assert (np.abs(rows.mean(0) - likelihood.mean(numbers)[0, 0, 0]) < 4 * error).all()
    for part, k in zip(np.split(rows, np.cumsum(columns)[:-1], 1), columns, strict=True):
        if k > 1:
            np.testing.assert_array_equal(np.sort(part, 1)[:, [0, -1]], [[-1, 1]] * n)
            np.testing.assert_array_equal(part.sum(1), 2 - k)
        else:
            np.testing.assert_allclose(part.std(), np.exp(-3), rtol=0.05)


@pytest.mark.parametrize('name', LIKELIHOODS)
def test_gradients_are_finite_far_from_the_mean(name):
    numbers = numbers_for(name, 2, 2, 1, spread=30.0)
    if name == 'gaussian':
        numbers = jnp.concatenate([numbers, jnp.zeros_like(numbers)], -1)
    elif name == 'gaussian_per_pixel':
        numbers = numbers / 10
    x = levels_near(jax.random.uniform(jax.random.key(1), (2, 2, 2, 1), minval=-1.0))
    value, gradient = jax.value_and_grad(lambda y: LIKELIHOODS[name].log_prob(x, y).sum())(numbers)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
