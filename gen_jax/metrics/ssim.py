"""Structural similarity, at one scale (Wang et al. 2004) and at several (Wang et al. 2003).

Both speak of intensities that begin at 0: images are shifted so that black, the lowest value of
the range, is 0. Values equal those of scikit-image and pytorch_msssim over uint8 images, not those
that they give for pixels in [-1, 1].
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.metrics.psnr import check_pair, span

K1, K2 = 0.01, 0.03
# Wang et al. 2003, sec. 3.2: the exponents of the scales, finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_gaussian = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
# {name: (one-dimensional window, factor of variances and covariances)}.
WINDOWS = {
    'gaussian': (tuple((_gaussian / _gaussian.sum()).tolist()), 1.0),
    'uniform': ((1 / 7,) * 7, 49 / 48),
}


def ssim(
    x: jax.Array,
    y: jax.Array,
    window: str = 'gaussian',
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> jax.Array:
    """The mean of eq. 13 over all places where the window fits, and over channels; [b].

    Args:
      x: images [b, h, w, c], float32 or float64.
      y: images to compare them with, of the same shape.
      window: 'gaussian', the paper's: 11x11, sigma 1.5, population covariance; or 'uniform', what
        scikit-image's `structural_similarity` takes by default: 7x7, sample covariance.
      data_range: (lowest, highest) value that a pixel can have; K1 = 0.01, K2 = 0.03 of it.

    Returns:
      At most 1, which identical images have; negative where structures oppose each other.

    Raises:
      UserError: for an unknown window, or images that are no pair or smaller than the window.
    """
    if window not in WINDOWS:
        raise UserError(f'window={window!r}, expected one of {", ".join(WINDOWS)}')
    weights, factor = WINDOWS[window]
    x, y = check_pair(x, y, len(weights), f"SSIM's {window} window")
    luminance, contrast = _maps(*_from_black(x, y, data_range), weights, factor)
    return (luminance * contrast).mean((1, 2, 3))


def ms_ssim(
    x: jax.Array,
    y: jax.Array,
    scales: int = 5,
    data_range: tuple[float, float] = (-1.0, 1.0),
) -> jax.Array:
    """The product over scales (eq. 7 of Wang et al. 2003), then the mean over channels; [b].

    As pytorch_msssim has it: each scale is the one before, averaged over 2x2 pixels, an odd side
    first framed in black; a scale's means below 0 count as 0.

    Args:
      x: images [b, h, w, c], float32 or float64, of at least `smallest_side(scales)` pixels.
      y: images to compare them with, of the same shape.
      scales: 5, the paper's, or fewer: then the first weights, divided by their sum. Numbers of
        different scales are different metrics.
      data_range: (lowest, highest) value that a pixel can have.

    Returns:
      0 to 1, which identical images have.

    Raises:
      UserError: for an impossible number of scales, or images that are no pair or too small.
    """
    if scales not in range(1, len(SCALE_WEIGHTS) + 1):
        raise UserError(f'scales={scales}, expected 1 to {len(SCALE_WEIGHTS)}')
    x, y = check_pair(x, y, smallest_side(scales), f'MS-SSIM at {scales} scales')
    x, y = _from_black(x, y, data_range)
    weights = SCALE_WEIGHTS[:scales]
    total = 1.0 if scales == len(SCALE_WEIGHTS) else sum(weights)
    product = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        luminance, contrast = _maps(x, y, *WINDOWS['gaussian'])
        last = scale == scales - 1
        similarity = luminance * contrast if last else contrast
        product *= nn.relu(similarity.mean((1, 2))) ** (weight / total)  # [b, c]
    return product.mean(-1)


def smallest_side(scales: int) -> int:
    """Pixels: 11, 21, 41, 81, 161. The coarsest image still holds the window of 11."""
    return 10 * 2 ** (scales - 1) + 1


def _from_black(x, y, data_range):
    """Both with the range's lowest value at 0 and its highest at 1."""
    width = span(data_range)
    return (x - data_range[0]) / width, (y - data_range[0]) / width


@functools.partial(jax.jit, static_argnames=('weights', 'factor'))
def _maps(x, y, weights, factor):
    """Luminance, and contrast times structure, of intensities in [0, 1]: [b, h - n, w - n, c]."""
    c1, c2 = K1**2, K2**2
    # Covariances know no origin, and about mid-grey the difference of squares keeps more digits.
    a, b = x - 0.5, y - 0.5
    maps = _filter(jnp.stack([a, b, a * a, b * b, a * b]), weights)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = maps
    variances = mean_aa - mean_a**2 + mean_bb - mean_b**2
    covariance = mean_ab - mean_a * mean_b
    mean_x, mean_y = mean_a + 0.5, mean_b + 0.5
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * factor * covariance + c2) / (factor * variances + c2)


def _filter(x, weights):
    """The separable window over height and width, where it fits: full precision on any device."""
    for axis in (-3, -2):
        size = x.shape[axis] - len(weights) + 1
        slices = (jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(len(weights)))
        x = sum(w * part for w, part in zip(weights, slices, strict=True))
    return x


def _halve(x):
    return nn.avg_pool(x, (2, 2), (2, 2), [(side % 2,) * 2 for side in x.shape[1:3]])
