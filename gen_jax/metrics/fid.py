"""Frechet distance between two sets of features: FID (Heusel et al. 2017, section 3 and eq. 6).

The name says which features: FID has the 2,048 of Inception's last pooling, one row an image. sFID
(Nash et al. 2021, section 4) is the same distance over spatial features, one row an image too: the
first 7 channels of the 17x17 output of `mixed_6/conv`, flattened in the order height, width,
channel to 2,023. Hand such rows to `Moments`; everything else stays as it is.

The estimator is biased upwards, by an amount that falls roughly as 1 / n and depends on the model:
compare only numbers from the same n (Chong & Forsyth 2020).
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen_jax.errors import UserError

# How far statistics kept in float32 may be from a symmetric matrix without negative eigenvalues,
# as a fraction of its largest entry or eigenvalue.
ROUNDING = 1e-5
# What np.load raises over a file that is cut short, is something else, or holds objects.
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def check_features(features: np.ndarray, name: str, at_least: int = 1) -> np.ndarray:
    """The features as a NumPy array, not copied, once they are what every distance here takes.

    Args:
      features: float32 or float64 [n, d].
      name: what to call them in a complaint.
      at_least: the fewest rows that the caller can do with.

    Raises:
      UserError: over another shape or dtype, fewer rows, or a value that is not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.dtype not in (np.float32, np.float64):
        raise UserError(
            f'{name} are {features.dtype} {features.shape}, expected float32 or float64 '
            '[samples, features]: flatten with .reshape(n, -1), convert with .astype'
        )
    if len(features) < at_least or not features.shape[1]:
        raise UserError(
            f'{name} have shape {features.shape}, expected at least {at_least} samples of at least '
            '1 feature: give more images'
        )
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise UserError(
            f'{name}: row {row} is not finite: look for NaN in image {row} or in the weights'
        )
    return features


def check_same_size(a: int, b: int) -> None:
    """Raises UserError where features of a and b dimensions would be compared."""
    if a != b:
        raise UserError(
            f'features of different sizes, {a} and {b}: take both from one layer of one network'
        )


class Moments:
    """Count, mean and scatter of features in float64, gathered batch by batch.

    Each batch is centred by its own mean and joined to what came before (Chan, Golub & LeVeque
    1983, eq. 2.1), so that neither a mean far from zero nor the size of batches costs digits.

    Attributes:
      n: how many rows were seen.
    """

    def __init__(self):
        self.n = 0
        self._mean = self._scatter = 0.0

    @classmethod
    def of(cls, features: np.ndarray) -> 'Moments':
        """The moments of a whole set, float32 or float64 [n, d]."""
        moments = cls()
        moments.update(features)
        return moments

    def update(self, features: np.ndarray) -> None:
        """Adds a batch, float32 or float64 [b, d], b >= 1. UserError as `check_features` says."""
        centred = check_features(features, 'features').astype(np.float64)
        mean = centred.mean(axis=0)
        centred -= mean
        self._join(len(centred), mean, centred.T @ centred)

    def merge(self, other: 'Moments') -> None:
        """Adds what another has seen, another process say; `other` stays as it is."""
        if other.n:
            self._join(other.n, other._mean, other._scatter)

    @property
    def mu(self) -> np.ndarray:
        """Mean, float64 [d]. UserError before the first batch."""
        self._require(1)
        return self._mean

    @property
    def sigma(self) -> np.ndarray:
        """Covariance, float64 [d, d], divided by n - 1 as numpy.cov's. UserError where n < 2."""
        self._require(2)
        return self._scatter / (self.n - 1)

    def _join(self, n: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if self.n:
            check_same_size(len(self._mean), len(mean))
        total = self.n + n
        step = mean - self._mean
        # Sums that begin as 0.0 become new arrays here, never those of the batch.
        self._mean = self._mean + step * (n / total)
        self._scatter += scatter
        self._scatter += np.outer(step * (self.n * n / total), step)
        self.n = total

    def _require(self, n: int) -> None:
        if self.n < n:
            raise UserError(f'{self.n} samples seen, expected at least {n}: give more images')


class Statistics(NamedTuple):
    """What a file of statistics holds.

    Attributes:
      mu: mean, float64 [d].
      sigma: covariance, float64 [d, d].
      provenance: what `save_statistics` was told, and `n`; {} in files of other packages.
    """

    mu: np.ndarray
    sigma: np.ndarray
    provenance: dict


def fid(a: Moments | Statistics, b: Moments | Statistics) -> float:
    """The Frechet distance between two sets, from their moments or from files. Symmetric."""
    return frechet_distance(a.mu, a.sigma, b.mu, b.sigma)


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """|mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2)) (Heusel et al., eq. 6).

    With sigma_i = F_i F_i^T, the eigenvalues of sigma1 sigma2 are the squared singular values of
    F_1^T F_2: their sum is the last trace. No square is formed whose root would halve the digits,
    and nothing is added to a singular covariance.

    Args:
      mu1, mu2: means, [d].
      sigma1, sigma2: covariances, [d, d]; singular ones are welcome.

    Returns:
      The squared 2-Wasserstein distance between the two Gaussians, in the features' unit squared;
      rounding below 0 is 0.

    Raises:
      UserError: over sizes that differ, values that are not finite, or a sigma that is no
        covariance (asymmetric, or with a negative eigenvalue, by more than float32's rounding).
    """
    mu1, factor1, trace1 = _factorize(mu1, sigma1, 'first')
    mu2, factor2, trace2 = _factorize(mu2, sigma2, 'second')
    check_same_size(len(mu1), len(mu2))
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    return max(0.0, float(np.sum((mu1 - mu2) ** 2) + trace1 + trace2 - 2 * cross))


def _factorize(mu: np.ndarray, sigma: np.ndarray, name: str) -> tuple[np.ndarray, ...]:
    """(mu [d], F [d, rank] with F F^T = sigma, tr sigma), checked."""
    mu, sigma = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise UserError(
            f'the {name} statistics have a mean of shape {mu.shape} and a covariance of shape '
            f'{sigma.shape}, expected [d] and [d, d]: compute them from features [n, d]'
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f'the {name} statistics are not finite: compute them again')
    if np.abs(sigma - sigma.T).max() > ROUNDING * np.abs(sigma).max():
        raise UserError(f'the {name} covariance is not symmetric: compute it as numpy.cov does')
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    if values[0] < -ROUNDING * max(values[-1], 0):
        raise UserError(
            f'the {name} covariance has an eigenvalue {values[0]:.3g}, expected none below 0: '
            'compute it as numpy.cov does'
        )
    # Directions without variance come out as rounding noise, whose root would count.
    kept = values > len(mu) * np.finfo(np.float64).eps * values[-1]
    return mu, vectors[:, kept] * np.sqrt(values[kept]), np.trace(sigma)


def save_statistics(
    path: str, moments: Moments, spatial: Moments | None = None, **provenance
) -> None:
    """Writes reference statistics that pytorch-fid reads too.

    Args:
      path: an .npz file, which appears whole or not at all; one that exists is replaced.
      moments: become `mu` and `sigma`.
      spatial: those of sFID's features; become `mu_s` and `sigma_s`, as guided-diffusion has them.
      provenance: what JSON can say: network, resize, split. Kept as one string, with `n`.

    Raises:
      UserError: where the name has another ending, by which other programs know the file, or
        fewer than 2 samples were seen.
    """
    path = Path(path)
    if path.suffix != '.npz':
        raise UserError(f'{path}: statistics are kept as .npz, expected a name that ends so')
    arrays = {'mu': moments.mu, 'sigma': moments.sigma}
    if spatial:
        arrays |= {'mu_s': spatial.mu, 'sigma_s': spatial.sigma}
    story = json.dumps({**provenance, 'n': moments.n})
    partial = path.with_suffix('.partial.npz')
    np.savez(partial, provenance=story, **arrays)
    os.replace(partial, path)


def load_statistics(path: str, spatial: bool = False) -> Statistics:
    """Reads what `save_statistics`, pytorch-fid, or guided-diffusion (reference batches) wrote.

    Args:
      path: an .npz file. Images beside the statistics are not read.
      spatial: whether to take `mu_s` and `sigma_s`, for sFID, in place of `mu` and `sigma`.

    Raises:
      UserError: where there is no such file, it cannot be read, or it lacks the statistics.
    """
    names = ('mu_s', 'sigma_s') if spatial else ('mu', 'sigma')
    if not Path(path).is_file():
        raise UserError(f'{path} not found: expected an .npz file of statistics')
    try:
        # np.load leaves a path open where it finds the file cut short.
        with open(path, 'rb') as file:
            return _read_statistics(np.load(file, allow_pickle=False), path, *names)
    except UNREADABLE as error:
        reason = ' '.join(str(error).split())
        raise UserError(
            f'{path} cannot be read as .npz ({reason}): fetch or compute it again'
        ) from None


def _read_statistics(arrays, path: str, mu: str, sigma: str) -> Statistics:
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f'{path} holds one array, expected an .npz file with {mu} and {sigma}')
    if mu not in arrays or sigma not in arrays:
        raise UserError(
            f'{path} holds {", ".join(arrays.files[:5])}, expected {mu} and {sigma}: give a file '
            'of statistics as pytorch-fid or guided-diffusion writes them'
        )
    mean, covariance = arrays[mu], arrays[sigma]
    for name, array in ((mu, mean), (sigma, covariance)):
        if array.dtype.kind not in 'fiu':
            raise UserError(f'{path} has {name} of {array.dtype}, expected float32 or float64')
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not len(mean):
        raise UserError(
            f'{path} has {mu} of shape {mean.shape} and {sigma} of shape {covariance.shape}, '
            'expected [d] and [d, d]: compute them from features [n, d]'
        )
    story = _read_story(arrays['provenance'], path) if 'provenance' in arrays else {}
    return Statistics(mean.astype(np.float64), covariance.astype(np.float64), story)


def _read_story(written: np.ndarray, path: str) -> dict:
    try:
        story = json.loads(str(written))
    except (ValueError, RecursionError):
        story = None
    if not isinstance(story, dict):
        raise UserError(
            f'{path} has a provenance that is no JSON object, expected one as save_statistics '
            'writes it: make the file anew with --save-stats'
        )
    return story
