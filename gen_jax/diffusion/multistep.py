"""Multistep samplers: one call of the network a step, and what it said in the steps before.

They solve the probability flow exactly but for what the network says (x_0 or eps), and that they
take to follow the polynomial through what it said last. The arguments and the draws are those of
gen_jax.diffusion.samplers. A sample's first steps are of lower order: nothing lies before them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion import predictions
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.samplers import follow, noise
from gen_jax.diffusion.schedules import Step, Trajectory


def dpmpp_2m(
    denoise: Callable, path: Path | Trajectory, keys: jax.Array, shape: tuple, eta: jax.Array
) -> jax.Array:
    """DPM-Solver++(2M), of second order (Lu et al. 2022b, Algorithm 2), and its SDE form.

    The first and the last step are of first order: the first has no step before it, the last leads
    to lambda = infinity.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: through the times to visit; even steps of lambda = log(alpha / sigma) suit it.
      keys: [n].
      shape: (h, w, c).
      eta: float32 [n]. 0 draws no noise after x_T; 1 is SDE-DPM-Solver++(2M) (the paper's
        appendix), between them lies k-diffusion's eta (dpmpp_2m_sde, 'midpoint').
    """
    count, eta = path.count[:, None, None, None], eta[:, None, None, None]

    def step(i, carry):
        x_t, x_0_before = carry
        now = path.at(i)
        x_0 = denoise(x_t, now.t)
        h = _log_snr_prev(now) - _log_snr(now)
        h_before = _log_snr(now) - _log_snr(path.at(i + 1))
        h_eta = jnp.where(eta > 0, eta * h, 0.0)  # not 0 infinity, in the last step
        first_order = (i == count - 1) | (i == 0)
        d = x_0 + jnp.where(first_order, 0.0, h / (2 * h_before)) * (x_0 - x_0_before)
        mean = now.noise_std_prev / now.noise_std * jnp.exp(-h_eta) * x_t
        mean -= now.scale_prev * jnp.expm1(-h - h_eta) * d
        std = now.noise_std_prev * jnp.sqrt(-jnp.expm1(-2 * h_eta))
        return mean + std * noise(keys, i, shape), x_0

    return follow(path, step, keys, shape, lambda x_T: (x_T, jnp.zeros_like(x_T)))[0]


def unipc(
    denoise: Callable, path: Path | Trajectory, keys: jax.Array, shape: tuple, order: int = 2
) -> jax.Array:
    """UniPC of x_0 with B_2(h) = e^h - 1, deterministic (Zhao et al. 2023, Algorithms 5 to 8).

    UniC corrects x_t by what the network says there, at no further call, before UniP steps on. The
    coefficients that the paper asks a linear system for are those that integrate a polynomial
    exactly; B(h) matters only where the system is not solved, and 1/2 put for its solution (UniP-2
    and UniC-1). UniP-2 alone is DPM-Solver++(2M). The last steps are of lower order, too, down to
    the first.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: through the times to visit; even steps of lambda = log(alpha / sigma) suit it.
      keys: [n], of x_T.
      shape: (h, w, c).
      order: p of UniP; with UniC the order of convergence is one more.
    """
    count = path.count[:, None, None, None]

    def step(i, carry):
        x_t, x_before, known = carry
        now, done = path.at(i), count - 1 - i
        x_0 = denoise(x_t, now.t)
        times = [_log_snr(path.at(i + k)) for k in range(order + 1)]
        said, at = (known[0], x_0, *known[1:]), (times[1], times[0], *times[2:])
        through = 1 + jnp.minimum(jnp.minimum(order, i + 2), done)
        corrected = _exponential(path.at(i + 1), x_before, said, at, through)
        x_t = jnp.where(done > 0, corrected, x_t)
        known = x_0, *known[:-1]
        through = jnp.minimum(jnp.minimum(order, i + 1), done + 1)
        return _exponential(now, x_t, known, times[:-1], through), x_t, known

    def begin(x_T):
        return x_T, x_T, order * (jnp.zeros_like(x_T),)

    return follow(path, step, keys, shape, begin)[0]


def lms(
    denoise: Callable, path: Path | Trajectory, keys: jax.Array, shape: tuple, order: int = 4
) -> jax.Array:
    """The linear multistep method of k-diffusion, deterministic.

    Adams-Bashforth for d(x / alpha) = eps d(sigma / alpha), its coefficients those of the steps as
    they are, even or not. As with k-diffusion, the last step, to 0, is no exception: where the ones
    before it are far shorter, as with hundreds of them, it magnifies rounding.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: through the times to visit.
      keys: [n], of x_T.
      shape: (h, w, c).
      order: of convergence, at most.
    """
    count = path.count[:, None, None, None]

    def step(i, carry):
        x_t, known = carry
        now = path.at(i)
        known = _eps(denoise, x_t, now), *known[:-1]
        ratios = [(level := path.at(i + k)).noise_std / level.scale for k in range(order)]
        length = now.noise_std_prev / now.scale_prev - ratios[0]
        points = [(ratio - ratios[0]) / length for ratio in ratios]
        eps = _mean(known, points, jnp.minimum(order, count - i))
        return _transfer(now, x_t, eps), known

    return follow(path, step, keys, shape, lambda x_T: (x_T, order * (jnp.zeros_like(x_T),)))[0]


def pndm(denoise: Callable, path: Path | Trajectory, keys: jax.Array, shape: tuple) -> jax.Array:
    """PNDM of second order, F-PNDM (Liu et al. 2022, Algorithm 2), deterministic.

    Three steps by the pseudo Runge-Kutta method, of four calls each, then the pseudo linear
    multistep method, whose coefficients take the steps to be even in the parameter that the path is
    spaced by. The step that ends at the image is always of the latter kind.

    Args:
      denoise: see gen_jax.diffusion.samplers.
      path: through the times to visit; a `Trajectory` has a whole number for the time between two,
        the lower one where there are two of them.
      keys: [n], of x_T.
      shape: (h, w, c).
    """
    count = path.count[:, None, None, None]

    def step(i, carry):
        x_t, known = carry
        now, done = path.at(i), count - 1 - i
        known = _eps(denoise, x_t, now), *known[:-1]
        warming = (done >= 0) & (done < 3) & (i > 0)
        eps = _mean(known, [-float(k) for k in range(4)], jnp.minimum(4, done + 1))
        warm = jax.lax.cond(
            jnp.any(warming),
            lambda: _runge_kutta(denoise, path, i, x_t, known[0]),
            lambda: eps,
        )
        return _transfer(now, x_t, jnp.where(warming, warm, eps)), known

    return follow(path, step, keys, shape, lambda x_T: (x_T, 4 * (jnp.zeros_like(x_T),)))[0]


def _runge_kutta(denoise: Callable, path, i: jax.Array, x_t: jax.Array, e_1: jax.Array):
    """The eps of the pseudo Runge-Kutta step from the i-th time (eq. 13), e_1 being that at x_t."""
    now, middle, end = path.at(i), _halfway(path, i), path.at(i - 1)
    to_middle = now._replace(scale_prev=middle.scale, noise_std_prev=middle.noise_std)
    e_2 = _eps(denoise, _transfer(to_middle, x_t, e_1), middle)
    e_3 = _eps(denoise, _transfer(to_middle, x_t, e_2), middle)
    e_4 = _eps(denoise, _transfer(now, x_t, e_3), end)
    return (e_1 + 2 * e_2 + 2 * e_3 + e_4) / 6


def _halfway(path: Path | Trajectory, i: jax.Array) -> Step:
    """A step from the time between the i-th and the one before; of interest is where it starts."""
    if isinstance(path, Path):
        return path.at(i - 0.5)
    index = (path.index[:, i] + path.index[:, i + 1]) // 2  # [n]
    return path._replace(index=jnp.stack([index, index], 1)).at(0)


def _eps(denoise: Callable, x_t: jax.Array, now: Step) -> jax.Array:
    return predictions.noise(x_t, denoise(x_t, now.t), now.scale, now.noise_std)


def _transfer(now: Step, x_t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_prev by a given eps (Liu et al. 2022, eq. 11): DDIM's step."""
    return now.scale_prev * (x_t - now.noise_std * eps) / now.scale + now.noise_std_prev * eps


def _exponential(now: Step, x_t: jax.Array, said: Sequence, at: Sequence, through: jax.Array):
    """x_prev if x_0 follows the polynomial in lambda through what was said at `at`, first now."""
    h = _log_snr_prev(now) - at[0]
    x_0 = _mean(said, [(lam - at[0]) / h for lam in at], through, h)
    return now.noise_std_prev / now.noise_std * x_t - now.scale_prev * jnp.expm1(-h) * x_0


def _log_snr(now: Step) -> jax.Array:
    """The paper's lambda, log(alpha / sigma)."""
    return jnp.log(now.scale / now.noise_std)


def _log_snr_prev(now: Step) -> jax.Array:
    """That of x_prev; infinite where it is the image."""
    return jnp.log(now.scale_prev / now.noise_std_prev)


def _mean(said: Sequence, points: Sequence, through: jax.Array, growth=0.0) -> jax.Array:
    """The mean, over a step, of the polynomial through what was said at some points of it.

    Args:
      said: arrays [n, h, w, c].
      points: where in the step each was said: 0 is its start, 1 its end; before it below 0. Each a
        number or [n, 1, 1, 1].
      through: how many of them count, from the first on, [n, 1, 1, 1].
      growth: the point theta of the step weighs exp(growth theta), [n, 1, 1, 1]. The mean of the
        line through two is its middle whatever that says, as UniPC's authors have it.

    Returns:
      [n, h, w, c].
    """
    places, masses = np.polynomial.legendre.leggauss(16)  # exact, but for the exponential
    theta = jnp.asarray((places + 1) / 2)[:, None, None, None, None]  # [m, 1, 1, 1, 1]
    # Beyond 80 all the weight is at the end; it is infinite in a step to the image.
    weight = masses[:, None, None, None, None] * jnp.exp(jnp.minimum(growth, 80.0) * (theta - 1))
    weight = weight / weight.sum(0)  # [m, n, 1, 1, 1]

    def counts(j):
        def basis(theta):
            factors = [
                jnp.where(k < through, (theta - points[k]) / (points[j] - points[k]), 1.0)
                for k in range(len(points))
                if k != j
            ]
            return jnp.prod(jnp.stack(jnp.broadcast_arrays(*factors)), 0)

        mean = jnp.sum(weight * basis(theta), 0)  # [n, 1, 1, 1]
        return jnp.where(j < through, jnp.where(through == 2, basis(0.5), mean), 0.0)

    # The weights sum to 1: what is left of that is the first's.
    return said[0] + sum(counts(j) * (said[j] - said[0]) for j in range(1, len(said)))
