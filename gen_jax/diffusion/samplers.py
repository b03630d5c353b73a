"""Samplers of discrete diffusion. They know nothing of networks, parametrisations or conditions.

A sampler sees `denoise(x_t [n, h, w, c], t int32 [n]) -> x_0 [n, h, w, c]`, where guidance and
clipping live. Times count from 0. Sample j at the sampler's i-th time (i counts down to 0) draws
from fold_in(keys[j], i), and x_T from fold_in(keys[j], 0), which is free because the last step
draws none. So x_T is the same for every sampler and number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.schedules import DiscreteProcess

VARIANCES = ('fixed_large', 'fixed_small')


def normal(keys: jax.Array, i, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [n, *shape]; that of sample j depends on (keys[j], i) only."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)


def ancestral(
    denoise: Callable, process: DiscreteProcess, keys: jax.Array, shape: tuple, variance: str
) -> jax.Array:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), the mean written by x_0 as in eq. 7.

    Args:
      denoise: see above.
      process: with all T times for the paper's sampler, or seen at some (`process.at`).
      keys: [n].
      shape: (h, w, c).
      variance: sigma_t^2 is beta_t for 'fixed_large', beta_tilde_t for 'fixed_small' (section 3.2).

    Returns:
      x_0, float32 [n, h, w, c].
    """
    sigma = np.sqrt(process.beta if variance == 'fixed_large' else process.beta_tilde)
    sigma[0] = 0.0  # z = 0 in the last step (line 3)
    c_0, c_t, sigma = jnp.float32((*process.posterior_mean(), sigma))
    tau = jnp.int32(process.tau)

    def step(t, x_t):
        x_0 = denoise(x_t, jnp.full(len(keys), tau[t]))
        return c_0[t] * x_0 + c_t[t] * x_t + sigma[t] * normal(keys, t, shape)

    steps = len(tau)
    x_T = normal(keys, 0, shape)
    return jax.lax.fori_loop(0, steps, lambda i, x: step(steps - 1 - i, x), x_T)


def ddim(
    denoise: Callable, process: DiscreteProcess, keys: jax.Array, shape: tuple, eta: jax.Array
) -> jax.Array:
    """DDIM (Song et al. 2021, eq. 12 with the sigma of eq. 16).

    Args:
      denoise: see above. eps is computed back from its x_0, so that the two agree after clipping.
      process: seen at the times to visit (`process.at`).
      keys: [n].
      shape: (h, w, c).
      eta: float32 [n] in [0, 1]. 0 draws no noise after x_T; 1 with all T times is `ancestral`
        with 'fixed_small'.

    Returns:
      x_0, float32 [n, h, w, c].
    """
    alpha_bar, alpha_bar_prev = process.alpha_bar, process.alpha_bar_prev
    scale, noise_std = jnp.float32((np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)))
    scale_prev, noise_var_prev = jnp.float32((np.sqrt(alpha_bar_prev), 1 - alpha_bar_prev))
    sigma_1 = jnp.float32(np.sqrt(process.beta_tilde))  # eq. 16 at eta = 1
    tau = jnp.int32(process.tau)
    eta = eta[:, None, None, None]  # [n, 1, 1, 1]

    def step(t, x_t):
        x_0 = denoise(x_t, jnp.full(len(keys), tau[t]))
        eps = (x_t - scale[t] * x_0) / noise_std[t]
        sigma = eta * sigma_1[t]
        # Rounding may take the difference, 0 at t = 0, below 0.
        direction = jnp.sqrt(jnp.maximum(noise_var_prev[t] - sigma**2, 0.0)) * eps
        return scale_prev[t] * x_0 + direction + sigma * normal(keys, t, shape)

    steps = len(tau)
    x_T = normal(keys, 0, shape)
    return jax.lax.fori_loop(0, steps, lambda i, x: step(steps - 1 - i, x), x_T)
