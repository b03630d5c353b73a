"""The variational bound of Ho et al. 2020: L = L_T + sum_t L_{t-1} + L_0 (eq. 5).

Times count from 0: t is the paper's t-1. Terms are in nats, per element of the image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from gen_jax.diffusion.samplers import normal
from gen_jax.diffusion.schedules import DiscreteProcess


def evaluate(
    predict: Callable, process: DiscreteProcess, keys: jax.Array, x_0: jax.Array, variance: str
) -> dict:
    """The bound and the simple loss, both over all T times, one draw of noise at each.

    Args:
      predict: (x_t [b, h, w, c], t int32 [b]) -> (eps_hat, x_0_hat), shaped like x_t.
      process: with all T times.
      keys: [b]; example j at time t draws from fold_in(keys[j], t).
      x_0: images of 256 levels in [-1, 1], float32 [b, h, w, c].
      variance: 'fixed_large' or 'fixed_small', as in `samplers.ancestral`.

    Returns:
      `simple_loss` [b], eq. 14 averaged over t; `vlb_bits_per_dim` [b].
    """
    scale, noise_std = jnp.float32((np.sqrt(process.alpha_bar), np.sqrt(1 - process.alpha_bar)))
    constant, weight, sigma = jnp.float32(gaussian_terms(process, variance))
    T = len(scale)

    def add_term(t, sums):
        squares, nats = sums
        eps = normal(keys, t, x_0.shape[1:])
        eps_hat, x_0_hat = predict(scale[t] * x_0 + noise_std[t] * eps, jnp.full(len(x_0), t))
        kl = constant[t] + weight[t] * (x_0 - x_0_hat) ** 2
        term = jnp.where(t == 0, -decoder_log_prob(x_0, x_0_hat, sigma[0]), kl)
        return squares + (eps - eps_hat) ** 2, nats + term

    zeros = jnp.zeros_like(x_0)
    squares, nats = jax.lax.fori_loop(0, T, add_term, (zeros, zeros))
    nats = nats + prior(process, x_0)
    return {
        'simple_loss': squares.mean((1, 2, 3)) / T,
        'vlb_bits_per_dim': nats.mean((1, 2, 3)) / np.log(2),
    }


def gaussian_terms(process: DiscreteProcess, variance: str) -> tuple[np.ndarray, ...]:
    """(constant, weight, sigma) [T]: L_{t-1} = constant_t + weight_t |x_0 - x_0_hat|^2 for t > 0.

    The KL divergence from N(mu_theta, sigma^2) to N(mu_tilde, beta_tilde), whose means (eq. 7)
    differ by c_0 (x_0 - x_0_hat). At t = 0, where beta_tilde is 0, only sigma has a meaning: that
    of the decoder, which is beta_tilde of the next time in the authors' code, for either variance.
    """
    beta_tilde = np.append(process.beta_tilde[1], process.beta_tilde[1:])
    sigma2 = np.append(beta_tilde[0], process.beta[1:])
    sigma2 = sigma2 if variance == 'fixed_large' else beta_tilde
    ratio = beta_tilde / sigma2
    c_0, _ = process.posterior_mean()
    return 0.5 * (ratio - 1 - np.log(ratio)), c_0**2 / (2 * sigma2), np.sqrt(sigma2)


def prior(process: DiscreteProcess, x_0: jax.Array) -> jax.Array:
    """L_T: the KL divergence of q(x_T | x_0) from N(0, I), float32 like x_0."""
    alpha_bar = process.alpha_bar[-1]
    constant = 0.5 * (-alpha_bar - np.log1p(-alpha_bar))
    return jnp.float32(constant) + jnp.float32(0.5 * alpha_bar) * x_0**2


def decoder_log_prob(x_0: jax.Array, mean: jax.Array, sigma: jax.Array) -> jax.Array:
    """The log of p(x_0 | x_1): what N(mean, sigma^2) puts on the bin of x_0 (eq. 13).

    Bins are 2/255 wide; those of -1 and 1 reach to infinity.
    """
    lower = (x_0 - mean - 1 / 255) / sigma
    upper = (x_0 - mean + 1 / 255) / sigma
    lower = jnp.where(x_0 < -0.999, -jnp.inf, lower)
    upper = jnp.where(x_0 > 0.999, jnp.inf, upper)
    # Both ends reflected into the left tail, where differences of the normal CDF keep their digits.
    right = lower + upper > 0
    lower, upper = jnp.where(right, -upper, lower), jnp.where(right, -lower, upper)
    log_upper = log_ndtr(upper)
    return log_upper + jnp.log1p(-jnp.exp(log_ndtr(lower) - log_upper))
