"""Inception Score (Salimans et al. 2016, section 4): exp(E_x KL(p(y|x) || p(y)))."""

import itertools

import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.fid import check_features


def inception_score(
    logits: np.ndarray, splits: int = 10, shuffle_seed: int | None = 2020
) -> dict[str, float]:
    """The score of a set of images, from a classifier's logits; higher is better, 1 to K.

    The published scores come from the 1,008 logits of the 2015 graph without their bias. p(y) is
    estimated within each split, which biases the score downwards: 50,000 images in 10 splits are
    the convention, and another count of images or splits gives another number.

    Args:
      logits: float32 or float64 [n, K].
      splits: parts of nearly equal size, each scored alone; at most n.
      shuffle_seed: of NumPy's RandomState, whose permutation comes first, as in torch-fidelity
        (`rng_seed`); None keeps the order, as the paper's code does. It matters where images are
        sorted by class.

    Returns:
      `mean` and `std` (divisor `splits`) over the splits. `std` is no standard error of `mean`.

    Raises:
      UserError: over fewer images than splits, or as `check_features` says.
    """
    if splits < 1:
        raise UserError(f'Inception Score with splits={splits}: expected at least 1')
    log_p = check_features(logits, 'logits', at_least=splits).astype(np.float64)  # [n, K]
    if shuffle_seed is not None:
        random = np.random.RandomState(shuffle_seed)  # torch-fidelity's generator
        log_p = log_p[random.permutation(len(log_p))]
    log_p -= _logsumexp(log_p, axis=1)
    edges = [i * len(log_p) // splits for i in range(splits + 1)]
    scores = [_score(log_p[a:b]) for a, b in itertools.pairwise(edges)]
    return {'mean': float(np.mean(scores)), 'std': float(np.std(scores))}


def _score(log_p: np.ndarray) -> float:
    """The exponential of the mean KL divergence from p(y) to p(y|x), from log p(y|x) [n, K]."""
    log_marginal = _logsumexp(log_p, axis=0) - np.log(len(log_p))  # [1, K]
    return np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean())


def _logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    largest = x.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis=axis, keepdims=True))
