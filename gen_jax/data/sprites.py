"""Sprites with known factors: those of dSprites (Matthey et al. 2017), drawn here.

One white shape on black: 3 shapes, 6 scales, 40 rotations and 32 x 32 places make 737,280 images,
each a function of its index, in the order of dSprites' file (y changes fastest). Nothing is read or
kept. Sizes and places were measured in the 320 images that dSprites' README shows, which these
overlap by 0.996 (squares, ellipses) and 0.944 (hearts; intersection over union): dSprites' own
outlines, drawn by a games framework, are not published.
"""

import math
from collections.abc import Sequence

import numpy as np

from gen_jax.config import nearest
from gen_jax.errors import UserError

SHAPES = ('square', 'ellipse', 'heart')
FACTORS = ('shape', 'scale', 'rotation', 'x', 'y')
SIZES = (3, 6, 40, 32, 32)  # values of each factor
SPLITS = ('all', 'train', 'test')
MOST = 10**8  # images whose order is kept in memory, 4 bytes each

# In pixels of 64, at scale 1.
SIDE = 64
HALF_SQUARE = 9.6
HALF_ELLIPSE = 12.8, 7.2
HEART = 0.63  # of the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
HEART_MIDDLE = -2.5  # of its height
REACH = 14  # no shape goes further from its middle


def factors(index: np.ndarray, sizes: Sequence[int] = SIZES) -> np.ndarray:
    """Which value each factor has in images [n]: int [n, 5], in the order of `FACTORS`."""
    return np.stack(np.unravel_index(index, sizes), -1)


def index(factors: np.ndarray, sizes: Sequence[int] = SIZES) -> np.ndarray:
    """Images [n] of factors [n, 5]."""
    return np.ravel_multi_index(np.moveaxis(factors, -1, 0), sizes)


def values(factors: np.ndarray, sizes: Sequence[int] = SIZES) -> np.ndarray:
    """What `render` takes, float [n, 5], of factors [n, 5].

    Spaced as dSprites has them: scales from 0.5 to 1, places from 0 to 1, and rotations from 0 to
    2 pi, both included, so that the last one looks like the first.
    """
    first, last = np.array([(0, sizes[0] - 1), (0.5, 1), (0, 2 * np.pi), (0, 1), (0, 1)]).T
    return first + (last - first) * factors / np.maximum(np.array(sizes) - 1, 1)


def render(values: np.ndarray, size: int = SIDE) -> np.ndarray:
    """Images of sprites.

    Args:
      values: [n, 5]: the shape's position in `SHAPES`; its scale, at most 1; its rotation,
        radians, counter-clockwise; the middle's x from left and y from top, where 0 and 1 lie a
        quarter of the image away from its sides.
      size: pixels; divides 64.

    Returns:
      uint8 [n, size, size], 0 or 255 at 64 pixels; smaller images are the means of its squares.
    """
    check_size(size)
    shape, scale, angle, *place = np.asarray(values, np.float32).T
    x, y = (SIDE / 4 + SIDE / 2 * p for p in place)  # [n], pixels
    ticks = np.arange(-REACH, REACH + 1)
    rows, columns = (np.floor(p).astype(int)[:, None] + ticks for p in (y, x))  # [n, 29]
    right = ((columns + np.float32(0.5) - x[:, None]) / scale[:, None])[:, None, :]
    down = ((rows + np.float32(0.5) - y[:, None]) / scale[:, None])[:, :, None]
    c, s = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v = c * right - s * down, s * right + c * down  # [n, 29, 29], in the shape's own frame
    inside = np.empty(u.shape, bool)
    for i, within in enumerate((_square, _ellipse, _heart)):
        inside[shape == i] = within(u[shape == i], v[shape == i])
    images = np.zeros((len(u), SIDE, SIDE), np.uint8)
    where = np.arange(len(u))[:, None, None], rows[:, :, None], columns[:, None, :]
    images[where] = np.where(inside, 255, 0)
    if size == SIDE:
        return images
    k = SIDE // size
    squares = images.reshape(-1, size, k, size, k)
    return np.rint(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) < HALF_SQUARE


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = HALF_ELLIPSE
    return (u / a) ** 2 + (v / b) ** 2 < 1


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The curve has two heights at each x, of t and of pi - t: even -+ odd."""
    x, y = np.abs(u) / HEART, HEART_MIDDLE - v / HEART
    c2 = 1 - np.minimum(np.cbrt(x / 16), 1) ** 2
    c = np.sqrt(c2)  # cos t
    even = -5 * (2 * c2 - 1) - (8 * c2**2 - 8 * c2 + 1)
    odd = 13 * c - 2 * c * (4 * c2 - 3)
    return (x < 16) & (np.abs(y - even) < odd)


def check_size(size: int) -> None:
    """Raises a UserError where images cannot have that size."""
    if size < 1 or SIDE % size:
        raise UserError(f'sprites of {size} pixels: expected {SIDE}, or a number that divides it')


def parse_sizes(text: str) -> tuple[int, ...]:
    """How many values each factor has: '3x6x10x8x8' is (3, 6, 10, 8, 8), and '' as in dSprites.

    Raises:
      UserError: what it is not.
    """
    if not text:
        return SIZES
    parts = text.split('x')
    sizes = tuple(int(part) for part in parts if part.isdecimal())
    if not len(sizes) == len(parts) == len(SIZES) or min(sizes) < 1 or sizes[0] > len(SHAPES):
        names = ', '.join(FACTORS)
        raise UserError(
            f'sprites:{text}: expected how many values {names} have, of shapes at most '
            f'{len(SHAPES)}, such as sprites:{"x".join(map(str, SIZES))}'
        )
    if math.prod(sizes) > MOST:
        raise UserError(f'sprites:{text}: {math.prod(sizes):,} images, expected at most {MOST:,}')
    return sizes


class Sprites:
    """Every combination of the factors once.

    dSprites has no splits: models of it learn from all images, and are judged by the same. That is
    'all', in its order. A tenth of them, drawn without regard to factors, is 'test', and the others
    are 'train', both shuffled. As the last rotation looks like the first, a twentieth of 'test' has
    its twin there, but for one in ten which has it in 'test'.

    Example i has image, uint8 [size, size, 1]; label, the shape; and factors, int32 [5].
    """

    def __init__(self, split: str, image_size: int, sizes: Sequence[int] = SIZES):
        if split not in SPLITS:
            raise UserError(f'sprites have no split {split!r}{nearest(split, SPLITS)}')
        check_size(image_size)
        self._size, self._sizes, self.num_classes = image_size, tuple(sizes), sizes[0]
        self._order = np.arange(math.prod(sizes), dtype=np.int32)
        if split != 'all':
            shuffled, tenth = np.random.default_rng(0).permutation(self._order), len(self) // 10
            self._order = shuffled[:tenth] if split == 'test' else shuffled[tenth:]

    def __len__(self) -> int:
        return len(self._order)

    def labels(self) -> np.ndarray:
        """Those of all images; nothing is drawn."""
        return factors(self._order, self._sizes)[:, 0]

    def __getitem__(self, i: int) -> dict:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        if not all(0 <= i < len(self) for i in indices):
            raise IndexError(indices)
        found = factors(self._order[list(indices)], self._sizes).astype(np.int32)
        images = render(values(found, self._sizes), self._size)[..., None]
        return [
            {'image': image, 'label': int(row[0]), 'factors': row}
            for image, row in zip(images, found, strict=True)
        ]
