"""The diffusion transformer of Peebles and Xie 2023 (Scalable Diffusion Models with Transformers).

The variant with adaLN-Zero (section 3.2). On 32x32x4 latents with patches of 2, 1000 classes, the
null class and learned variances, sizes S, B, L and XL (table 1) have 32,865,056, 130,315,808,
457,840,672 and 674,834,720 parameters. The authors' code, github.com/facebookresearch/DiT, also
counts its table of positions, which is fixed and here computed: 98,304 more for S, 294,912 for XL.
Its patches are cut by a convolution of that stride, which is one dense layer for all patches.
Modules bear its names, so that gen_jax.interop maps weights by rule.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import nearest, require
from gen_jax.diffusion.adm import sinusoids
from gen_jax.diffusion.unet import DTYPES
from gen_jax.errors import UserError

REMATS = ('none', 'blocks')

# Table 1 of the paper; XS is ours, for images as small as the 8x8 digits.
SIZES = {
    'XS': {'width': 64, 'depth': 4, 'heads': 4},
    'S': {'width': 384, 'depth': 12, 'heads': 6},
    'B': {'width': 768, 'depth': 12, 'heads': 12},
    'L': {'width': 1024, 'depth': 24, 'heads': 16},
    'XL': {'width': 1152, 'depth': 28, 'heads': 16},
}
TIME_WIDTH = 256  # cosines, then sines, that tell the time
MLP_RATIO = 4

Dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
NORMAL = nn.initializers.normal(0.02)
# adaLN-Zero: every block starts as the identity, and the network's first result is 0.
Zero = partial(nn.Dense, kernel_init=nn.initializers.zeros)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Images [b, h, w, c] -> their patches in rows from the top left, [b, n, size * size * c].

    Raises:
      UserError: where `size` does not divide h and w.
    """
    b, h, w, c = x.shape
    if h % size or w % size:
        raise UserError(
            f'images of {h}x{w} pixels cannot be cut into patches of {size}x{size}: '
            f'expected multiples of {size}, resize or pad them, or change config.model.patch'
        )
    x = x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, -1, size * size * c)  # [b, n, size * size * c]


def images(x: jax.Array, size: int, h: int, w: int) -> jax.Array:
    """The inverse of `patches`: [b, n, size * size * c] -> [b, h, w, c]."""
    x = x.reshape(len(x), h // size, w // size, size, size, -1).swapaxes(2, 3)
    return x.reshape(len(x), h, w, -1)  # [b, h, w, c]


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Sines and cosines of each patch's place in a grid: half the channels for x, half for y.

    In float32 these are the values that published checkpoints store as `pos_embed` for square
    grids: first the column's sines and cosines, then the row's, at width/4 frequencies from 1 down
    to almost 1/10000.

    Args:
      rows, columns: patches from top to bottom and from left to right.
      width: a multiple of 4.

    Returns:
      float32 [rows * columns, width].
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))

    def axis(n):
        angles = np.arange(n)[:, None] * frequencies  # [n, width / 4]
        return np.concatenate([np.sin(angles), np.cos(angles)], -1, dtype=np.float32)

    each = axis(columns)[None, :], axis(rows)[:, None]
    grid = [jnp.broadcast_to(x, (rows, columns, width // 2)) for x in each]
    return jnp.concatenate(grid, -1).reshape(-1, width)  # [rows * columns, width]


class TimestepEmbedder(nn.Module):
    """What every block is told of the time."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, t):
        """Times [b] -> [b, width]."""
        dense = partial(nn.Dense, self.width, kernel_init=NORMAL, dtype=self.dtype)
        return dense(name='mlp_2')(nn.silu(dense(name='mlp_0')(sinusoids(t, TIME_WIDTH))))


def ada_ln(c: jax.Array, parts: int, dtype) -> list[jax.Array]:
    """The shifts, scales and gates that time and label c [b, d] ask for: `parts` of [b, 1, d].

    Part of the module that calls it.
    """
    dense = Zero(parts * c.shape[-1], dtype=dtype, name='adaLN_modulation_1')
    return jnp.split(dense(nn.silu(c))[:, None], parts, -1)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Patches x [b, n, d], normalised over d, then scaled and shifted by [b, 1, d]."""
    dtype, x = x.dtype, x.astype(jnp.float32)
    x = jax.nn.standardize(x, epsilon=1e-6, algorithm='stable').astype(dtype)
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention over all patches."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, n, d] -> [b, n, d]."""
        b, n, d = x.shape
        qkv = Dense(3 * d, dtype=self.dtype, name='qkv')(x)
        qkv = qkv.reshape(b, n, 3, self.heads, -1)  # [b, n, 3, heads, d / heads]
        y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0)).reshape(b, n, d)  # [b, n, d]
        return Dense(d, dtype=self.dtype, name='proj')(y)


class MLP(nn.Module):
    """Two dense layers over each patch alone."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, n, d] -> [b, n, d]."""
        d = x.shape[-1]
        x = nn.gelu(Dense(MLP_RATIO * d, dtype=self.dtype, name='fc1')(x))
        return Dense(d, dtype=self.dtype, name='fc2')(x)


class Block(nn.Module):
    """Attention and MLP, each modulated before and gated after, around shortcuts (figure 3)."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, c):
        """Patches [b, n, d] and what time and label say, [b, d] -> [b, n, d]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = ada_ln(c, 6, self.dtype)
        attention = Attention(self.heads, self.dtype, name='attn')
        x = x + gate * attention(modulated(x, shift, scale))
        return x + mlp_gate * MLP(self.dtype, name='mlp')(modulated(x, mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    """From each patch's vector to its pixels."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x, c):
        """[b, n, d] and [b, d] -> [b, n, features]."""
        shift, scale = ada_ln(c, 2, self.dtype)
        return Zero(self.features, dtype=self.dtype, name='linear')(modulated(x, shift, scale))


class DiT(nn.Module):
    """A transformer over the patches of x_t, told of the time and optionally of a class.

    The defaults are DiT-XL/2; `DiT(**SIZES['B'], patch=4)` is DiT-B/4.

    Attributes:
      width: of each patch's vector; a multiple of 4 and of `heads`.
      depth: blocks.
      heads: of each block's attention.
      patch: pixels along a patch's side, which divide the image's.
      num_classes: rows of the label embedding, the null class counted where there is one; 0: the
        net takes no label.
      out_channels: channels of the result: those of the image, or twice as many where a variance
        is learned (Nichol and Dhariwal 2021, eq. 15), which come last.
      remat: what the backward pass computes again instead of keeping it: 'none', 'blocks' (all
        between the ends of the blocks).
      dtype: what layers and attention compute in. Parameters, statistics, softmax and the result
        are float32.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    num_classes: int = 0
    out_channels: int = 4
    remat: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, train: bool = False):
        """What the method trains the network to say of x: the noise, in the paper.

        Args:
          x: float [b, h, w, c]; h and w divisible by `patch`.
          t: times [b]; int or float. The paper's are 0 .. 999.
          label: int32 [b] below `num_classes`; None where `num_classes` is 0.
          train: without effect, as nothing is dropped; here for all networks to be called alike.

        Returns:
          float32 [b, h, w, out_channels].

        Raises:
          UserError: where `patch` does not divide h and w.
        """
        del train
        h, w = x.shape[1:3]
        grid = h // self.patch, w // self.patch
        block = nn.remat(Block) if self.remat == 'blocks' else Block

        c = TimestepEmbedder(self.width, self.dtype, name='t_embedder')(t)  # [b, width]
        if self.num_classes:
            table = partial(nn.Embed, embedding_init=NORMAL, dtype=self.dtype, name='y_embedder')
            c = c + table(self.num_classes, self.width)(label)

        x = patches(x, self.patch)  # [b, n, patch * patch * c]
        x = Dense(self.width, dtype=self.dtype, name='x_embedder')(x)  # [b, n, width]
        x = x + positions(*grid, self.width).astype(self.dtype)
        for i in range(self.depth):
            x = block(self.heads, self.dtype, name=f'blocks_{i}')(x, c)
        x = FinalLayer(self.patch**2 * self.out_channels, self.dtype, name='final_layer')(x, c)
        return images(x, self.patch, h, w).astype(jnp.float32)  # [b, h, w, out_channels]


def defaults() -> dict:
    """The config's `model`: a network for the house's default data, the 8x8 digits."""
    return {
        'size': 'XS',  # XS, or the paper's S, B, L, XL
        'width': 0,  # of each patch's vector; 0: the size's
        'depth': 0,  # blocks; 0: the size's
        'heads': 0,  # of each attention; 0: the size's
        'patch': 2,  # pixels along a patch's side
        'remat': 'none',  # computed again in the backward pass: none, blocks
        'dtype': 'float32',  # what the network computes in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> DiT:
    """The transformer that `config.model` describes, for images as `config.data` says.

    A method that learns variances takes `from_config(...).clone(out_channels=2 * channels)`.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: rows of the label embedding; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, data = config.model, config.data
    for field, known in (('size', SIZES), ('remat', REMATS), ('dtype', DTYPES)):
        value = model[field]
        require(value in known, f'model.{field}', value, f'a known name{nearest(value, known)}')
    for name in ('width', 'depth', 'heads'):
        require(model[name] >= 0, f'model.{name}', model[name], "at least 1, or 0: the size's")
    shape = {name: model[name] or number for name, number in SIZES[model.size].items()}
    width, heads = shape['width'], shape['heads']
    fits = width % 4 == 0 and width % heads == 0
    require(fits, 'model.width', width, f'a multiple of 4 and of the heads, which are {heads}')
    require(model.patch >= 1, 'model.patch', model.patch, 'at least 1')
    require(
        data.image_size % model.patch == 0,
        'data.image_size',
        data.image_size,
        f'a multiple of config.model.patch={model.patch}',
    )
    return DiT(
        **shape,
        patch=model.patch,
        num_classes=num_classes,
        out_channels=data.channels,
        remat=model.remat,
        dtype=DTYPES[model.dtype],
    )
