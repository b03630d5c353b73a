"""Kernel Inception Distance (Binkowski et al. 2018): squared MMD with a polynomial kernel.

Unbiased at every sample size, so that values of models that match the data scatter around 0 and
may be negative. Figures are often printed times 1,000; these are not.
"""

import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.fid import check_features, check_same_size


def kid(
    a: np.ndarray,
    b: np.ndarray,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    seed: int = 2020,
) -> dict[str, float]:
    """The squared MMD between random subsets of two sets of features, and its spread.

    Subsets are drawn as torch-fidelity draws them (`rng_seed`): the same seed compares the same
    rows. Its float32 features are multiplied in float32, ours in float64.

    Args:
      a, b: features, float32 or float64 [n, d] and [m, d]; exchanging them changes the draws only.
      subsets: how many pairs of subsets, at least 2.
      subset_size: rows in each, at least 2, at most n and m. Drawn without replacement: where it
        is all of both sets, every pair is the same and the spread is 0.
      degree, gamma, coef0: of the kernel; see `polynomial_mmd2`.
      seed: of NumPy's RandomState.

    Returns:
      `mean` and `std` (divisor `subsets`) over the pairs, as torch-fidelity gives them, and
      `standard_error` of the mean. The last two tell of the draw of subsets; they are too small
      for the error due to the n and m samples, which the subsets share.

    Raises:
      UserError: over sets that are too small, or as `check_features` says.
    """
    if subsets < 2 or subset_size < 2:
        raise UserError(
            f'KID with subsets={subsets}, subset_size={subset_size}: expected at least 2 of each'
        )
    a, b = check_features(a, 'the first features'), check_features(b, 'the second features')
    check_same_size(a.shape[1], b.shape[1])
    if subset_size > min(len(a), len(b)):
        raise UserError(
            f'KID needs {subset_size} samples in each set, found {len(a)} and {len(b)}: give more '
            f'images, or subset_size={min(len(a), len(b))} or less'
        )
    draw = np.random.RandomState(seed).choice  # torch-fidelity's generator
    values = [
        polynomial_mmd2(
            a[draw(len(a), subset_size, replace=False)],
            b[draw(len(b), subset_size, replace=False)],
            degree,
            gamma,
            coef0,
        )
        for _ in range(subsets)
    ]
    std = float(np.std(values))
    return {
        'mean': float(np.mean(values)),
        'std': std,
        'standard_error': std / (subsets - 1) ** 0.5,
    }


def polynomial_mmd2(
    x: np.ndarray,
    y: np.ndarray,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> float:
    """Unbiased squared MMD with k(x, y) = (gamma x^T y + coef0)^degree (Binkowski et al., eq. 4).

    Args:
      x, y: features, float32 or float64 [m, d] and [n, d], m and n at least 2. Memory grows as
        m^2, n^2 and m n.
      degree: a positive integer; gamma: None is 1 / d; coef0: the kernel between orthogonal rows.

    Raises:
      UserError: as `check_features` says, or where d differs.
    """
    x, y = (
        check_features(rows, f'the {name} features', 2).astype(np.float64)
        for rows, name in ((x, 'first'), (y, 'second'))
    )
    check_same_size(x.shape[1], y.shape[1])
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a, b):
        return (gamma * (a @ b.T) + coef0) ** degree

    return float(
        _off_diagonal_mean(kernel(x, x))
        + _off_diagonal_mean(kernel(y, y))
        - 2 * kernel(x, y).mean()
    )


def _off_diagonal_mean(k: np.ndarray) -> float:
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
