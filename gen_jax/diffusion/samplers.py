"""Samplers of discrete diffusion. They know nothing of networks, parametrisations or conditions.

A sampler sees `denoise(x_t [n, h, w, c], t int32 [n]) -> x_0 [n, h, w, c]`, where guidance and
clipping live, and the `Trajectory` of times that each sample visits. Sample j at its i-th time (i
counts down to 0) draws from fold_in(keys[j], i), and x_T from fold_in(keys[j], 0), which is free
because the last step draws none. So x_T is the same for every sampler and number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.schedules import Step, Trajectory

VARIANCES = ('fixed_large', 'fixed_small')


def normal(keys: jax.Array, i, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [n, *shape]; that of sample j depends on (keys[j], i) only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)


def ancestral(
    denoise: Callable, trajectory: Trajectory, keys: jax.Array, shape: tuple, variance: str
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), the mean written by x_0 as in eq. 7.

    Args:
      denoise: see above.
      trajectory: through all T times for the paper's sampler, or through some.
      keys: [n].
      shape: (h, w, c).
      variance: sigma_t^2 is beta_t for 'fixed_large', beta_tilde_t for 'fixed_small' (section 3.2).

    Returns:
      x_0, float32 [n, h, w, c].
    """

    def step(now: Step, x_t, z):
        c_0, c_t = now.posterior_mean()
        sigma = jnp.sqrt(now.beta if variance == 'fixed_large' else now.beta_tilde)
        return c_0 * denoise(x_t, now.t) + c_t * x_t + sigma * z

    return _follow(trajectory, step, keys, shape)


def ddim(
    denoise: Callable, trajectory: Trajectory, keys: jax.Array, shape: tuple, eta: jax.Array
) -> jax.Array:
    """DDIM (Song et al. 2021, eq. 12 with the sigma of eq. 16).

    Args:
      denoise: see above. eps is computed back from its x_0, so that the two agree after clipping.
      trajectory: through the times to visit.
      keys: [n].
      shape: (h, w, c).
      eta: float32 [n] in [0, 1]. 0 draws no noise after x_T; 1 with all T times is `ancestral`
        with 'fixed_small'.

    Returns:
      x_0, float32 [n, h, w, c].
    """
    eta = eta[:, None, None, None]  # [n, 1, 1, 1]

    def step(now: Step, x_t, z):
        x_0 = denoise(x_t, now.t)
        eps = (x_t - now.scale * x_0) / now.noise_std
        sigma = eta * jnp.sqrt(now.beta_tilde)
        # Rounding may take the difference, 0 in the last step, below 0.
        direction = jnp.sqrt(jnp.maximum(now.noise_std_prev**2 - sigma**2, 0.0)) * eps
        return now.scale_prev * x_0 + direction + sigma * z

    return _follow(trajectory, step, keys, shape)


def _follow(trajectory: Trajectory, step: Callable, keys: jax.Array, shape: tuple) -> jax.Array:
    """x_0 by `step(Step, x_t, z) -> x_prev` from x_T on, z being normal, and 0 in the last step.

    The samples count down together and finish together: those that visit fewer times than others
    keep their x_T until their first.
    """
    count = trajectory.count[:, None, None, None]
    most = jnp.max(count)

    def body(k, x_t):
        i = most - 1 - k
        z = jnp.where(i > 0, normal(keys, i, shape), 0.0)
        return jnp.where(i < count, step(trajectory.at(i), x_t, z), x_t)

    return jax.lax.fori_loop(0, most, body, trajectory.prior_std * normal(keys, 0, shape))
