"""The variational bound of Ho et al. 2020: L = L_T + sum_t L_{t-1} + L_0 (eq. 5).

Times count from 0: t is the paper's t-1. Terms are in nats, per element of the image.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from gen_jax.diffusion.samplers import normal
from gen_jax.diffusion.schedules import DiscreteProcess


class Estimate(NamedTuple):
    """What a network says of x_t, all shaped like it.

    Attributes:
      eps: the noise.
      x_0: the image; the mean of p(x_{t-1} | x_t) is written by it (eq. 7).
      share: where that variance lies between beta_tilde (0) and beta (1), in the logarithm (Nichol
        and Dhariwal 2021, eq. 15, where it is v); None where it is not learned.
    """

    eps: jax.Array
    x_0: jax.Array
    share: jax.Array | None = None


def evaluate(
    predict: Callable, process: DiscreteProcess, keys: jax.Array, x_0: jax.Array, variance: str
) -> dict:
    """The bound and the simple loss, both over all T times, one draw of noise at each.

    Args:
      predict: (x_t [b, h, w, c], t int32 [b]) -> an `Estimate`.
      process: with all T times.
      keys: [b]; example j at time t draws from fold_in(keys[j], t).
      x_0: images of 256 levels in [-1, 1], float32 [b, h, w, c].
      variance: 'fixed_large', 'fixed_small' or 'learned_range', as in `samplers.ancestral`.

    Returns:
      `simple_loss` [b], eq. 14 averaged over t; `vlb_bits_per_dim` [b], and what it is the sum of:
      `vlb_prior_bits_per_dim` (L_T), `vlb_middle_bits_per_dim` (L_1 to L_{T-1}) and
      `vlb_decoder_bits_per_dim` (L_0).
    """
    (squares, nats), each = _walk(predict, process, keys, x_0, variance)
    last = prior(process, x_0)
    bits = {
        'vlb': (nats + last).mean((1, 2, 3)),
        'vlb_prior': last.mean((1, 2, 3)),
        'vlb_middle': each[1:].sum(0),
        'vlb_decoder': each[0],
    }
    simple = squares.mean((1, 2, 3)) / len(process.tau)
    return {'simple_loss': simple} | {
        f'{name}_bits_per_dim': nats / np.log(2) for name, nats in bits.items()
    }


def terms(
    predict: Callable, process: DiscreteProcess, keys: jax.Array, x_0: jax.Array, variance: str
) -> jax.Array:
    """L_0, L_1, .. L_T in bits per dimension, [b, T + 1]; their sum is `evaluate`'s bound.

    The arguments are those of `evaluate`.
    """
    _, each = _walk(predict, process, keys, x_0, variance)
    last = prior(process, x_0).mean((1, 2, 3))
    return jnp.concatenate([each, last[None]]).T / np.log(2)


def _walk(predict, process: DiscreteProcess, keys, x_0, variance: str) -> tuple:
    """((sum of squared errors of eps, sum of terms) as x_0, the mean of each term [T, b])."""
    scale, noise_std = jnp.float32((np.sqrt(process.alpha_bar), np.sqrt(1 - process.alpha_bar)))
    term = make_term(process, variance)

    def add_term(sums, t):
        squares, nats = sums
        eps = normal(keys, t, x_0.shape[1:])
        said: Estimate = predict(scale[t] * x_0 + noise_std[t] * eps, jnp.full(len(x_0), t))
        now = term(t, x_0, said.x_0, said.share)
        return (squares + (eps - said.eps) ** 2, nats + now), now.mean((1, 2, 3))

    zeros = jnp.zeros_like(x_0)
    return jax.lax.scan(add_term, (zeros, zeros), jnp.arange(len(scale)))


def make_term(process: DiscreteProcess, variance: str) -> Callable:
    """(t, x_0, x_0_hat, share) -> L_t, t < T, in nats, float32 [b, h, w, c] as all but t [b] or [].

    `share` is that of `Estimate`; only the variance 'learned_range' looks at it.
    """
    fixed = 'fixed_small' if variance == 'learned_range' else variance
    # Not on a device yet: where, is for who traces the term to say.
    tables = np.float32((*gaussian_terms(process, fixed), span(process)))

    def term(t, x_0, x_0_hat, share=None):
        now = jnp.asarray(tables)[:, t, None, None, None]  # [4, b or 1, 1, 1, 1]
        constant, weight, sigma, whole = now
        if variance == 'learned_range':
            above = share * whole  # log(sigma^2 / beta_tilde)
            constant = (above + jnp.expm1(-above)) / 2
            weight, sigma = weight * jnp.exp(-above), sigma * jnp.exp(above / 2)
        kl = constant + weight * (x_0 - x_0_hat) ** 2
        first = (t == 0)[..., None, None, None]
        # A branch not taken has a gradient too, which far from the image would not be finite.
        log_prob = decoder_log_prob(x_0, jnp.where(first, x_0_hat, x_0), sigma)
        return jnp.where(first, -log_prob, kl)

    return term


def span(process: DiscreteProcess) -> np.ndarray:
    """log(beta_t / beta_tilde_t), within which variances are learned, float64 [T].

    Nichol and Dhariwal 2021, eq. 15. At t = 0, where beta_tilde is 0, that of the next time stands
    for it, as in the authors' code.
    """
    return np.log(process.beta / np.append(process.beta_tilde[1], process.beta_tilde[1:]))


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
