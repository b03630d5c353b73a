"""Discrete noise schedules: in float64, and as samplers see them, in float32 with traced steps.

The papers count time from 1 to T. Here, as in the authors' code and in what the network is told,
t counts from 0 to T-1: t is the paper's t-1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BETAS = ('linear', 'scaled_linear', 'cosine')
EVEN = ('linear', 'quadratic', 'linspace', 'trailing')  # of times, whatever the noise at these is
SPACINGS = (*EVEN, 'karras', 'log_snr')


def linear_betas(T: int, beta_min: float, beta_max: float) -> np.ndarray:
    """T values evenly spaced from beta_min to beta_max, float64 [T] (Ho et al. 2020, section 4)."""
    return np.linspace(beta_min, beta_max, T, dtype=np.float64)


def scaled_linear_betas(T: int, beta_min: float, beta_max: float) -> np.ndarray:
    """Their roots are evenly spaced, float64 [T]: as in the code of Rombach et al. 2022."""
    return linear_betas(T, beta_min**0.5, beta_max**0.5) ** 2


def cosine_betas(T: int) -> np.ndarray:
    """Those of a squared cosine as alpha_bar, at most 0.999, float64 [T].

    Nichol and Dhariwal 2021, eq. 17 with s = 0.008, and the clip of section 3.2.
    """
    s = 0.008
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """The schedule moved so that x_T is pure noise (Lin et al. 2024, Algorithm 1), float64 [T].

    sqrt(alpha_bar) is shifted to end at 0 and stretched to begin where it did. The last beta is 1:
    of x_T a network can say x_0 or v, but not what the noise leaves.
    """
    root = np.sqrt(np.cumprod(1 - betas.astype(np.float64)))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def make_betas(name: str, T: int, beta_min: float, beta_max: float) -> np.ndarray:
    """The schedule of that name, one of BETAS; 'cosine' has no ends to be told."""
    return {
        'linear': lambda: linear_betas(T, beta_min, beta_max),
        'scaled_linear': lambda: scaled_linear_betas(T, beta_min, beta_max),
        'cosine': lambda: cosine_betas(T),
    }[name]()


def spaced_times(T: int, steps: int, spacing: str) -> np.ndarray:
    """The subsequence tau of 0 .. T-1 that a sampler visits (Song et al. 2021, appendix D.2).

    'linear': tau_i = floor(i T / steps), i = 0 .. steps-1. Where `steps` divides T, these are the
    times of the DDIM authors' code and of diffusers' 'leading'; elsewhere they still span 0 .. T.
    'quadratic': tau_i = floor(c i^2) with the last at 0.8 T, as the authors' code does for
    CIFAR-10. Many steps make the first of these coincide. A step from t to t changes nothing, so
    that such times are visited once, and there are fewer than `steps` of them.
    'linspace': from 0 to T-1, both visited: the respacing of Nichol and Dhariwal 2021 (section 4),
    rounded as their code does. diffusers' 'linspace' differs by 1 where it rounds ties otherwise.
    'trailing': tau_i = round((i + 1) T / steps) - 1: the last is T-1, the first is not 0 (Lin et
    al. 2024, table 2; diffusers' 'trailing').
    A single step starts at T-1.

    Args:
      T: times in all.
      steps: 1 .. T.
      spacing: one of EVEN.

    Returns:
      Strictly rising int64 [<= steps].
    """
    if steps == 1:
        return np.array([T - 1])
    if spacing == 'linear':
        return np.arange(steps) * T // steps
    if spacing == 'linspace':
        # Summed up and not multiplied, since ties round by the sum's last digits.
        strides = np.full(steps - 1, (T - 1) / (steps - 1))
        return np.round(np.append(0.0, np.cumsum(strides))).astype(np.int64)
    if spacing == 'trailing':
        return np.round(T - np.arange(steps)[::-1] * (T / steps)).astype(np.int64) - 1
    return np.unique((np.linspace(0, np.sqrt(0.8 * T), steps) ** 2).astype(np.int64))


class DiscreteProcess(NamedTuple):
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), seen at S times (Ho et al. 2020).

    All float64 numpy [S], so that differences such as 1 - alpha_bar, 1e-4 at t = 0, keep their
    digits; round to float32 what enters the computation, after the last difference.

    Attributes:
      tau: what the network is told at each of the S times: 0 .. T-1, or a part of it.
      beta: variance added by each step (eq. 2).
      alpha_bar: product of (1 - beta) up to and with t (eq. 4).
      alpha_bar_prev: the same at t-1; 1 at the first time.
      beta_tilde: variance of q(x_{t-1} | x_t, x_0) (eq. 7); 0 at the first time.
    """

    tau: np.ndarray
    beta: np.ndarray
    alpha_bar: np.ndarray
    alpha_bar_prev: np.ndarray
    beta_tilde: np.ndarray

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> 'DiscreteProcess':
        """The process with these betas [T], each in (0, 1), of which the last may be 1."""
        return cls._from_alpha_bar(np.arange(len(betas)), np.cumprod(1 - betas.astype(np.float64)))

    @classmethod
    def _from_alpha_bar(cls, tau, alpha_bar) -> 'DiscreteProcess':
        alpha_bar_prev = np.append(1.0, alpha_bar[:-1])
        beta = 1 - alpha_bar / alpha_bar_prev
        beta_tilde = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
        return cls(tau, beta, alpha_bar, alpha_bar_prev, beta_tilde)

    def at(self, tau: np.ndarray) -> 'DiscreteProcess':
        """The same process seen at the times tau [S] only; marginals q(x_t | x_0) are unchanged."""
        return self._from_alpha_bar(self.tau[tau], self.alpha_bar[tau])

    def visited(self, steps: int, spacing: str, rho: float = 7.0) -> np.ndarray:
        """Those of its times that a sampler visits, strictly rising int64 [<= steps].

        With a spacing of EVEN `spaced_times`. 'karras' makes even steps in the root of order rho of
        sigma / alpha (Karras et al. 2022, eq. 5), 'log_snr' in its logarithm (Lu et al. 2022,
        section 3.3), and takes the times whose logarithms are nearest: diffusers' timesteps of
        DPMSolverMultistepScheduler with `use_karras_sigmas` and `use_lu_lambdas`, each once. Of
        both, sigma / alpha has to be finite. A single step starts at the last time.
        """
        T = len(self.tau)
        if spacing in EVEN or steps == 1:
            return spaced_times(T, steps, spacing)
        log_ratio = (np.log1p(-self.alpha_bar) - np.log(self.alpha_bar)) / 2
        ends = log_ratio[[0, -1]]
        if spacing == 'log_snr':
            wanted = np.linspace(*ends, steps)
        else:
            wanted = rho * np.log(np.linspace(*np.exp(ends / rho), steps))
        return np.unique(np.round(np.interp(wanted, log_ratio, np.arange(T))).astype(np.int64))

    def alpha(self, t: jax.Array) -> jax.Array:
        """What x_0 is multiplied by at the times numbered t, float32 like t."""
        return jnp.float32(np.sqrt(self.alpha_bar))[t]

    def sigma(self, t: jax.Array) -> jax.Array:
        """The noise's standard deviation at the times numbered t, float32 like t."""
        return jnp.float32(np.sqrt(1 - self.alpha_bar))[t]

    def level(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) at t [n], each [n, 1, 1, 1]."""
        return self.alpha(t)[:, None, None, None], self.sigma(t)[:, None, None, None]

    def posterior_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """(c_0, c_t) [S], in the mean c_0 x_0 + c_t x_t of q(x_{t-1} | x_t, x_0) (eq. 7)."""
        c_0 = np.sqrt(self.alpha_bar_prev) * self.beta / (1 - self.alpha_bar)
        c_t = np.sqrt(1 - self.beta) * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        return c_0, c_t


class Step(NamedTuple):
    """The step of n samples from x_t to x_prev, at the time visited next; x_0 after the first.

    All float32 [n, 1, 1, 1] but t; each sample has its own.

    Attributes:
      t: what the network is told, int32 [n].
      scale, noise_std: x_t = scale x_0 + noise_std eps (eq. 4).
      scale_prev, noise_std_prev: of x_prev, likewise; 1 and 0 where it is x_0.
      beta: variance added from x_prev to x_t (eq. 2).
    """

    t: jax.Array
    scale: jax.Array
    noise_std: jax.Array
    scale_prev: jax.Array
    noise_std_prev: jax.Array
    beta: jax.Array

    @property
    def beta_tilde(self) -> jax.Array:
        """Variance of q(x_prev | x_t, x_0) (eq. 7)."""
        return (self.noise_std_prev / self.noise_std) ** 2 * self.beta

    def learned_variance(self, share: jax.Array) -> jax.Array:
        """beta_tilde^(1 - share) beta^share (Nichol and Dhariwal 2021, eq. 15); 0 of x_0.

        Args:
          share: [n, h, w, c], 0 to 1 and, where a network says so, somewhat beyond.
        """
        more = self.noise_std_prev > 0
        log_ratio = jnp.log(jnp.where(more, self.noise_std_prev / self.noise_std, 1.0))
        return jnp.where(more, self.beta * jnp.exp(2 * (1 - share) * log_ratio), 0.0)

    def posterior_mean(self) -> tuple[jax.Array, jax.Array]:
        """(c_0, c_t), in the mean c_0 x_0 + c_t x_t of q(x_prev | x_t, x_0) (eq. 7)."""
        c_0 = self.scale_prev * self.beta / self.noise_std**2
        c_t = self.scale / self.scale_prev * (self.noise_std_prev / self.noise_std) ** 2
        return c_0, c_t


class Trajectory(NamedTuple):
    """The times that each of n samples visits, on the device: all that a sampler needs to know.

    How many these are is traced: other numbers of steps need no other program. What `at` gives is
    within 1e-6, relatively, of `process.at(process.visited(steps, spacing, rho))`.

    Attributes:
      count: times that each sample visits, int32 [n]: `steps`, or what `visited` leaves of it.
      index: int32 [n, 1 + T]: 0, which stands for the image itself, then 1 + t of the times in
        rising order. What follows after `count` of them has no meaning.
      tau: what the network is told at each index, int32 [1 + T].
      marginals: log(alpha_bar) and the rest of it that float32 loses, sqrt(alpha_bar) and
        sqrt(1 - alpha_bar), float32 [4, 1 + T].
    """

    count: jax.Array
    index: jax.Array
    tau: jax.Array
    marginals: jax.Array

    @property
    def prior_std(self) -> float:
        """Of the noise that sampling starts from."""
        return 1.0

    @classmethod
    def create(
        cls, process: DiscreteProcess, steps: jax.Array, spacing: str, rho: float = 7.0
    ) -> 'Trajectory':
        """Of the T times of a process, those that `process.visited` names.

        Args:
          process: its T times are all that there are, whatever `tau` the network is told at them.
          steps: int32 [n], each 1 .. T; traced.
          spacing: one of SPACINGS.
          rho: of 'karras'.
        """
        T = len(process.tau)
        bits = jnp.asarray(_visited(process.alpha_bar.tobytes(), spacing, rho))[steps - 1]
        visited = jnp.unpackbits(bits, axis=1, count=T).astype(bool)  # [n, T]
        index = jnp.sort(jnp.where(visited, jnp.arange(1, T + 1, dtype=jnp.int32), T), axis=1)
        alpha_bar = np.append(1.0, process.alpha_bar)
        # In two parts, since beta is told by a difference of two that agree in their first digits.
        log = np.log(np.maximum(alpha_bar, np.finfo(np.float64).tiny))
        high = np.float32(log)
        roots = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        return cls(
            visited.sum(1, dtype=jnp.int32),
            jnp.pad(index, ((0, 0), (1, 0))),
            jnp.int32(np.append(0, process.tau)),
            jnp.float32((high, log - high, *roots)),
        )

    def at(self, i: jax.Array) -> Step:
        """The step from each sample's i-th time, from 0, to the one before it; i may be [n]."""
        i = jnp.broadcast_to(i, len(self.index))[:, None]
        s, t = (jnp.take_along_axis(self.index, k, 1)[:, 0] for k in (i, i + 1))  # [n]
        high, low, scale, noise_std = self.marginals[:, t, None, None, None]
        high_prev, low_prev, scale_prev, noise_std_prev = self.marginals[:, s, None, None, None]
        beta = -jnp.expm1((high - high_prev) + (low - low_prev))
        return Step(self.tau[t], scale, noise_std, scale_prev, noise_std_prev, beta)


@functools.cache
def _visited(alpha_bar: bytes, spacing: str, rho: float) -> np.ndarray:
    """Row `steps - 1` holds a bit for each time: whether `DiscreteProcess.visited` names it.

    A table, since the times of the authors' code come from rounding in float64, which devices lack.

    Args:
      alpha_bar: float64 [T], as bytes to be remembered by.
      spacing, rho: see `Trajectory.create`.

    Returns:
      uint8 [T, ceil(T / 8)], as np.packbits has it.
    """
    T = len(alpha_bar) // 8
    process = DiscreteProcess._from_alpha_bar(np.arange(T), np.frombuffer(alpha_bar))
    visited = np.zeros((T, T), bool)
    for steps in range(1, T + 1):
        visited[steps - 1, process.visited(steps, spacing, rho)] = True
    return np.packbits(visited, axis=1)
