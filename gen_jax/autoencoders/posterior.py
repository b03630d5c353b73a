"""Gaussian posteriors q(z|x) = N(mu, diag sigma^2), and what they and their aggregate weigh.

All in nats. Densities are of float32 z; `log_var` is log sigma^2.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

LOG_2PI = math.log(2 * math.pi)


def normal(keys: jax.Array, dim: int) -> jax.Array:
    """Standard normal [n, dim], row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, (dim,)))(keys)


def drawn(keys: jax.Array, mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """A z of each posterior, [b, d] (Kingma and Welling 2014, section 2.4)."""
    return mu + jnp.exp(log_var / 2) * normal(keys, mu.shape[-1])


def kl_divergence(mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mu, diag exp(log_var)) || N(0, I)) in closed form. Kingma and Welling, appendix B.

    Args:
      mu, log_var: [..., d].

    Returns:
      [...], nats.
    """
    return -0.5 * (1 + log_var - mu**2 - jnp.exp(log_var)).sum(axis=-1)


def log_normal(z: jax.Array, mu: jax.Array, log_var: jax.Array) -> jax.Array:
    """Log N(z; mu, exp(log_var)) of each number; the three broadcast."""
    return -0.5 * (LOG_2PI + log_var + (z - mu) ** 2 * jnp.exp(-log_var))


def weighed_bound(log_weight: Callable, k: int, at_once: int | None = None) -> jax.Array:
    """The importance-weighted bound of log p(x) by k samples (Burda et al. 2016, equation 8), [b].

    Args:
      log_weight: j -> log p(x, z) - log q(z|x) [b], of sample j.
      k: at least 1.
      at_once: samples that are weighed together; None: one after the other.
    """
    log_weights = jax.lax.map(log_weight, jnp.arange(k), batch_size=at_once)  # [k, b]
    return jax.nn.logsumexp(log_weights, 0) - math.log(k)


def decomposition(
    z: jax.Array, mu: jax.Array, log_var: jax.Array, data_size: int, estimator: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three parts of the KL divergence to the prior (Chen et al. 2018, equation 2), estimated.

    Mutual information of z and the image, total correlation of z, and the dimension-wise KL. Their
    sum is log q(z|x) - log p(z), whatever the estimator.

    Args:
      z: [b, d], of the posteriors of a batch.
      mu, log_var: [b, d], of these.
      data_size: N, images of the data set that the batch was drawn from.
      estimator: of log q(z): 'weighted' or 'stratified' minibatch sampling (their appendices C.1
        and C.2).

    Returns:
      Each [b].
    """
    b = len(z)
    pairs = log_normal(z[:, None], mu[None], log_var[None])  # [z, posterior, d]
    if estimator == 'weighted':
        log_weight = jnp.full((b, b), -math.log(b * data_size))
    else:
        log_weight = _stratified(b, data_size)
    log_q = jax.nn.logsumexp(log_weight + pairs.sum(-1), 1)  # [b]
    log_marginals = jax.nn.logsumexp(log_weight[..., None] + pairs, 1).sum(-1)  # [b]
    log_posterior = log_normal(z, mu, log_var).sum(-1)
    log_prior = log_normal(z, 0.0, jnp.zeros(())).sum(-1)
    return log_posterior - log_q, log_q - log_marginals, log_marginals - log_prior


def _stratified(b: int, data_size: int) -> jax.Array:
    """Log weights [z, posterior]: of z's own, of one other that stands for those not drawn, rest.

    Of b images, b - 1 stand for the N - 1 that are not the one z is of: all but one with weight
    1 / (b - 1), the one with (N - b + 1) / (N (b - 1)), z's own with 1 / N.
    """
    others, kept = b - 1, data_size - (b - 1)
    weight = jnp.full((b, b), 1 / others)
    weight = weight.at[jnp.arange(b), jnp.arange(b)].set(1 / data_size)
    one = kept / (data_size * others)
    return jnp.log(weight.at[jnp.arange(b), (jnp.arange(b) + 1) % b].set(one))
