"""Improved precision and recall, density and coverage: how two sets of features overlap.

Precision and recall: Kynkaanniemi et al. 2019, eq. 1 and 2, over closed balls (<=), as the paper
and torch-fidelity have them. Density and coverage: Naeem et al. 2020, eq. 5 and 6, over open balls
(<), as the `prdc` package has them; its own precision and recall are over open balls as well.
The two kinds differ only for points exactly on a sphere: where sets share points, or points repeat.

torch-fidelity before 0.4 named the two the other way round (its issue 58): it took the first input
for the real images. Here arguments are named, and precision is the share of fakes that look real.
"""

import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.fid import check_features, check_same_size

# Squared distances come as |x|^2 + |y|^2 - 2 x.y, whose rounding errors reach some 1e-14 of the
# squares. What is within this fraction of a ball's surface is on it; so a point is never outside
# the ball that its own twin spans, and the order of blocks never decides.
ON_THE_SPHERE = 1e-12


def prdc(
    real: np.ndarray, fake: np.ndarray, k: int = 3, k_density: int = 5, block: int = 256
) -> dict[str, float]:
    """How fakes and real samples cover each other, in balls that reach to the k-th neighbour.

    All depend on the counts n and m; papers compare 50,000 with 50,000 (Kynkaanniemi et al.) or
    10,000 with 10,000 (Naeem et al.). Time grows as (n^2 + n m + m^2) d. Memory: float64 copies of
    both sets, 8 (n + m) d bytes, and about 20 block max(n, m) bytes of distances; for 50,000
    samples of 2,048 features each, 1.6 GB and 0.26 GB.

    Args:
      real, fake: features, float32 or float64 [n, d] and [m, d].
      k: the neighbour, not counting the point itself, that sets the radius of precision and recall.
      k_density: the same for density and coverage.
      block: rows of a block of distances; changes time and memory only.

    Returns:
      `precision`: share of fakes within a real ball; `recall`: share of real samples within a fake
      ball; `f1`: their harmonic mean, 0 where both are 0; `density`: real balls around a fake,
      averaged, over k_density, which may exceed 1; `coverage`: share of real balls with a fake
      inside.

    Raises:
      UserError: where a set has no k-th neighbour, or as `check_features` says.
    """
    return Reference(real, k, k_density, block)(fake)


class Reference:
    """Real samples and their balls, for several sets of fakes; args and errors as of `prdc`."""

    def __init__(self, real: np.ndarray, k: int = 3, k_density: int = 5, block: int = 256):
        """Finds the balls, in time n^2 d."""
        if min(k, k_density, block) < 1:
            raise UserError(
                f'prdc with k={k}, k_density={k_density}, block={block}: expected at least 1 of '
                'each'
            )
        real = check_features(real, 'the real features', at_least=max(k, k_density) + 1)
        self._k, self._k_density, self._block = k, k_density, block
        # Distances stay; the squares, which set the rounding, become small.
        self._centre = real.mean(axis=0, dtype=np.float64)
        self._real = real - self._centre
        (self._ball, _), (_, self._density_ball) = _balls(self._real, [k, k_density], block)

    def __call__(self, fake: np.ndarray) -> dict[str, float]:
        """What `prdc` gives."""
        real, k = self._real, self._k
        fake = check_features(fake, 'the fake features', at_least=k + 1)
        check_same_size(real.shape[1], fake.shape[1])
        fake = fake - self._centre
        [(fake_ball, _)] = _balls(fake, [k], self._block)

        precise = np.zeros(len(fake), bool)
        recalled = covered = inside_count = 0
        for rows, distance in _squared_distances(real, fake, self._block):  # [b, m]
            precise |= (distance <= self._ball[rows, None]).any(axis=0)
            recalled += (distance <= fake_ball).any(axis=1).sum()
            inside = distance < self._density_ball[rows, None]
            inside_count += inside.sum()
            covered += inside.any(axis=1).sum()
        precision, recall = float(precise.mean()), float(recalled / len(real))
        return {
            'precision': precision,
            'recall': recall,
            'f1': 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            'density': float(inside_count / (self._k_density * len(fake))),
            'coverage': float(covered / len(real)),
        }


def _balls(x: np.ndarray, ks: list[int], block: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Squared radii [n] to each k-th neighbour: (of the closed ball, of the open ball)."""
    squares = np.empty((len(x), len(ks)))
    for rows, distance in _squared_distances(x, x, block):  # [b, n]
        distance.partition(sorted(ks), axis=1)  # place 0 is the point itself
        squares[rows] = distance[:, ks]
    margin = ON_THE_SPHERE * (_squares(x)[:, None] + np.abs(squares))
    return list(zip((squares + margin).T, (squares - margin).T, strict=True))


def _squared_distances(x: np.ndarray, y: np.ndarray, block: int):
    """Yields (slice of rows of x, their squared distances to y [b, m]), block by block."""
    x_squares, y_squares = _squares(x), _squares(y)
    for start in range(0, len(x), block):
        rows = slice(start, min(start + block, len(x)))
        distance = x[rows] @ y.T
        distance *= -2
        distance += x_squares[rows, None]
        distance += y_squares
        yield rows, distance


def _squares(x: np.ndarray) -> np.ndarray:
    return np.einsum('ij,ij->i', x, x)
