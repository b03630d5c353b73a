"""Discrete noise schedules, in float64.

The papers count time from 1 to T. Here, as in the authors' code and in what the network is told,
t counts from 0 to T-1: t is the paper's t-1.
"""

from typing import NamedTuple

import numpy as np

SPACINGS = ('linear', 'quadratic')


def linear_betas(T: int, beta_min: float, beta_max: float) -> np.ndarray:
    """T values evenly spaced from beta_min to beta_max, float64 [T] (Ho et al. 2020, section 4)."""
    return np.linspace(beta_min, beta_max, T, dtype=np.float64)


def spaced_times(T: int, steps: int, spacing: str) -> np.ndarray:
    """The subsequence tau of 0 .. T-1 that a sampler visits (Song et al. 2021, appendix D.2).

    'linear': tau_i = floor(i T / steps), i = 0 .. steps-1. Where `steps` divides T, these are the
    times of the DDIM authors' code and of diffusers' 'leading'; elsewhere they still span 0 .. T.
    'quadratic': tau_i = floor(c i^2) with the last at 0.8 T, as the authors' code does for
    CIFAR-10. Many steps make the first of these coincide. A step from t to t changes nothing, so
    that such times are visited once, and there are fewer than `steps` of them.
    A single step starts at T-1.

    Args:
      T: times in all.
      steps: 1 .. T.
      spacing: one of SPACINGS.

    Returns:
      Strictly rising int64 [<= steps].
    """
    if steps == 1:
        return np.array([T - 1])
    if spacing == 'linear':
        return np.arange(steps) * T // steps
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
        """The process with these betas [T], each in (0, 1)."""
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

    def posterior_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """(c_0, c_t) [S], in the mean c_0 x_0 + c_t x_t of q(x_{t-1} | x_t, x_0) (eq. 7)."""
        c_0 = np.sqrt(self.alpha_bar_prev) * self.beta / (1 - self.alpha_bar)
        c_t = np.sqrt(1 - self.beta) * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        return c_0, c_t
