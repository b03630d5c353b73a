"""The resizes to 299 x 299 that FID is measured with, each as its reference implementation has it.

FID depends on them (Parmar et al. 2022), so each number names its own. Pixels lie in 0..255
throughout; they are neither rounded nor clipped, save where `clean` says so.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gen_jax.errors import UserError

SIZE = 299


class Resize(NamedTuple):
    """From pixels to the network's input, in two parts.

    Attributes:
      device: the images, or what `host` made of them -> float32 [b, 299, 299, 3] in [-1, 1]; to be
        compiled with the network.
      host: numpy arrays in and out, uint8 or float32 [b, h, w, c] in 0..255; None where nothing is
        to be done there.
    """

    device: Callable
    host: Callable | None = None

    def prepare(self, images) -> jax.Array:
        """What `Inception` takes.

        Args:
          images: uint8 or float32 [b, h, w, c] in 0..255; c is 3, or 1 for grey.

        Returns:
          float32 [b, 299, 299, 3] in [-1, 1].

        Raises:
          UserError: where images have another shape or type.
        """
        return self.device(self.host(images) if self.host else images)


def tf1(images: jax.Array) -> jax.Array:
    """TensorFlow 1's resize_bilinear: pixel i of the output is the input at i * in / out.

    As torch-fidelity and the frozen Inception graph have it: corners are not aligned, pixels have
    no half-width centres, and shrinking does not smooth.

    Args:
      images: uint8 or float32 [b, h, w, c] in 0..255; c is 3, or 1 for grey.

    Returns:
      float32 [b, 299, 299, 3] in 0..255.

    Raises:
      UserError: where images have another shape or type.
    """
    return _bilinear(images, lambda i, scale: i * scale)


def pytorch_fid(images: jax.Array) -> jax.Array:
    """PyTorch's F.interpolate, bilinear with half-pixel centres; shrinking does not smooth.

    Takes, returns and raises as `tf1` does.
    """
    return _bilinear(images, lambda i, scale: np.maximum((i + 0.5) * scale - 0.5, 0))


def clean(images: np.ndarray) -> np.ndarray:
    """clean-fid's: PIL's bicubic, which smooths where it shrinks, on each channel as float32.

    Runs on the host, threaded over images. Values that overshoot are clipped to 0..255, none is
    rounded. Takes, returns and raises as `tf1` does, with numpy arrays.
    """
    return _by_pil(images, Image.Resampling.BICUBIC).clip(0, 255)


def studiogan(images: np.ndarray) -> np.ndarray:
    """StudioGAN's "friendly" one for the Inception of FID: as `clean`, by PIL's bilinear filter."""
    return _by_pil(images, Image.Resampling.BILINEAR)


def check(images) -> None:
    """Raises UserError where images have a shape or type that no resize takes."""
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f'images have shape {images.shape}, expected [b, h, w, c] with c = 3, or 1 for grey: '
            'drop alpha channels, and move channels last'
        )
    if images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f'images are {images.dtype}, expected uint8 or float32 in 0..255: '
            'scale floats from [-1, 1] by (x + 1) * 127.5'
        )


def _bilinear(images: jax.Array, position: Callable) -> jax.Array:
    """Resizes along the width, then the height, as both references do.

    Args:
      images: as `tf1` takes them.
      position: (indices in the output [299], in / out) -> coordinates in the input [299].
    """
    check(images)
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        # The references' coordinates are float32, rounded after the scale and once at the end.
        at = position(np.arange(SIZE), float(np.float32(size / SIZE))).astype(np.float32)
        low = np.floor(at)
        weight = (at - low).reshape([-1] + [1] * (3 - axis))
        low = low.astype(np.int32)
        a, b = jnp.take(x, low, axis), jnp.take(x, np.minimum(low + 1, size - 1), axis)
        x = a + (b - a) * weight
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def _by_pil(images: np.ndarray, how: Image.Resampling) -> np.ndarray:
    """[b, h, w, c] -> float32 [b, 299, 299, 3], threaded over images."""
    check(images)

    def one(image):
        channels = [Image.fromarray(image[..., c]) for c in range(image.shape[2])]
        resized = [np.asarray(x.resize((SIZE, SIZE), how)) for x in channels]
        return np.stack(resized * (3 // len(resized)), -1)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, np.asarray(images, np.float32))))


def _centre(x):
    """The frozen graph's own scaling, and so torch-fidelity's; clean-fid scales likewise."""
    return (x - 128) / 128


def _spread(x):
    """PyTorch users' scaling: 255 becomes 1."""
    return 2 * (x / 255) - 1


RESIZES = {
    'tf1': Resize(lambda images: _centre(tf1(images))),
    'pytorch_fid': Resize(lambda images: _spread(pytorch_fid(images))),
    'clean': Resize(_centre, clean),
    'studiogan': Resize(_spread, studiogan),
}
