"""Procedural coloured shapes: unlimited real supervision (class, caption, segmentation, edges)."""

import numpy as np

from gen_jax.config import nearest
from gen_jax.errors import UserError

SHAPES = ('circle', 'square', 'triangle', 'ring', 'cross', 'crescent')
COLOURS = {
    'red': (220, 40, 40),
    'green': (50, 170, 70),
    'blue': (50, 90, 220),
    'yellow': (240, 210, 50),
    'purple': (150, 60, 190),
    'cyan': (70, 200, 220),
    'white': (245, 245, 245),
    'black': (15, 15, 15),
}
# Half-widths of the shape's circumscribed circle, as a fraction of the image's side.
RADII = {'small': (0.15, 0.20), 'medium': (0.25, 0.31), 'large': (0.37, 0.45)}
LENGTHS = {'train': 50_000, 'test': 10_000}


class Shapes:
    """One shape on a plain background, anywhere in the image, at any angle.

    Example i is a function of (split, i) alone, and describes the same scene at every size:
      image: uint8 [size, size, 3], antialiased.
      label: int, the position of the shape in `SHAPES`.
      caption: str, such as 'a large red circle on a blue background'.
      segmentation: uint8 [size, size], 0 for background and 1 + label for the shape.
      edge: uint8 [size, size], 255 on the outline falling to 0 one pixel away from it.
    """

    num_classes = len(SHAPES)

    def __init__(self, split: str, image_size: int):
        if split not in LENGTHS:
            raise UserError(f'shapes have no split {split!r}{nearest(split, LENGTHS)}')
        self._split = split
        self._size = image_size

    def __len__(self) -> int:
        return LENGTHS[self._split]

    def _begun(self, i: int) -> tuple[np.random.Generator, int]:
        """What draws example i, and its label, which is drawn first."""
        rng = np.random.default_rng([0, sorted(LENGTHS).index(self._split), i])
        return rng, int(rng.integers(len(SHAPES)))

    def labels(self) -> np.ndarray:
        """Those of all examples; nothing is drawn."""
        return np.array([self._begun(i)[1] for i in range(len(self))])

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng, label = self._begun(i)
        colour, background = rng.permutation(list(COLOURS))[:2]
        size = rng.choice(list(RADII))
        radius = rng.uniform(*RADII[size])
        centre = rng.uniform(radius, 1 - radius, size=2)
        angle = rng.uniform(0, 2 * np.pi)

        # Distances are in units of the radius until here, in pixels from here on.
        distance = _distance(SHAPES[label], *self._grid(centre, radius, angle))
        distance = distance * radius * self._size  # [h, w]
        cover = np.clip(0.5 - distance, 0, 1)[..., None]  # [h, w, 1]
        paint = cover * COLOURS[colour] + (1 - cover) * COLOURS[background]
        return {
            'image': np.rint(paint).astype(np.uint8),
            'label': label,
            'caption': f'a {size} {colour} {SHAPES[label]} on a {background} background',
            'segmentation': np.where(distance < 0, 1 + label, 0).astype(np.uint8),
            'edge': np.rint(255 * np.clip(1 - np.abs(distance), 0, 1)).astype(np.uint8),
        }

    def _grid(self, centre, radius, angle) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres in the shape's own frame, where its circumscribed circle has radius 1."""
        ticks = (np.arange(self._size) + 0.5) / self._size
        x = (ticks[None, :] - centre[0]) / radius
        y = (ticks[:, None] - centre[1]) / radius
        c, s = np.cos(angle), np.sin(angle)
        return c * x + s * y, c * y - s * x


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the shape's outline, negative inside; exact on and near the sides."""
    r = np.hypot(x, y)
    if shape == 'circle':
        return r - 1
    if shape == 'square':
        return np.maximum(abs(x), abs(y)) - np.sqrt(0.5)
    if shape == 'triangle':
        return np.maximum(abs(x) * np.sqrt(0.75) + y / 2, -y) - 0.5
    if shape == 'ring':
        return abs(r - 0.75) - 0.25
    if shape == 'cross':
        # Two bars of half-width 0.3, whose corners lie on the circumscribed circle.
        long, thin = np.sqrt(1 - 0.3**2), 0.3
        across = np.maximum(abs(x) - long, abs(y) - thin)
        return np.minimum(across, np.maximum(abs(x) - thin, abs(y) - long))
    # A crescent: the unit disc less a smaller one that is moved aside.
    return np.maximum(r - 1, 0.8 - np.hypot(x - 0.45, y))
