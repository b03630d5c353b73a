"""What posteriors and their aggregate weigh, by Monte Carlo and by loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

from gen_jax.autoencoders.posterior import (
    _stratified,
    decomposition,
    drawn,
    kl_divergence,
    log_normal,
)


def test_kl_agrees_with_monte_carlo():
    mu, log_var = np.array([[0.7, -1.2]]), np.array([[-0.5, 0.8]])
    sigma = np.exp(log_var / 2)
    z = mu + sigma * np.random.default_rng(0).normal(size=(200_000, 2))
    q, p = scipy.stats.norm(mu, sigma), scipy.stats.norm(0, 1)
    ratios = (q.logpdf(z) - p.logpdf(z)).sum(axis=1)
    standard_error = ratios.std() / np.sqrt(len(ratios))
    ours = kl_divergence(jnp.float32(mu), jnp.float32(log_var))
    assert abs(ours[0] - ratios.mean()) < 4 * standard_error
    assert kl_divergence(jnp.zeros((1, 2)), jnp.zeros((1, 2)))[0] == 0


def posteriors(b=6, d=3):
    rng = np.random.default_rng(1)
    mu, log_var = rng.normal(size=(2, b, d))
    return mu, log_var, mu + np.exp(log_var / 2) * rng.normal(size=(b, d))


def test_log_normal_is_scipys():
    mu, log_var, z = posteriors()
    want = scipy.stats.norm.logpdf(z, mu, np.exp(log_var / 2))
    np.testing.assert_allclose(log_normal(*map(jnp.float32, (z, mu, log_var))), want, rtol=1e-5)


@pytest.mark.parametrize('estimator', ['weighted', 'stratified'])
def test_the_parts_are_what_loops_find(estimator):
    mu, log_var, z = posteriors()
    (b, d), N = z.shape, 50
    log_q, log_marginals = np.zeros(b), np.zeros(b)
    for i in range(b):
        weights = np.full(b, 1 / (b * N))
        if estimator == 'stratified':
            # z's own image, b - 2 others, and one that also stands for those that were not drawn.
            weights = np.full(b, 1 / (b - 1))
            weights[i], weights[(i + 1) % b] = 1 / N, (N - b + 1) / (N * (b - 1))
        each = scipy.stats.norm.logpdf(z[i], mu, np.exp(log_var / 2))  # [b, d]
        log_q[i] = logsumexp(each.sum(1), b=weights)
        log_marginals[i] = sum(logsumexp(each[:, j], b=weights) for j in range(d))
    log_posterior = scipy.stats.norm.logpdf(z, mu, np.exp(log_var / 2)).sum(1)
    log_prior = scipy.stats.norm.logpdf(z).sum(1)
    want = log_posterior - log_q, log_q - log_marginals, log_marginals - log_prior
    found = decomposition(*map(jnp.float32, (z, mu, log_var)), N, estimator)
    np.testing.assert_allclose(np.stack(found), np.stack(want), atol=1e-4)


def test_stratified_weights_are_one_in_sum():
    np.testing.assert_allclose(jnp.exp(_stratified(5, 40)).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(_stratified(2, 2)).sum(1), 1, rtol=1e-6)


def test_stratified_finds_the_aggregate_of_the_whole_data_set():
    """With a batch of all N images, log q(z) is the exact mean over their posteriors."""
    mu, log_var, z = posteriors(b=8)
    N = len(z)
    each = scipy.stats.norm.logpdf(z[:, None], mu, np.exp(log_var / 2)).sum(-1)
    exact = logsumexp(each, axis=1) - np.log(N)
    posterior = scipy.stats.norm.logpdf(z, mu, np.exp(log_var / 2)).sum(1)
    information = decomposition(*map(jnp.float32, (z, mu, log_var)), N, 'stratified')[0]
    # All weights but two are 1 / (N - 1) instead of 1 / N, one is 1 / (N (N - 1)).
    np.testing.assert_allclose(posterior - information, exact, atol=0.2)


def test_draws_depend_on_their_key_only():
    mu, log_var, _ = map(jnp.float32, posteriors())
    keys = jax.random.split(jax.random.key(0), len(mu))
    together = drawn(keys, mu, log_var)
    np.testing.assert_array_equal(drawn(keys[2:3], mu[2:3], log_var[2:3])[0], together[2])
    many = drawn(jax.random.split(jax.random.key(1), 40_000), mu[:1], log_var[:1])
    np.testing.assert_allclose(many.std(0), jnp.exp(log_var[0] / 2), rtol=0.02)
