"""Pictures on disk: pixels, grids, PNG files that are whole or not there."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def grid(images: np.ndarray, columns: int | None = None, smallest: int = 28) -> np.ndarray:
    """Images [n, h, w, c] uint8 side by side, a pixel apart, as one uint8 [H, W, c].

    Args:
      images: at least one image.
      columns: images in a row; None makes the grid as square as it gets.
      smallest: images lower than this many pixels are enlarged by a whole factor.
    """
    n, h, w, c = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    scale = max(1, -(-smallest // h))
    h, w = h * scale, w * scale
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    page = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (h + 1), (i % columns) * (w + 1)
        page[y : y + h, x : x + w] = image
    return page


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [h, w, 1 or 3] as a PNG in one stroke: a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(partial, 'PNG')
    os.replace(partial, path)


def read_png(path: Path) -> np.ndarray:
    """What `save_png` wrote, uint8 [h, w, 1 or 3]."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
