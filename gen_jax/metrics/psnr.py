"""Peak signal-to-noise ratio, and what every comparison of two images checks."""

import jax
import jax.numpy as jnp

from gen_jax.errors import UserError


def psnr(x: jax.Array, y: jax.Array, data_range: tuple[float, float] = (-1.0, 1.0)) -> jax.Array:
    """10 log10(L^2 / MSE) in dB, MSE over all pixels and channels; [b].

    Args:
      x: images [b, h, w, c], float32 or float64.
      y: images to compare them with, of the same shape.
      data_range: (lowest, highest) value that a pixel can have; L is their difference.

    Returns:
      Decibels, one per pair; inf for identical images.

    Raises:
      UserError: for other shapes or dtypes, or an empty range.
    """
    x, y = check_pair(x, y)
    mse = ((x - y) ** 2).mean((1, 2, 3))
    return 10 * jnp.log10(span(data_range) ** 2 / mse)


def span(data_range: tuple[float, float]) -> float:
    """Highest less lowest value of a range; UserError unless it is positive."""
    low, high = data_range
    if not low < high:
        raise UserError(f'data_range={data_range}, expected (lowest, highest), such as (-1, 1)')
    return high - low


def check_pair(
    x: jax.Array, y: jax.Array, smallest: int = 1, why: str = ''
) -> tuple[jax.Array, jax.Array]:
    """Both as jax arrays; UserError unless they are float images [b, h, w, c] of one shape.

    Args:
      x: images.
      y: images.
      smallest: the least height and width.
      why: what asks for it.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.shape != y.shape or x.ndim != 4 or 0 in x.shape:
        raise UserError(
            f'images have shapes {x.shape} and {y.shape}, expected one shape [b, h, w, c] for both'
        )
    for image in (x, y):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f'images are {image.dtype}, expected floating point: '
                'scale uint8 pixels with gen_jax.data.pipeline.to_float'
            )
    if min(x.shape[1:3]) < smallest:
        raise UserError(
            f'images are {x.shape[1]}x{x.shape[2]} pixels, {why} needs at least '
            f'{smallest}x{smallest}: enlarge them or take another metric'
        )
    return x, y
