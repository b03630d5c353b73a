"""Processes x_t = alpha_t x_0 + sigma_t eps in continuous time, and the times a sampler visits.

Every linear Gaussian process of the field is a pair of functions of time, alpha and sigma; its
drift and diffusion follow from them. What networks say of x_t is in gen_jax.diffusion.predictions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.diffusion.schedules import Step

SPACINGS = ('linear', 'quadratic', 'trailing', 'karras', 'log_snr')


class Process(NamedTuple):
    """q(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I) for t from t_min to t_max.

    Attributes:
      alpha, sigma: float32 [...] -> float32 [...]; differentiable, sigma / alpha strictly rising.
      time: the t at which sigma / alpha is what is given; the inverse.
      t_min: the least noise that a network sees; below it is the image itself.
      t_max: the most, where x_t counts as pure noise.
      prior_std: standard deviation of that noise, from which samplers start.
    """

    alpha: Callable
    sigma: Callable
    time: Callable
    t_min: float
    t_max: float
    prior_std: float = 1.0

    def level(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at t [n], each [n, 1, 1, 1]."""
        return self.alpha(t)[:, None, None, None], self.sigma(t)[:, None, None, None]

    def drift(self, t: jax.Array) -> jax.Array:
        """f(t) of dx = f(t) x dt + g(t) dw (Song et al. 2021, eq. 5): d log(alpha) / dt."""
        return _derivative(lambda t: jnp.log(self.alpha(t)), t)

    def diffusion2(self, t: jax.Array) -> jax.Array:
        """g(t)^2: what sigma^2 gains beyond f's share, d sigma^2 / dt - 2 f(t) sigma^2."""
        gained = _derivative(lambda t: self.sigma(t) ** 2, t)
        return gained - 2 * self.drift(t) * self.sigma(t) ** 2


def _derivative(function: Callable, t: jax.Array) -> jax.Array:
    """Of an elementwise function, at each t."""
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Process:
    """Variance preserving, beta rising linearly on [0, 1] (Song et al. 2021, eq. 32-33)."""

    def log_alpha(t):
        return -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min

    def time(ratio):
        # 2 B(t) = (beta_max - beta_min) t^2 + 2 beta_min t with log(1 + ratio^2) = B(t).
        b = jnp.log1p(ratio**2)
        slope = beta_max - beta_min
        return 2 * b / (jnp.sqrt(beta_min**2 + 2 * slope * b) + beta_min)

    return Process(
        lambda t: jnp.exp(log_alpha(t)),
        lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))),
        time,
        t_min,
        1.0,
    )


def vp_cosine(s: float = 0.008, t_min: float = 1e-3, t_max: float = 0.9946) -> Process:
    """Variance preserving with a squared cosine as alpha^2 (Nichol and Dhariwal 2021, eq. 17).

    At t = 1 alpha is 0; the default t_max is that of Lu et al. 2022 (DPM-Solver, appendix D.1).
    """
    # alpha is cos(angle_0 + d) / cos(angle_0), of a d that is 0 at the image. All that float32
    # would lose in differences, such as 1 - alpha^2, is written as products.
    rate = math.pi / 2 / (1 + s)
    angle_0 = rate * s
    sin_0, cos_0 = math.sin(angle_0), math.cos(angle_0)

    def alpha(t):
        return jnp.sin(rate * (1 - t)) / cos_0

    def sigma(t):
        return jnp.sqrt(jnp.sin(rate * t) * jnp.sin(rate * t + 2 * angle_0)) / cos_0

    def time(ratio):
        root = jnp.hypot(ratio, sin_0)
        more = ratio * (ratio / (root + sin_0))  # root - sin_0
        return jnp.arctan2(cos_0 * more, cos_0**2 + root * sin_0) / rate

    return Process(alpha, sigma, time, t_min, t_max)


def vp_angle(ratio_min: float = math.exp(-10), ratio_max: float = math.exp(10)) -> Process:
    """Variance preserving, with alpha the cosine of an angle that grows evenly, on [0, 1].

    Ho and Salimans 2022, section 2, where the ends of sigma / alpha are told by their lambda, the
    log of alpha^2 / sigma^2: the defaults are the paper's 20 and -20.
    """
    # From both ends, where float32 would lose the difference of an angle and a right one.
    first, left = math.atan(ratio_min), math.atan(1 / ratio_max)
    whole = math.pi / 2 - first - left
    return Process(
        lambda t: jnp.sin(left + whole * (1 - t)),
        lambda t: jnp.sin(first + whole * t),
        lambda ratio: jnp.arctan((ratio - ratio_min) / (1 + ratio * ratio_min)) / whole,
        0.0,
        1.0,
    )


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Process:
    """The sub-VP SDE: alpha of VP, sigma = 1 - alpha^2 (Song et al. 2021, eq. 27-29)."""
    vp = vp_linear(beta_min, beta_max, t_min)

    def time(ratio):
        # 1 / alpha - alpha = ratio, and VP's own ratio at that alpha, sqrt(1 / alpha^2 - 1).
        alpha = 2 / (ratio + jnp.sqrt(ratio**2 + 4))
        return vp.time(jnp.sqrt(ratio / alpha))

    return vp._replace(sigma=lambda t: vp.sigma(t) ** 2, time=time)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> Process:
    """Variance exploding, sigma geometric on [0, 1] (Song et al. 2021, eq. 30-31)."""
    growth = jnp.log(sigma_max / sigma_min)
    return Process(
        jnp.ones_like,
        lambda t: sigma_min * jnp.exp(t * growth),
        lambda ratio: jnp.log(ratio / sigma_min) / growth,
        t_min,
        1.0,
        sigma_max,
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """Time is sigma itself (Karras et al. 2022, table 1)."""
    return Process(jnp.ones_like, lambda t: t, lambda ratio: ratio, sigma_min, sigma_max, sigma_max)


def flow(t_min: float = 1e-3) -> Process:
    """The straight path of rectified flow and flow matching (Liu et al. 2023; Lipman et al. 2023).

    Here t = 0 is the image and t = 1 the noise, as for all other processes; papers of flows often
    count the other way. x_1 is pure noise: sigma / alpha is infinite there.
    """
    return Process(
        lambda t: 1 - t,
        lambda t: t,
        lambda ratio: jnp.where(jnp.isinf(ratio), 1.0, ratio / (1 + ratio)),
        t_min,
        1.0,
    )


class Path(NamedTuple):
    """The times that each of n samples visits, as `schedules.Trajectory` is for discrete time.

    Attributes:
      process: whose times they are.
      count: how many each sample visits, int32 [n], traced.
      spacing: one of SPACINGS: even steps in t ('linear'), in its root ('quadratic'), in t down to
        the image at 0 ('trailing'), in the root of order rho of sigma / alpha ('karras'; Karras et
        al. 2022, eq. 5), in its logarithm ('log_snr'; Lu et al. 2022, section 3.3).
      rho: of 'karras', at least 1.
    """

    process: Process
    count: jax.Array
    spacing: str
    rho: float = 7.0

    @property
    def prior_std(self) -> float:
        """Of the noise that sampling starts from."""
        return self.process.prior_std

    def time(self, k: jax.Array) -> jax.Array:
        """The k-th time of each sample, k = 1 .. count in rising order, [n]; one only: t_max."""
        low, high = self.process.t_min, self.process.t_max
        if self.spacing == 'trailing':
            return k / self.count * high
        last = jnp.maximum(self.count - 1, 1)
        u = jnp.where(self.count == 1, 1.0, (k - 1) / last)  # 0 at t_min, 1 at t_max
        if self.spacing == 'linear':
            return low + u * (high - low)
        if self.spacing == 'quadratic':
            return (low**0.5 + u * (high**0.5 - low**0.5)) ** 2
        ratio = self.process.sigma(jnp.float32((low, high))) / self.process.alpha(
            jnp.float32((low, high))
        )
        if self.spacing == 'log_snr':
            return self.process.time(jnp.exp(_between(jnp.log(ratio), u)))
        return self.process.time(_between(ratio ** (1 / self.rho), u) ** self.rho)

    def at(self, i: jax.Array) -> Step:
        """The step from each sample's i-th time, from 0, to the one before it; i may be [n]."""
        process, last = self.process, i == 0
        t, t_prev = self.time(i + 1), self.time(i)
        alpha, sigma = process.alpha(t), process.sigma(t)
        alpha_prev = jnp.where(last, 1.0, process.alpha(t_prev))
        sigma_prev = jnp.where(last, 0.0, process.sigma(t_prev))
        carried = alpha / alpha_prev * sigma_prev
        beta = (sigma - carried) * (sigma + carried)
        each = (x[:, None, None, None] for x in (alpha, sigma, alpha_prev, sigma_prev, beta))
        return Step(t, *each)


def _between(ends: jax.Array, u: jax.Array) -> jax.Array:
    return ends[0] + u * (ends[1] - ends[0])
