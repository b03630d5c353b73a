"""EDM's augmentation of training images, which the network is told (Karras et al. 2022, app. F.2).

Flips, scaling, rotation, stretching and shifts, each with some probability, as StyleGAN2-ADA has
them (Karras et al. 2020b, appendix B). The network gets the numbers that say what was done to an
image as `augment` [b, 9]; 0 is an image as it is, which is what sampling asks for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from gen_jax.nn.fir import upfirdn2d

LABELS = 9  # numbers that tell of an augmentation
SCALE_STD = 0.2  # of the logarithms of base 2 of scale and stretch
SHIFT_STD = 0.125  # in widths and heights
# The low-pass filter of the sixth symlet, whose sum is the root of 2.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


class Augmentation(NamedTuple):
    """What is done to each of b images, in this order; float32 [b].

    Attributes:
      flip_x, flip_y: 1 mirrors left and right, up and down, else 0.
      scale: logarithm of the factor by which it grows, in multiples of SCALE_STD.
      rotation: counterclockwise angle.
      stretch, stretch_angle: logarithm of the factor along an axis, likewise, that across it being
        the inverse; angle of that axis.
      shift_x, shift_y: to the right and downwards, in multiples of SHIFT_STD.
    """

    flip_x: jax.Array
    flip_y: jax.Array
    scale: jax.Array
    rotation: jax.Array
    stretch: jax.Array
    stretch_angle: jax.Array
    shift_x: jax.Array
    shift_y: jax.Array

    def labels(self) -> jax.Array:
        """What the network is told, float32 [b, LABELS]."""
        angle = self.stretch_angle
        columns = (
            *(self.flip_x, self.flip_y, self.scale),
            *(jnp.cos(self.rotation) - 1, jnp.sin(self.rotation)),
            *(self.stretch * jnp.cos(angle), self.stretch * jnp.sin(angle)),
            *(self.shift_x, self.shift_y),
        )
        return jnp.stack(columns, 1)


def draw(key: jax.Array, n: int, p: float) -> Augmentation:
    """Augmentations of n images.

    Args:
      key: of the draw.
      n: how many.
      p: probability of each kind; mirroring left and right is even, and up and down has p / 2.
    """
    happens, flip_x, flip_y, angles, normals = jax.random.split(key, 5)
    happens = jax.random.bernoulli(happens, jnp.float32([p, p, p, p, p, 0.5])[:, None], (6, n))
    rotation, stretch_angle = jax.random.uniform(angles, (2, n), minval=-jnp.pi, maxval=jnp.pi)
    scale, stretch, shift_x, shift_y = jax.random.normal(normals, (4, n))
    return Augmentation(
        jax.random.bernoulli(flip_x, 0.5, n).astype(jnp.float32),
        jax.random.bernoulli(flip_y, 0.5, n) * happens[0],
        scale * happens[1],
        rotation * happens[2],
        stretch * happens[3],
        stretch_angle * happens[5],
        *(shift_x * happens[4], shift_y * happens[4]),
    )


def apply(images: jax.Array, done: Augmentation) -> jax.Array:
    """The augmented images; what lies beyond their edges is their mirror image, as far as it goes.

    Args:
      images: float32 [b, h, w, c]; h and w at least 2.
      done: of b.

    Returns:
      float32 [b, h, w, c].
    """
    flips = (done.flip_x, 2), (done.flip_y, 1)
    for flip, axis in flips:
        images = jnp.where(flip[:, None, None, None] == 1, jnp.flip(images, axis), images)
    h, w = images.shape[1:3]
    pad = ((0, 0), (h - 1, h - 1), (w - 1, w - 1), (0, 0))
    fine = jnp.pad(images, pad, 'reflect')  # [b, 3 h - 2, 3 w - 2, c]
    fine = upfirdn2d(fine, SYM6, up=2, pad=(6, 5))  # [b, 6 h - 4, 6 w - 4, c]
    places = jax.vmap(lambda matrix: _places(matrix, h, w))(_back(done, h, w))
    warp = jax.vmap(lambda x, at: map_coordinates(x, at, order=1, cval=0.0), (2, None), 2)
    fine = jax.vmap(warp)(fine, places)  # [b, 2 h + 10, 2 w + 10, c]
    return upfirdn2d(fine, SYM6[::-1], down=2)  # [b, h, w, c]


def _back(done: Augmentation, h: int, w: int) -> jax.Array:
    """Where in the image each place of the result comes from: [b, 3, 3] for (x, y, 1) in pixels."""
    grow, stretch = jnp.exp2(SCALE_STD * done.scale), jnp.exp2(SCALE_STD * done.stretch)
    axis, zero, one = done.stretch_angle, jnp.zeros_like(grow), jnp.ones_like(grow)
    x, y = SHIFT_STD * w * done.shift_x, SHIFT_STD * h * done.shift_y
    parts = (
        _matrix((1 / grow, zero, zero), (zero, 1 / grow, zero)),
        _rotation(done.rotation),
        _rotation(-axis),
        _matrix((1 / stretch, zero, zero), (zero, stretch, zero)),
        _rotation(axis),
        _matrix((one, zero, -x), (zero, one, -y)),
    )
    product = parts[0]
    for part in parts[1:]:
        product = jnp.matmul(product, part, precision='highest')
    return product


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return _matrix((cos, -sin, zero), (sin, cos, zero))


def _matrix(*rows: tuple) -> jax.Array:
    """Two rows of three [b] -> [b, 3, 3]."""
    zero = jnp.zeros_like(rows[0][0])
    return jnp.stack([jnp.stack(row, -1) for row in (*rows, (zero, zero, zero + 1))], -2)


def _places(matrix: jax.Array, h: int, w: int) -> jax.Array:
    """Row and column, in the padded image of twice the size, of each of (2 h + 10, 2 w + 10)."""
    # From the middle, in pixels of the image; the filters' middles are half a fine pixel off.
    y, x = ((np.arange(2 * size + 10) - (size + 4.5) + 0.5) / 2 for size in (h, w))
    y, x = (jnp.float32(grid) for grid in np.meshgrid(y, x, indexing='ij'))
    found = jnp.einsum('ij,jyx->iyx', matrix, jnp.stack([x, y, 1 + 0 * x]), precision='highest')
    column, row = 2 * found[0] - 0.5 + (6 * w - 5) / 2, 2 * found[1] - 0.5 + (6 * h - 5) / 2
    return jnp.stack([row, column])
