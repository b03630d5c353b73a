"""At which noise to train, and how much each noise counts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.predictions import Prediction
from gen_jax.diffusion.processes import Process

WEIGHTINGS = ('simple', 'eps', 'x_0', 'edm', 'min_snr', 'likelihood')
TIMES = ('uniform', 'lognormal', 'logit_normal')


def weighting(
    name: str, process: Process, prediction: Prediction, gamma: float = 5.0, sigma_data: float = 0.5
) -> Callable:
    """The weight, by t, of |F - target|^2, F being the network's output.

    All but 'simple' are defined by how much they count the squared error of x_0, so that they mean
    the same for every prediction:

    'simple': nothing; the squared error of F itself counts the same at each t.
    'eps': alpha^2 / sigma^2, the squared error of the noise (Ho et al. 2020, eq. 14), which is also
      denoising score matching weighted by sigma^2 (Song and Ermon 2019, section 4.2).
    'x_0': 1.
    'edm': (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1), with
      sigma / alpha for sigma.
    'min_snr': min(alpha^2 / sigma^2, gamma) (Hang et al. 2023, section 3.4).
    'likelihood': g(t)^2 alpha^2 / sigma^4, the score's error weighted by g^2: with t uniform, twice
      the bound on the likelihood (Song et al. 2021, Maximum Likelihood Training, eq. 7).

    Args:
      name: one of WEIGHTINGS.
      process: what t is of.
      prediction: what the network predicts.
      gamma: of 'min_snr'.
      sigma_data: of 'edm', the data's standard deviation.
    """

    def of_x_0(t, alpha, sigma):
        snr = (alpha / sigma) ** 2
        return {
            'eps': lambda: snr,
            'x_0': lambda: jnp.ones_like(t),
            'edm': lambda: snr + 1 / sigma_data**2,
            'min_snr': lambda: jnp.minimum(snr, gamma),
            'likelihood': lambda: process.diffusion2(t) * snr / sigma**2,
        }[name]()

    def weight(t):
        if name == 'simple':
            return jnp.ones_like(t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        return of_x_0(t, alpha, sigma) * prediction.error(alpha, sigma) ** 2

    return weight


def draw_times(
    name: str, process: Process, key: jax.Array, n: int, mean: float = 0.0, std: float = 1.0
) -> jax.Array:
    """The times of n training examples, float32 [n].

    Args:
      name: 'uniform' on [t_min, t_max]; 'lognormal', where log(sigma / alpha) is normal (Karras et
        al. 2022, table 1: mean -1.2, std 1.2); 'logit_normal', where log(t / (1 - t)) is, for times
        on [0, 1] (Esser et al. 2024, eq. 19).
      process: what the times are of.
      key: of the draw.
      n: how many.
      mean, std: of the normal.
    """
    if name == 'uniform':
        return jax.random.uniform(key, n, minval=process.t_min, maxval=process.t_max)
    z = mean + std * jax.random.normal(key, n)
    return process.time(jnp.exp(z)) if name == 'lognormal' else jax.nn.sigmoid(z)
