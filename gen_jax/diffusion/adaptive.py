"""The probability flow ODE by diffrax's adaptive solvers (Song et al. 2021, section 4.3)."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from gen_jax.diffusion import predictions
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.samplers import normal

SOLVERS = {'tsit5': diffrax.Tsit5, 'dopri5': diffrax.Dopri5}
MOST_STEPS = 4096


def probability_flow(
    denoise: Callable,
    path: Path,
    keys: jax.Array,
    shape: tuple,
    tolerance: jax.Array,
    solver: str = 'tsit5',
) -> jax.Array:
    """As `solve`, the samples only."""
    return solve(denoise, path, keys, shape, tolerance, solver)[0]


def solve(
    denoise: Callable,
    path: Path,
    keys: jax.Array,
    shape: tuple,
    tolerance: jax.Array,
    solver: str = 'tsit5',
) -> tuple[jax.Array, jax.Array]:
    """Solves dx = x_0 dalpha + eps dsigma from t_max to t_min; x_0 is the estimate there.

    Each sample takes steps of its own. The network is called for all of them together, as often as
    the one that needs the most steps says.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: its process says from where to where; its times are not used.
      keys: [n], of x_T.
      shape: (h, w, c).
      tolerance: float32 [n]; absolute and relative error of a step, root mean square over pixels.
      solver: one of SOLVERS.

    Returns:
      x_0, float32 [n, h, w, c], NaN for a sample that has not arrived after MOST_STEPS steps, and
      how many steps each sample tried, int32 [n]: of six calls each, for both solvers.
    """
    process, method = path.process, SOLVERS[solver]()
    x_T = path.prior_std * normal(keys, 0, shape)
    t_min = jnp.full(len(keys), process.t_min, x_T.dtype)
    alone, known = _each(denoise, x_T, t_min)
    rates = jax.jacfwd(lambda t: jnp.stack([process.alpha(t), process.sigma(t)]))

    def slope(t, x, known):
        alpha_rate, sigma_rate = rates(t)
        x_0 = alone(known, x, t)
        eps = predictions.noise(x, x_0, process.alpha(t), process.sigma(t))
        return alpha_rate * x_0 + sigma_rate * eps

    def one(x_T, tolerance):
        ends = (jnp.asarray(end, x_T.dtype) for end in (process.t_max, process.t_min))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            method,
            *ends,
            dt0=None,
            y0=x_T,
            args=known,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=MOST_STEPS,
            throw=False,
        )
        arrived = solution.result == diffrax.RESULTS.successful
        return jnp.where(arrived, solution.ys[-1], jnp.nan), solution.stats['num_steps']

    x, steps = jax.vmap(one)(x_T, tolerance)
    return denoise(x, t_min), steps


def _each(denoise: Callable, x: jax.Array, t: jax.Array) -> tuple[Callable, Any]:
    """`denoise` of one sample, to be mapped over all: it is called for all at once, as always.

    It knows the conditions of all samples, and could not be mapped over one at a time.

    Args:
      denoise: (x [n, h, w, c], t [n]) -> x_0.
      x, t: such as it takes.

    Returns:
      (known, x [h, w, c], t []) -> x_0, and `known`: the arrays that `denoise` closes over. What is
      mapped inside of a loop must be told of these.
    """
    closed = eqx.filter_closure_convert(denoise, x, t)
    known, rest = eqx.partition(closed, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def alone(known, x, t):
        return x  # has the right shape, which is all that is asked of it before it is mapped

    @alone.def_vmap
    def together(n, mapped, known, x, t):
        x, t = (
            a if yes else jnp.broadcast_to(a, (n, *a.shape))
            for a, yes in zip((x, t), mapped[1:], strict=True)
        )
        return eqx.combine(known, rest)(x, t), True

    return alone, known
