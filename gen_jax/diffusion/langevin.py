"""Samplers that run Langevin dynamics at each noise level. As slow as they are old.

The arguments are those of gen_jax.diffusion.samplers. The m-th Langevin step at the i-th time,
m = 1, 2, ..., draws from fold_in(keys[j], i + 65536 m), which no other draw uses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.samplers import follow, noise, normal
from gen_jax.diffusion.schedules import Step, Trajectory


def predictor_corrector(
    denoise: Callable,
    path: Path | Trajectory,
    keys: jax.Array,
    shape: tuple,
    snr: jax.Array,
    corrections: int = 1,
) -> jax.Array:
    """Predictor-corrector sampling (Song et al. 2021, Algorithms 1 to 5).

    At each time Langevin dynamics corrects x_t, and the reverse diffusion predictor (eq. 46) leads
    to x_prev; without noise in the last step, which ends at x_0 itself where alpha = 1. In the
    authors' code the correctors' step sizes depend on norms averaged over the batch; here each
    sample has its own, so that it does not depend on its neighbours. The discrete f and G are those
    of the times visited.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: through the times to visit; sigma / alpha is finite at all of them.
      keys: [n].
      shape: (h, w, c).
      snr: float32 [n], r of Algorithms 4 and 5; 0 corrects nothing.
      corrections: Langevin steps at each time, M.

    Returns:
      x_0, float32 [n, h, w, c].
    """
    snr = snr[:, None, None, None]

    def step(i, x_t):
        now: Step = path.at(i)
        root = now.scale / now.scale_prev  # sqrt(1 - beta) of DDPM

        def correct(m, x_t):
            score, z = _score(denoise, x_t, now), _langevin_noise(keys, i, m, shape)
            length = _norm(score)
            ratio = jnp.where(length > 0, _norm(z) / length, 0.0)  # no score, no step
            epsilon = 2 * (root * snr * ratio) ** 2
            return x_t + epsilon * score + jnp.sqrt(2 * epsilon) * z

        x_t = jax.lax.fori_loop(1, corrections + 1, correct, x_t)
        mean = (2 - root) * x_t + now.beta * _score(denoise, x_t, now)
        return mean + jnp.sqrt(now.beta) * noise(keys, i, shape)

    return follow(path, step, keys, shape)


def annealed_langevin(
    denoise: Callable,
    path: Path | Trajectory,
    keys: jax.Array,
    shape: tuple,
    snr: jax.Array,
    corrections: int = 100,
) -> jax.Array:
    """Annealed Langevin dynamics (Song and Ermon 2019, Algorithm 1), of x_t / alpha.

    It ends with the estimate of x_0 at the least noise (Jolicoeur-Martineau et al. 2021,
    as NCSNv2's code can), without which that noise stays in the image.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: the noise ladder; even steps of log(sigma / alpha) are the paper's.
      keys: [n].
      shape: (h, w, c).
      snr: float32 [n]; the paper's step size alpha_i is (2 snr sigma_i)^2, so that its epsilon is
        (2 snr)^2 times the least variance: 0.22 for its 2e-5 and sigma_L = 0.01. Song and Ermon
        2020 write alpha_i for half of that (2 snr^2 sigma_i^2, as the authors' code has it for
        both papers): sqrt(epsilon / 2) / sigma_L, 0.176 for their 6.2e-6.
      corrections: Langevin steps at each noise, T in the paper.

    Returns:
      x_0, float32 [n, h, w, c].
    """
    snr = snr[:, None, None, None]

    def step(i, x_t):
        now: Step = path.at(i)
        alpha = (2 * snr * now.noise_std) ** 2  # of x_t: alpha_i of x_t / scale, times scale^2

        def walk(m, x_t):
            z = _langevin_noise(keys, i, m, shape)
            return x_t + alpha / 2 * _score(denoise, x_t, now) + jnp.sqrt(alpha) * z

        x_t = jax.lax.fori_loop(1, corrections + 1, walk, x_t)
        cooler = now.scale_prev / now.scale * x_t
        return jax.lax.cond(i > 0, lambda: cooler, lambda: denoise(x_t, now.t))

    return follow(path, step, keys, shape)


def _score(denoise: Callable, x_t: jax.Array, now: Step) -> jax.Array:
    """The gradient of log q(x_t), by Tweedie's formula."""
    return (now.scale * denoise(x_t, now.t) - x_t) / now.noise_std**2


def _langevin_noise(keys: jax.Array, i: jax.Array, m: jax.Array, shape: tuple) -> jax.Array:
    return normal(keys, i + 65536 * m, shape)


def _norm(x: jax.Array) -> jax.Array:
    """Of each sample, [n, h, w, c] -> [n, 1, 1, 1]."""
    return jnp.sqrt(jnp.sum(x**2, (1, 2, 3), keepdims=True))
