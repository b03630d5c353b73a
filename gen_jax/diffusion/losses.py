"""At which noise to train, how much each noise counts, and which noise goes with which image."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from optax.assignment import hungarian_algorithm

from gen_jax.diffusion.predictions import Prediction
from gen_jax.diffusion.processes import Process

WEIGHTINGS = ('simple', 'eps', 'x_0', 'edm', 'min_snr', 'likelihood')
TIMES = ('uniform', 'lognormal', 'logit_normal', 'levels')


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
      process: what t is of; all but 'likelihood' look at its alpha and sigma only.
      prediction: what the network predicts.
      gamma: of 'min_snr'.
      sigma_data: of 'edm', the data's standard deviation.
    """

    def of_x_0(alpha, sigma):
        """The root of how much x_0's squared error counts; of 'likelihood' without g(t)."""
        ratio = alpha / sigma
        return {
            'eps': lambda: ratio,
            'x_0': lambda: jnp.ones_like(ratio),
            'edm': lambda: jnp.hypot(ratio, 1 / sigma_data),
            'min_snr': lambda: jnp.minimum(ratio, math.sqrt(gamma)),
            'likelihood': lambda: ratio / sigma,
        }[name]()

    def weight(t):
        if name == 'simple':
            return jnp.ones_like(t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        # Squared last: below alpha = 1e-19 float32 has neither its square nor that of 1 / alpha.
        squared = (of_x_0(alpha, sigma) * prediction.error(alpha, sigma)) ** 2
        return process.diffusion2(t) * squared if name == 'likelihood' else squared

    return weight


def draw_times(
    name: str, process: Process, key: jax.Array, n: int, mean: float = 0.0, std: float = 1.0
) -> jax.Array:
    """The times of n training examples, float32 [n].

    Args:
      name: 'uniform' on [t_min, t_max]; 'lognormal', where log(sigma / alpha) is normal (Karras et
        al. 2022, table 1: mean -1.2, std 1.2); 'logit_normal', where log(t / (1 - t)) is, for times
        on [0, 1] (Esser et al. 2024, eq. 19); 'levels', whole times from 0 to t_max, all alike.
      process: what the times are of.
      key: of the draw.
      n: how many.
      mean, std: of the normal.
    """
    if name == 'uniform':
        return jax.random.uniform(key, n, minval=process.t_min, maxval=process.t_max)
    if name == 'levels':
        return jax.random.randint(key, n, 0, int(process.t_max) + 1).astype(jnp.float32)
    z = mean + std * jax.random.normal(key, n)
    return process.time(jnp.exp(z)) if name == 'lognormal' else jax.nn.sigmoid(z)


def no_losses(T: int, kept: int = 10) -> dict:
    """The history of `second_moment` before the first step.

    Returns:
      `losses`, the last ones at each time, float32 [T, kept]; `count`, of all there were, int32
      [T].
    """
    return {'losses': jnp.zeros((T, kept)), 'count': jnp.zeros(T, jnp.int32)}


def second_moment(history: dict, uniform: float = 0.001) -> jax.Array:
    """How likely each of T times is to be drawn, [T] (Nichol and Dhariwal 2021, eq. 18).

    In proportion to the root of the mean of its last losses, squared; a share `uniform` of all
    draws is for any time, as in the authors' code. Uniform until every time has a full history.
    The loss at a drawn time t then counts 1 / (T p_t).
    """
    T, kept = history['losses'].shape
    root = jnp.sqrt(jnp.mean(history['losses'] ** 2, 1))
    # Before the first loss their sum is 0.
    p = (1 - uniform) * root / jnp.maximum(root.sum(), jnp.finfo(root.dtype).tiny) + uniform / T
    return jnp.where(jnp.all(history['count'] >= kept), p, 1 / T)


def remember(history: dict, t: jax.Array, losses: jax.Array) -> dict:
    """The history after the losses [b] at the times t int32 [b]; of each time the last are kept."""
    T, kept = history['losses'].shape
    same = t[:, None] == t[None, :]  # [b, b]
    before, after = jnp.tril(same, -1).sum(1), jnp.triu(same, 1).sum(1)  # [b]
    place = (history['count'][t] + before) % kept
    row = jnp.where(after < kept, t, T)  # beyond the table: dropped, as more follow than are kept
    return {
        'losses': history['losses'].at[row, place].set(losses, mode='drop'),
        'count': history['count'].at[t].add(1),
    }


def optimal_pairing(x_0: jax.Array, eps: jax.Array) -> jax.Array:
    """Which noise goes to which image: the exact optimal transport between two batches.

    OT-CFM (Tong et al. 2023) trains a flow on the pairs (x_0, eps[pairing]), whose
    paths cross less than those of I-CFM, which pairs at random. Each noise is used once; the
    authors' code draws pairs of the same coupling with replacement.

    Args:
      x_0: images [b, ...].
      eps: as many noises, [b, ...].

    Returns:
      int32 [b], the permutation p with the least sum over i of |x_0[i] - eps[p[i]]|^2.
    """
    x_0, eps = (x.reshape(len(x), -1) for x in (x_0, eps))
    # What |x_0|^2 and |eps|^2 add to the cost is the same for every pairing.
    cost = -jnp.matmul(x_0, eps.T, precision='highest')
    rows, columns = hungarian_algorithm(cost)
    return jnp.zeros(len(x_0), jnp.int32).at[rows].set(columns.astype(jnp.int32))
