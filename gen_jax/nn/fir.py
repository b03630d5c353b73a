"""Resampling of images through a separable FIR filter.

Zhang 2019 (Making Convolutional Networks Shift-Invariant Again) and Karras et al. 2020 (StyleGAN2,
appendix B) filter before pixels are left out and after zeros are put between them; NCSN++ (Song et
al. 2021, appendix H.1) does so too. The taps (1, 1) are average pooling and nearest neighbours.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax


def upfirdn2d(
    x: jax.Array,
    taps: Sequence[float],
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
) -> jax.Array:
    """Upsamples with zeros, pads with zeros, convolves and leaves pixels out, along both axes.

    Args:
      x: float [b, h, w, c].
      taps: the filter along each axis, k numbers, used as they are; a true convolution.
      up: each pixel becomes the first of `up`, the others 0.
      down: one pixel of `down` is kept, beginning with the first.
      pad: zeros before and after, counted at the upsampled size; negative: pixels cut off.

    Returns:
      x's dtype, [b, (h * up + sum(pad) - k) // down + 1, likewise of w, c].

    Raises:
      ValueError: the filter is wider than what it slides over.
    """
    for axis in (1, 2):
        x = _upfirdn(x, np.asarray(taps, np.float32), up, down, pad, axis)
    return x


def upsample(x: jax.Array, taps: Sequence[float], factor: int = 2) -> jax.Array:
    """[b, h, w, c] -> [b, h * factor, w * factor, c]; inside, an even image stays as bright.

    Args:
      x: float.
      taps: at least `factor`; their scale does not matter.
      factor: whole.
    """
    rest = len(taps) - factor
    pad = ((rest + 1) // 2 + factor - 1, rest // 2)
    return upfirdn2d(x, factor * normalized(taps), up=factor, pad=pad)


def downsample(x: jax.Array, taps: Sequence[float], factor: int = 2) -> jax.Array:
    """[b, h, w, c] -> [b, h // factor, w // factor, c]; args as of `upsample`."""
    rest = len(taps) - factor
    return upfirdn2d(x, normalized(taps), down=factor, pad=((rest + 1) // 2, rest // 2))


def normalized(taps: Sequence[float]) -> np.ndarray:
    """The taps, float32 [k], divided by their sum."""
    taps = np.asarray(taps, np.float32)
    return taps / taps.sum()


def _upfirdn(x, taps, up, down, pad, axis):
    """Shifted sums, which XLA fuses: on a CPU, convolutions of single channels are far slower."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (pad[0], pad[1] + up - 1, up - 1)
    x = lax.pad(x, np.zeros((), x.dtype), padding)
    span = x.shape[axis] - len(taps) + 1
    if span < 1:
        raise ValueError(f'{len(taps)} taps need as many pixels, got {x.shape[axis]} after padding')
    return sum(
        tap.astype(x.dtype) * lax.slice_in_dim(x, start, start + span, down, axis)
        for start, tap in enumerate(taps[::-1])
    )
