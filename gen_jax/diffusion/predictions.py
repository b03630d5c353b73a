"""What a network may be trained to say of x_t = alpha x_0 + sigma eps, and what that says of x_0.

Each is a `Prediction`, wrapped once: with it, every network meets every sampler as an estimate of
x_0. `alpha` and `sigma` broadcast against x; the names are those of `PREDICTIONS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Prediction(NamedTuple):
    """One parametrisation: how a network's output F and the image x_0 say each other.

    Attributes:
      x_0: (F, x_t, alpha, sigma) -> the image that F stands for.
      target: (x_0, eps, alpha, sigma) -> the F of the image x_0, with x_t = alpha x_0 + sigma eps.
      error: (alpha, sigma) -> how far x_0 moves when F moves by 1.
      scale: (alpha, sigma) -> what x_t is multiplied by before the network sees it.
    """

    x_0: Callable
    target: Callable
    error: Callable
    scale: Callable = lambda alpha, sigma: jnp.ones_like(sigma)


def noise(x_t: jax.Array, x_0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The eps of x_t = alpha x_0 + sigma eps; sigma > 0."""
    return (x_t - alpha * x_0) / sigma


EPS = Prediction(
    x_0=lambda f, x_t, alpha, sigma: (x_t - sigma * f) / alpha,
    target=lambda x_0, eps, alpha, sigma: eps,
    error=lambda alpha, sigma: sigma / alpha,
)
X_0 = Prediction(
    x_0=lambda f, x_t, alpha, sigma: f,
    target=lambda x_0, eps, alpha, sigma: x_0,
    error=lambda alpha, sigma: jnp.ones_like(sigma),
)
# Salimans and Ho 2022, appendix D. The denominator is 1 where variance is preserved.
V = Prediction(
    x_0=lambda f, x_t, alpha, sigma: (alpha * x_t - sigma * f) / (alpha**2 + sigma**2),
    target=lambda x_0, eps, alpha, sigma: alpha * eps - sigma * x_0,
    error=lambda alpha, sigma: sigma / (alpha**2 + sigma**2),
)
# F / sigma is the score, the gradient of log q(x_t) (Song et al. 2021, eq. 7). The authors' own
# networks end with that division, without which F would have to be as large as 1 / sigma.
SCORE = Prediction(
    x_0=lambda f, x_t, alpha, sigma: (x_t + sigma * f) / alpha,
    target=lambda x_0, eps, alpha, sigma: -eps,
    error=lambda alpha, sigma: sigma / alpha,
)
# eps - x_0, the direction of the straight path from image to noise.
VELOCITY = Prediction(
    x_0=lambda f, x_t, alpha, sigma: (x_t - sigma * f) / (alpha + sigma),
    target=lambda x_0, eps, alpha, sigma: eps - x_0,
    error=lambda alpha, sigma: sigma / (alpha + sigma),
)


def edm(sigma_data: float) -> Prediction:
    """EDM's preconditioning of a network F (Karras et al. 2022, table 1 and eq. 7).

    Written for alpha = 1; another alpha is divided out first.

    Args:
      sigma_data: standard deviation of the data; 0.5 in the paper.
    """

    def skip(noise_to_signal):
        return sigma_data**2 / (noise_to_signal**2 + sigma_data**2)

    def out(noise_to_signal):
        # Not by squares, which float32 has up to noise_to_signal = 1e19 only.
        return sigma_data * (noise_to_signal / jnp.hypot(noise_to_signal, sigma_data))

    def x_0(f, x_t, alpha, sigma):
        return skip(sigma / alpha) * x_t / alpha + out(sigma / alpha) * f

    def target(x_0, eps, alpha, sigma):
        noised = x_0 + sigma / alpha * eps
        return (x_0 - skip(sigma / alpha) * noised) / out(sigma / alpha)

    return Prediction(
        x_0,
        target,
        error=lambda alpha, sigma: out(sigma / alpha),
        scale=lambda alpha, sigma: jax.lax.rsqrt(sigma**2 + (alpha * sigma_data) ** 2),
    )


PREDICTIONS = {'eps': EPS, 'x_0': X_0, 'v': V, 'score': SCORE, 'velocity': VELOCITY}
