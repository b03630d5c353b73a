"""Mode coverage: which modes of data whose modes are known a model draws, and how often.

The measures by which mode collapse is compared: Metz et al. 2017 (Unrolled GANs; classes found and
KL on stacked MNIST), Srivastava et al. 2017 (VEEGAN) and Lin et al. 2018 (PacGAN) (Gaussian
mixtures on rings and grids, modes found and high-quality samples). They draw 2,500 samples of
mixtures and 26,000 of the 1,000 classes of stacked MNIST; fewer samples find fewer modes, so
compare numbers of the same count only.
"""

import math
from typing import NamedTuple

import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.accuracy import named


class Coverage(NamedTuple):
    """What `by_centres` and `by_classifier` find.

    Attributes:
      found: modes with at least `least` samples of high quality.
      modes: modes that there are.
      high_quality: the share of samples that are of high quality, in [0, 1].
      kl: KL(q || p) in nats, q the modes' shares among the samples of high quality, p the true
        weights; 0 where they agree, log(modes) for equal weights where one mode has all. It is
        infinite where samples fall on a mode of weight 0, and where none is of high quality.
      counts: samples of high quality of each mode.
    """

    found: int
    modes: int
    high_quality: float
    kl: float
    counts: tuple[int, ...]


def by_centres(
    samples: np.ndarray,
    centres: np.ndarray,
    std: float,
    within: float = 3.0,
    true_weights: np.ndarray | None = None,
    least: int = 1,
) -> Coverage:
    """Coverage of a mixture of isotropic Gaussians.

    A sample belongs to the nearest centre, and is of high quality where it lies no further from it
    than `within` standard deviations, in Euclidean distance. Of the mixture's own samples that is
    a share of 0.989 in 2 dimensions, and nearly none in many: chi^2_d(within^2).

    Args:
      samples: [n, d].
      centres: [k, d].
      std: standard deviation of every mode, along each axis.
      within: standard deviations.
      true_weights: [k], 0 or more, divided by their sum; None: equal.
      least: samples of high quality that make a mode found; 1 in the papers.

    Raises:
      UserError: empty or not finite arrays, shapes that do not fit, or numbers out of range.
    """
    samples, centres = _points(samples, 'samples'), _points(centres, 'centres')
    if samples.shape[1] != centres.shape[1]:
        raise UserError(
            f'samples have {samples.shape[1]} dimensions and centres {centres.shape[1]}: '
            'expected the same'
        )
    for name, value in (('std', std), ('within', within)):
        if not value > 0:
            raise UserError(f'{name}={value}: expected a positive number')
    nearest, distance = _nearest(samples, centres)
    good = nearest[distance <= within * std]
    return _coverage(good, len(samples), _weights(true_weights, len(centres)), least)


def by_classifier(
    seen: np.ndarray,
    classes: int,
    true_weights: np.ndarray | None = None,
    least: int = 1,
) -> Coverage:
    """Coverage of classes, a classifier naming each sample's; every sample is of high quality.

    Stacked MNIST's 1,000 classes are `np.ravel_multi_index(digits.T, (10, 10, 10))` of the digits
    [n, 3] named in its three channels.

    Args:
      seen: logits, float [n, classes], or the classes named, int [n].
      classes: how many there are.
      true_weights: their frequencies, or counts, in the data [classes]; None: equal.
      least: samples that make a class found; 1 in the papers.

    Raises:
      UserError: nothing to count, classes beyond those there are, or numbers out of range.
    """
    if np.ndim(seen) == 2 and np.shape(seen)[1] != classes:
        raise UserError(f'logits have {np.shape(seen)[1]} columns: expected classes={classes}')
    modes = named(seen, classes)
    return _coverage(modes, len(modes), _weights(true_weights, classes), least)


def _coverage(modes: np.ndarray, n: int, weights: np.ndarray, least: int) -> Coverage:
    """From the modes of the high-quality ones among n samples."""
    if least < 1:
        raise UserError(f'least={least}: expected a whole number of at least 1')
    counts = np.bincount(modes, minlength=len(weights))
    return Coverage(
        found=int((counts >= least).sum()),
        modes=len(weights),
        high_quality=len(modes) / n,
        kl=_kl(counts / len(modes), weights) if len(modes) else math.inf,
        counts=tuple(counts.tolist()),
    )


def _kl(q: np.ndarray, p: np.ndarray) -> float:
    """KL(q || p) = sum q log(q / p), nats; terms of q = 0 are 0."""
    q, p = q[q > 0], p[q > 0]
    if not p.all():
        return math.inf
    return float((q * np.log(q / p)).sum())


def _nearest(samples: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of and distance to the nearest centre, [n] each; never all distances at once."""
    nearest, least = np.zeros(len(samples), int), np.full(len(samples), np.inf)
    for i, centre in enumerate(centres):
        distance = np.linalg.norm(samples - centre, axis=1)
        nearest = np.where(distance < least, i, nearest)
        least = np.minimum(distance, least)
    return nearest, least


def _points(x: np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not x.size:
        raise UserError(f'{what} have shape {x.shape}: expected [n, d] with n and d at least 1')
    if not np.isfinite(x).all():
        raise UserError(f'{what}: row {(~np.isfinite(x)).any(1).argmax()} is not finite')
    return x


def _weights(weights: np.ndarray | None, modes: int) -> np.ndarray:
    """[modes], summing to 1."""
    weights = np.ones(modes) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (modes,):
        raise UserError(f'true_weights have shape {weights.shape}: expected one per mode, {modes}')
    if not (weights.sum() > 0 and (weights >= 0).all() and np.isfinite(weights).all()):
        raise UserError('true_weights: expected numbers of 0 or more that do not sum to 0')
    return weights / weights.sum()
