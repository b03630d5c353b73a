"""Bringing any image to the one size and channel count that a config asks for."""

import io
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gen_jax.errors import UserError


def decode(file: str | bytes, name: str, channels: int) -> np.ndarray:
    """Reads an image file of any kind Pillow knows as 8-bit grey or RGB.

    EXIF orientation is applied. Whatever is transparent is composited on white; only where a PNG of
    16-bit colour names one colour as transparent, Pillow takes others with it. 16-bit grey v
    becomes round(v / 257), so that 65535 is 255, and integers beyond are clipped; 16-bit colour
    keeps its high bytes. Colour becomes grey by the ITU-R 601 luma; grey becomes colour by
    repetition.

    Args:
      file: a path, or the encoded bytes.
      name: what to call the image in an error.
      channels: 1 or 3.

    Returns:
      uint8 [h, w, channels].

    Raises:
      UserError: the file is missing, is not an image, is broken, or holds floats, of which nobody
        knows what is white.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            image = _to_8_bit(ImageOps.exif_transpose(image))
    # A broken file makes Pillow raise anything from SyntaxError to struct.error.
    except Exception as error:
        reason = ' '.join(str(error).split())
        raise UserError(
            f'{name} cannot be read as an image ({reason}); replace or delete it'
        ) from error
    pixels = np.asarray(image.convert('L' if channels == 1 else 'RGB'))  # [h, w] or [h, w, 3]
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """The image in an 8-bit mode without transparency; `convert` alone would clip the others."""
    if image.mode == 'F':
        raise ValueError('its pixels are floats; save it with 8 or 16 bits')
    if image.mode.startswith('I'):
        pixels = np.asarray(image).astype(np.int64)
        grey = ((pixels + 128) // 257).clip(0, 255).astype(np.uint8)
        # What a PNG may call transparent is one value.
        return Image.fromarray(np.where(pixels == image.info.get('transparency'), 255, grey))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image)
    return image


class Crop(NamedTuple):
    """A part of an image, drawn at random: three numbers in [0, 1).

    Attributes:
      share: which of the sizes that its shorter side may have.
      top, left: where the part lies.
    """

    share: float
    top: float
    left: float


def crop_image(image: np.ndarray, size: int, least: float, crop: Crop) -> np.ndarray:
    """A square of at least a share `least` of an image's shorter side, `size` pixels a side.

    Dhariwal and Nichol 2021 (guided-diffusion's `random_crop_arr`): the shorter side becomes any of
    `size` to ceil(size / least) pixels, scaled as by `fit_image`, and what is cut out of it may lie
    anywhere.

    Args:
      image: uint8 [h, w, c], c 1 or 3.
      size: pixels.
      least: above 0, at most 1.
      crop: chooses among these.

    Returns:
      uint8 [size, size, c].
    """
    sizes = math.ceil(size / least) - size + 1
    image = _scale(image, (size + int(crop.share * sizes)) / min(image.shape[:2]))
    h, w, _ = image.shape
    top, left = int(crop.top * (h - size + 1)), int(crop.left * (w - size + 1))
    return image[top : top + size, left : left + size]


def cropped(decoded: Iterable[tuple], size: int, least: float, crops: Iterable[Crop]) -> list[dict]:
    """A source's examples of (image, label), of which parts are shown."""
    return [
        {'image': crop_image(image, size, least, crop), 'label': label}
        for (image, label), crop in zip(decoded, crops, strict=True)
    ]


def fit_image(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Makes an image square, `size` pixels a side; one of that size is returned as it is.

    Args:
      image: uint8 [h, w, c], c 1 or 3.
      size: pixels.
      fit: 'resize': the shorter side becomes `size` by Pillow's antialiased BICUBIC, the longer
        side in proportion (rounded), and the centre is cropped, an odd pixel going from the right
        or bottom. 'pad': an image with a side longer than `size` is first shrunk, BICUBIC, so that
        its longer side is `size`; then black (0) fills up around it, an odd pixel going to the
        right or bottom, so that 28x28 becomes 32x32 untouched.

    Returns:
      uint8 [size, size, c].
    """
    h, w, _ = image.shape
    if (h, w) == (size, size):
        return image
    if fit == 'resize':
        image = _scale(image, size / min(h, w))
        h, w, _ = image.shape
        top, left = (h - size) // 2, (w - size) // 2
        return image[top : top + size, left : left + size]
    if max(h, w) > size:
        image = _scale(image, size / max(h, w))
        h, w, _ = image.shape
    top, left = (size - h) // 2, (size - w) // 2
    return np.pad(image, ((top, size - h - top), (left, size - w - left), (0, 0)))


def _scale(image: np.ndarray, factor: float) -> np.ndarray:
    h, w, c = image.shape
    new = (max(1, round(w * factor)), max(1, round(h * factor)))
    pixels = Image.fromarray(image[:, :, 0] if c == 1 else image)
    return np.asarray(pixels.resize(new, Image.Resampling.BICUBIC)).reshape(new[1], new[0], c)
