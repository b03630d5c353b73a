"""Samplers. They know nothing of networks, parametrisations or conditions.

A sampler sees `denoise(x_t [n, h, w, c], t [n]) -> x_0 [n, h, w, c]`, where guidance and clipping
live, and the times that each sample visits: a `schedules.Trajectory` through discrete time or a
`processes.Path` through continuous time. Sample j at its i-th time (i counts down to 0) draws from
fold_in(keys[j], i), and x_T from fold_in(keys[j], 0), which is free because the last step draws
none. So x_T is the same for every sampler and number of steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import Step, Trajectory

VARIANCES = ('fixed_large', 'fixed_small')


def normal(keys: jax.Array, i, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [n, *shape]; that of sample j depends on (keys[j], i) only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)


def ancestral(
    denoise: Callable,
    trajectory: Path | Trajectory,
    keys: jax.Array,
    shape: tuple,
    variance: str,
    share: float | None = None,
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), the mean written by x_0 as in eq. 7.

    Args:
      denoise: see above; for 'learned_range', it gives (x_0, share), both [n, h, w, c].
      trajectory: through all T times for the paper's sampler, or through some.
      keys: [n].
      shape: (h, w, c).
      variance: sigma_t^2 is beta_t for 'fixed_large', beta_tilde_t for 'fixed_small' (section 3.2);
        for 'learned_range' it lies between them as `denoise`'s share says
        (`Step.learned_variance`), for 'between' as `share` does (Ho and Salimans 2022, their v).
      share: 0 for beta_tilde_t to 1 for beta_t, on the logarithm.

    Returns:
      x_0, float32 [n, h, w, c].
    """

    def step(i, x_t):
        now: Step = trajectory.at(i)
        c_0, c_t = now.posterior_mean()
        if variance == 'learned_range':
            x_0, learned = denoise(x_t, now.t)
            sigma = jnp.sqrt(now.learned_variance(learned))
        else:
            x_0 = denoise(x_t, now.t)
            fixed = {'fixed_large': now.beta, 'fixed_small': now.beta_tilde}
            if variance == 'between':
                fixed[variance] = now.learned_variance(share)
            sigma = jnp.sqrt(fixed[variance])
        return c_0 * x_0 + c_t * x_t + sigma * noise(keys, i, shape)

    return follow(trajectory, step, keys, shape)


def ddim(
    denoise: Callable, trajectory: Path | Trajectory, keys: jax.Array, shape: tuple, eta: jax.Array
) -> jax.Array:
    """DDIM (Song et al. 2021, eq. 12 with the sigma of eq. 16).

    With alpha divided out this is Euler's method in sigma / alpha, and with eta, which means the
    same there, k-diffusion's Euler ancestral.

    Args:
      denoise: see above.
      trajectory: through the times to visit.
      keys: [n].
      shape: (h, w, c).
      eta: float32 [n] in [0, 1]. 0 draws no noise after x_T; 1 with all T times is `ancestral`
        with 'fixed_small'.

    Returns:
      x_0, float32 [n, h, w, c].
    """

    def step(i, x_t):
        return ddim_step(denoise, trajectory.at(i), x_t, eta, noise(keys, i, shape))

    return follow(trajectory, step, keys, shape)


def ddim_step(
    denoise: Callable, now: Step, x_t: jax.Array, eta: jax.Array, z: jax.Array
) -> jax.Array:
    """From x_t to x_prev (Song et al. 2021, eq. 12 with the sigma of eq. 16).

    Args:
      denoise: see above. eps is computed back from its x_0, so that the two agree after clipping.
      now: the step.
      x_t: [n, h, w, c].
      eta: [n], 0 to 1; 1 is ancestral sampling with variance beta_tilde.
      z: standard normal like x_t, 0 in the last step.
    """
    x_0 = denoise(x_t, now.t)
    eps = (x_t - now.scale * x_0) / now.noise_std
    sigma = eta[:, None, None, None] * jnp.sqrt(now.beta_tilde)
    # Rounding may take the difference, 0 in the last step, below 0.
    direction = jnp.sqrt(jnp.maximum(now.noise_std_prev**2 - sigma**2, 0.0)) * eps
    return now.scale_prev * x_0 + direction + sigma * z


def heun(
    denoise: Callable,
    path: Path | Trajectory,
    keys: jax.Array,
    shape: tuple,
    churn: 'Churn | None' = None,
) -> jax.Array:
    """Heun's method, with churn the stochastic sampler of Karras et al. 2022 (Algorithms 1 and 2).

    The ODE is dx = x_0 dalpha + eps dsigma, by the trapezoidal rule over each step: for alpha = 1
    the paper's, for a flow Heun's method in t. It calls the network twice a step, and once in the
    last.

    Args:
      denoise: see above.
      path: through the times to visit.
      keys: [n]; churn at the i-th time draws from fold_in(keys[j], i + 1).
      shape: (h, w, c).
      churn: None: none, which is Algorithm 1. Only a `Path` has times to raise the noise to.
    """

    def step(i, x_t):
        now: Step = path.at(i)
        x_t, t, alpha, sigma = (x_t, now.t, now.scale, now.noise_std)
        if churn is not None:
            z = normal(keys, i + 1, shape)
            x_t, t, alpha, sigma = churn.raised(path, now, x_t, z)
        x_0 = denoise(x_t, t)
        eps = (x_t - alpha * x_0) / sigma
        x_prev = now.scale_prev * x_0 + now.noise_std_prev * eps

        def corrected():
            x_0_prev = denoise(x_prev, path.at(i - 1).t)
            eps_prev = (x_prev - now.scale_prev * x_0_prev) / now.noise_std_prev
            by_alpha = (now.scale_prev - alpha) * (x_0 + x_0_prev)
            return x_t + (by_alpha + (now.noise_std_prev - sigma) * (eps + eps_prev)) / 2

        return jax.lax.cond(i > 0, corrected, lambda: x_prev)

    return follow(path, step, keys, shape)


class Churn(NamedTuple):
    """Noise added before each step (Karras et al. 2022, Algorithm 2), in their units, alpha = 1.

    Attributes:
      churn: S_churn: gamma is that over the number of steps, at most sqrt(2) - 1.
      low, high: S_min, S_max: gamma is 0 outside of low <= sigma / alpha <= high.
      noise: S_noise: the standard deviation of what is added, in multiples of what gamma says.
    """

    churn: jax.Array
    low: float = 0.0
    high: float = float('inf')
    noise: float = 1.0

    def raised(self, path: Path, now: Step, x_t: jax.Array, z: jax.Array) -> tuple:
        """(x, t, alpha, sigma) at the higher noise sigma (1 + gamma)."""
        ratio = now.noise_std / now.scale
        gamma = jnp.minimum(self.churn / path.count, 2**0.5 - 1)[:, None, None, None]
        # Where the ratio is infinite no noise can be added.
        inside = (self.low <= ratio) & (ratio <= self.high) & jnp.isfinite(ratio) & (gamma > 0)
        higher = jnp.where(inside, ratio * (1 + gamma), ratio)
        t = jnp.where(inside, path.process.time(higher), now.t[:, None, None, None])
        alpha = jnp.where(inside, path.process.alpha(t), now.scale)
        sigma = jnp.where(inside, alpha * higher, now.noise_std)
        more = self.noise * jnp.sqrt(jnp.where(inside, higher**2 - ratio**2, 0.0)) * z
        x = jnp.where(inside, alpha * (x_t / now.scale + more), x_t)
        return x, t[:, 0, 0, 0], alpha, sigma


def noise(keys: jax.Array, i: jax.Array, shape: tuple) -> jax.Array:
    """Normal, and 0 in the last step, which ends at the image."""
    return jnp.where(i > 0, normal(keys, i, shape), 0.0)


def follow(
    trajectory: Path | Trajectory,
    step: Callable,
    keys: jax.Array,
    shape: tuple,
    begin: Callable = lambda x_T: x_T,
):
    """x_0 by `step(i, x_t) -> x_prev` from x_T on; with `begin`, x_t and what a step remembers.

    The samples count down together and finish together: those that visit fewer times than others
    keep their x_T until their first.
    """
    count = trajectory.count[:, None, None, None]
    most = jnp.max(count)

    def body(k, carry):
        i = most - 1 - k
        return jax.tree.map(lambda new, old: jnp.where(i < count, new, old), step(i, carry), carry)

    x_T = trajectory.prior_std * normal(keys, 0, shape)
    return jax.lax.fori_loop(0, most, body, begin(x_T))
