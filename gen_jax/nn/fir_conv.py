"""3x3 convolutions that double or halve an image through an FIR filter, as StyleGAN2 has them.

Zeros are padded once, for filter and convolution together (Karras et al. 2020, "Analyzing and
Improving the Image Quality of StyleGAN", appendix B). Each is written twice. On a CPU filter and
kernel become one 6x6 kernel, which works on 2x2 squares as on channels (`gen_jax.nn.conv`): 5 to 15
times as fast as the gradients of a dilated one. Elsewhere the convolution is dilated or strided,
with a quarter of the products.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gen_jax.nn.conv import NHWC, convolved, doubled, halved
from gen_jax.nn.fir import normalized, upfirdn2d


def up_conv(x: jax.Array, kernel: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Doubles an image through a filter and convolves it: [b, h, w, c] -> [b, 2h, 2w, o].

    Args:
      x: float [b, h, w, c].
      kernel: [3, 3, c, o], of x's dtype; a cross-correlation.
      taps: four numbers, whose scale does not matter.
    """
    options = {'cpu': _up_as_plain, 'default': _up_transposed}
    return _by_platform(x, kernel, taps, **options)


def down_conv(x: jax.Array, kernel: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Filters an image and convolves it with stride 2: [b, h, w, c] -> [b, h/2, w/2, o].

    Args as of `up_conv`; h and w are even.
    """
    options = {'cpu': _down_as_plain, 'default': _down_strided}
    return _by_platform(x, kernel, taps, **options)


def _by_platform(x, kernel, taps, **options):
    options = {name: partial(f, taps=taps) for name, f in options.items()}
    return lax.platform_dependent(x, kernel, **options)


def _up_transposed(x, kernel, taps):
    pad = [(2, 2), (2, 2)]
    options = {'lhs_dilation': (2, 2), 'dimension_numbers': NHWC}
    x = convolved(x, kernel, (1, 1), pad, **options)  # [b, 2h + 1, 2w + 1, o]
    return upfirdn2d(x, 2 * normalized(taps), pad=(1, 1))


def _down_strided(x, kernel, taps):
    x = upfirdn2d(x, normalized(taps), pad=(2, 2))  # [b, h + 1, w + 1, c]
    return convolved(x, kernel, (2, 2), 'VALID', dimension_numbers=NHWC)


def _up_as_plain(x, kernel, taps):
    return doubled(x, _widened(kernel, 2 * normalized(taps)))


def _down_as_plain(x, kernel, taps):
    return halved(x, _widened(kernel, normalized(taps)))


def _widened(kernel, taps):
    """Filter, then kernel, as one: [3, 3, c, o] -> [6, 6, c, o]."""
    along = np.stack([np.convolve(taps[::-1], row) for row in np.eye(3)], 1)  # [6, 3]
    along = jnp.asarray(along, kernel.dtype)
    return jnp.einsum('im,jn,mnco->ijco', along, along, kernel)
