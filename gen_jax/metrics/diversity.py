"""Diversity within a set: the mean distance between its images, an alarm for mode collapse."""

from collections.abc import Callable

import jax
import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.ssim import SCALE_WEIGHTS, ms_ssim, smallest_side


def diversity(
    images: np.ndarray,
    distance: Callable,
    pairs: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    reference: float | None = None,
) -> dict[str, float]:
    """The mean distance over pairs of different images (BicycleGAN, Zhu et al. 2017, by LPIPS).

    An unbiased estimate for any number of images, so that sets of different size compare. It is
    low in a collapsed set, and says nothing of quality: noise is diverse.

    Args:
      images: [n, h, w, c], what `distance` takes, n >= 2.
      distance: (x [b, h, w, c], y [b, h, w, c]) -> [b], such as LPIPS or `dissimilarity`, jitted.
      pairs: how many pairs are drawn, without repetition; None, or more than there are: all of
        them, n (n - 1) / 2.
      seed: of that draw.
      batch_size: pairs at a time; the result does not depend on it.
      reference: what this function gives for real images, at the same size and by the same
        distance; None leaves the ratio out.

    Returns:
      `diversity`, 0 where all images are the same; with a reference `diversity_ratio`, value over
      reference: about 1 for a model that covers the data, near 0 for one that has collapsed.

    Raises:
      UserError: for fewer than two images, no pair, or a reference that is not positive.
    """
    if len(images) < 2:
        raise UserError(f'diversity of {len(images)} images, expected at least 2')
    if pairs is not None and pairs < 1:
        raise UserError(f'diversity over pairs={pairs}, expected at least 1, or None for all')
    if reference is not None and not 0 < reference < np.inf:
        raise UserError(f'diversity with reference={reference}, expected a positive number')
    images = np.asarray(images)
    i, j = draw_pairs(len(images), pairs, seed)
    value = over_batches(lambda at: distance(images[i[at]], images[j[at]]), len(i), batch_size)
    value = float(value.mean())
    ratio = {} if reference is None else {'diversity_ratio': value / reference}
    return {'diversity': value, **ratio}


def dissimilarity(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 - MS-SSIM of images in [-1, 1] at as many scales, up to five, as they are large enough for.

    Five from 161 pixels on, four from 81, three from 41, two from 21, and one, which is SSIM, from
    11: images of different size are measured differently. [b], 0 to 1.
    """
    scales = sum(min(x.shape[1:3]) >= smallest_side(k + 1) for k in range(len(SCALE_WEIGHTS)))
    return 1 - ms_ssim(x, y, max(scales, 1))


def draw_pairs(n: int, pairs: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j) of different pairs, 0 <= i < j < n; all of them where `pairs` is None."""
    total = n * (n - 1) // 2
    if pairs is None or pairs >= total:
        k = np.arange(total)
    else:
        k = np.random.default_rng(seed).choice(total, pairs, replace=False)
    # Pair k in the order (0, 1), (0, 2), (1, 2), (0, 3), ...: j (j - 1) / 2 pairs precede (0, j).
    j = (1 + np.sqrt(1 + 8 * k)).astype(np.int64) // 2
    return k - j * (j - 1) // 2, j


def over_batches(function: Callable, n: int, batch_size: int) -> np.ndarray:
    """float64 [n] of function(indices [batch_size]) -> [batch_size], for indices 0 to n - 1.

    The last batch is filled from the beginning, and that part dropped: one shape, one program.
    """
    if batch_size < 1:
        raise UserError(f'batch_size={batch_size}, expected at least 1')
    size = min(batch_size, n)
    starts = range(0, n, size)
    values = [np.asarray(function(np.arange(k, k + size) % n), np.float64) for k in starts]
    return np.concatenate(values)[:n]
