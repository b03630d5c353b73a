"""A problem that samplers of both sides solve: a random network, noise levels, and what is drawn.

In float64, of nothing but numpy, so that the golden outputs need no other library.
"""

import numpy as np
from golden import filled

N, SHAPE, STEPS = 3, (4, 4, 1), 9
WEIGHTS = {'first.weight': (24, 16), 'noise.weight': (24,), 'last.weight': (16, 24)}
CHURN = {'churn': 4.0, 'low': 0.05, 'high': 50.0, 'noise': 1.003}


def network(xp):
    """(x [n, 4, 4, 1], sigma) -> estimate of x - sigma eps, by numpy, torch or jax.numpy (`xp`)."""
    first, noise, last = (xp.asarray(w.astype(np.float64)) for w in filled(WEIGHTS).values())

    def denoise(x, sigma):
        flat, sigma = x.reshape(-1, 16), xp.reshape(sigma, (-1, 1))
        variance = sigma**2 + 0.25
        hidden = xp.tanh(flat / variance**0.5 @ first.T + xp.log(sigma) / 4 * noise)
        return (0.25 / variance * flat + sigma / variance**0.5 / 2 * (hidden @ last.T)).reshape(
            x.shape
        )

    return denoise


def draws() -> np.ndarray:
    """What fold_in(keys[j], i) stands for, [STEPS + 1, N, 4, 4, 1]; the first is for x_T."""
    return np.random.default_rng(1).standard_normal((STEPS + 1, N, *SHAPE))


def karras() -> np.ndarray:
    """EDM's noise levels (Karras et al. 2022, eq. 5), falling, and 0."""
    u, (high, low) = np.arange(STEPS) / (STEPS - 1), (80 ** (1 / 7), 0.002 ** (1 / 7))
    return np.append((high + u * (low - high)) ** 7, 0.0)
