"""The probability-flow ODE by diffrax's adaptive solvers (Song et al. 2021, section 4.3).

Each example takes steps of its own, which do not depend on the others; the network is called for
all of them at once, as often as the one that needs the most steps says.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax.diffusion import predictions
from gen_jax.diffusion.processes import Path, Process
from gen_jax.diffusion.samplers import normal

# Both of fifth order, six slopes a step; diffrax's names.
SOLVERS = {'tsit5': 'Tsit5', 'dopri5': 'Dopri5'}
MOST_STEPS = 4096
# Of float32. Of the mixture in tests/diffusion/test_solvers.py less makes more steps, and images no
# better (5 times as many at 1e-10) until at 1e-12 none arrives.
LEAST_TOLERANCE = 1e-7


def velocity(denoise: Callable, process: Process, t: jax.Array, x: jax.Array) -> jax.Array:
    """dx/dt = alpha' x_0 + sigma' eps, [b, h, w, c].

    f(t) x - g(t)^2 score / 2 (Song et al. 2021, eq. 13) in a form without 1 / alpha, as alpha is 0
    at the end of a flow.

    Args:
      denoise: (x [b, h, w, c], t [b]) -> x_0.
      process: whose t that is.
      t: [b].
      x: [b, h, w, c].
    """
    levels = (jax.jvp(level, (t,), (jnp.ones_like(t),)) for level in (process.alpha, process.sigma))
    (alpha, alpha_rate), (sigma, sigma_rate) = (
        (level[:, None, None, None], rate[:, None, None, None]) for level, rate in levels
    )
    x_0 = denoise(x, t)
    return alpha_rate * x_0 + sigma_rate * predictions.noise(x, x_0, alpha, sigma)


def sample(
    denoise: Callable,
    path: Path,
    keys: jax.Array,
    shape: tuple,
    tolerance: jax.Array,
    solver: str = 'tsit5',
) -> tuple[jax.Array, jax.Array]:
    """Samples by the ODE from t_max to t_min; x_0 is the estimate there.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: whose process says from where to where; its times are not used.
      keys: [n], of x_T.
      shape: (h, w, c).
      tolerance: float32 [n]; absolute and relative error of a step, root mean square over pixels.
      solver: one of SOLVERS.

    Returns:
      x_0, float32 [n, h, w, c], NaN for a sample that has not arrived after MOST_STEPS steps, and
      how many steps each sample tried, int32 [n]: see `calls`.
    """
    process = path.process
    x_T = path.prior_std * normal(keys, 0, shape)

    def slopes(t, x, _):
        return velocity(denoise, process, t, x)

    ends = process.t_max, process.t_min
    x, steps = solve(slopes, *ends, x_T, None, (tolerance, tolerance), solver)
    return denoise(x, jnp.full(len(keys), process.t_min, x.dtype)), steps


def calls(steps: int) -> int:
    """Calls of the network by `sample`, by either solver, where the slowest sample tries `steps`.

    One for the first slope, six a step, whose last is the first of the next, and one for x_0.
    """
    return 6 * steps + 2


def solve(
    slopes: Callable,
    begin: float,
    end: float,
    start: Any,
    args: Any,
    tolerance: tuple[jax.Array | float, jax.Array | float],
    solver: str,
) -> tuple[Any, jax.Array]:
    """A state carried from time `begin` to `end`.

    Args:
      slopes: (t [b], state, args) -> a slope for each number of the state.
      begin, end: either may be the larger.
      start: the state, arrays with leading axis b.
      args: more of them, which stay as they are; may be None.
      tolerance: relative and absolute, of each step's error in the root mean square over an
        example's numbers; traced, each a number or [b].
      solver: one of SOLVERS.

    Returns:
      The state, NaN for an example that has not arrived after MOST_STEPS steps, and how many steps
      each tried, int32 [b].
    """
    import diffrax  # here, as it takes half as long as JAX and most commands do without

    first = jax.tree.leaves(start)[0]
    alone = _alone(slopes, start, args, jnp.zeros(len(first), first.dtype))
    ends = jnp.asarray(begin, first.dtype), jnp.asarray(end, first.dtype)

    def one(start, args, rtol, atol):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(alone),
            getattr(diffrax, SOLVERS[solver])(),
            *ends,
            # A guess, made smaller or larger at once; diffrax's own is 0.01 on any scale of time.
            dt0=1e-3 * (ends[1] - ends[0]),
            y0=start,
            args=args,
            stepsize_controller=diffrax.PIDController(rtol, atol),
            # Nothing is differentiated, and of all its loops this is the plain one.
            adjoint=diffrax.ForwardMode(),
            max_steps=MOST_STEPS,
            throw=False,
        )
        done = solution.result == diffrax.RESULTS.successful
        last = jax.tree.map(lambda y: jnp.where(done, y[-1], jnp.nan), solution.ys)
        return last, solution.stats['num_steps']

    rtol, atol = (jnp.broadcast_to(jnp.asarray(x, first.dtype), len(first)) for x in tolerance)
    return jax.vmap(one)(start, args, rtol, atol)


def _alone(slopes, start, args, t):
    """`slopes` as a function of one example that `jax.vmap` calls for all examples at once.

    `denoise` knows the conditions of all examples, and could not be mapped over one at a time.
    """
    import equinox as eqx

    # The arrays that it closes over become operands: the rule runs where those of a jit around all
    # this cannot be reached any more.
    closed = eqx.filter_closure_convert(slopes, t, start, args)
    arrays, rest = eqx.partition(closed, eqx.is_array)

    @jax.custom_batching.custom_vmap
    def alone(arrays, t, state, args):
        return state  # shaped like its slope; only the rule is ever run

    @alone.def_vmap
    def together(n, mapped, arrays, *each):
        each = jax.tree.map(
            lambda x, yes: x if yes else jnp.broadcast_to(x, (n, *x.shape)), each, tuple(mapped[1:])
        )
        result = eqx.combine(arrays, rest)(*each)
        return result, jax.tree.map(lambda _: True, result)

    return partial(alone, arrays)
