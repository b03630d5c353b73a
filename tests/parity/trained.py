"""What losses of both sides are of: images, noise for each, its times, and a random network.

In float64, of nothing but numpy. No loss knows which axis is which: none is moved for torch.
"""

import numpy as np
from golden import filled

N, SHAPE = 16, (4, 4, 3)
SIZE = 48
WEIGHTS = {'first.weight': (24, SIZE), 'told.weight': (24,), 'last.weight': (SIZE, 24)}


def network(xp):
    """(x [n, 4, 4, 3], a number near 1 [n]) -> [n, 4, 4, 3], by torch or jax.numpy (`xp`)."""
    first, by, last = (xp.asarray(w.astype(np.float64)) for w in filled(WEIGHTS).values())

    def says(x, told):
        flat = x.reshape(-1, SIZE)
        hidden = xp.tanh(flat @ first.T + told.reshape(-1, 1) * by)
        return (hidden @ last.T + 0.2 * flat).reshape(x.shape)

    return says


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images in [-1, 1] and noise, each [N, 4, 4, 3]."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (N, *SHAPE)), rng.standard_normal((N, *SHAPE))


def shares() -> np.ndarray:
    """What uniform draws are, [N]: both ends, and all between."""
    return np.linspace(0, 1, N)


def normals() -> np.ndarray:
    """What normal draws of log(sigma) are, [N]."""
    return np.linspace(-4, 4, N)
