"""The U-Net of Ho et al. 2020 (Denoising Diffusion Probabilistic Models, appendix B).

With the default fields on 32x32x3 images it is the paper's CIFAR-10 network: 35,746,307
parameters. Initial values are those of the authors' code (github.com/hojonathanho/diffusion,
nn.py). Modules bear the names of diffusers' `UNet2DModel`, so that gen_jax.interop maps weights by
rule.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import are_positive, are_whole, nearest, require
from gen_jax.nn import attention
from gen_jax.nn.conv import conv
from gen_jax.nn.dropout import Dropout
from gen_jax.nn.norm import GroupNorm

REMATS = ('none', 'norms', 'blocks')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
# The last layer of each residual branch starts near zero: every block starts as the identity.
NEAR_ZERO = nn.initializers.variance_scaling(1e-10, 'fan_avg', 'uniform')

Conv3x3 = partial(
    nn.Conv, kernel_size=(3, 3), padding=1, kernel_init=INIT, conv_general_dilated=conv
)
Dense = partial(nn.Dense, kernel_init=INIT)


def kept_less(function, remat: str):
    """`function(module, ...)`; where there is remat, the backward pass has only its ends and masks.

    Of a convolution at its end the gradients need the inputs only, so that it does not run again.
    """
    if remat == 'none':
        return function
    policy = jax.checkpoint_policies.save_only_these_names(Dropout.MASK)
    return nn.remat(function, policy=policy)


def sinusoids(t: jax.Array, width: int) -> jax.Array:
    """Sines, then cosines, of t at width/2 frequencies from 1 down to 1/10000.

    Args:
      t: times [b], whole or not.
      width: even, at least 4.

    Returns:
      float32 [b, width]. The authors' code; Vaswani et al. 2017 (section 3.5) interleave the two
      and never reach 1/10000.
    """
    half = width // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / (half - 1))
    angles = t.astype(jnp.float32)[:, None] * frequencies  # [b, half]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)  # [b, width]


class TimeEmbedding(nn.Module):
    """What every block is told of the time."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, t):
        """Times [b] -> [b, 4 * channels]."""
        emb = sinusoids(t, self.channels)  # [b, channels]
        emb = Dense(4 * self.channels, dtype=self.dtype, name='linear_1')(emb)
        return Dense(4 * self.channels, dtype=self.dtype, name='linear_2')(nn.silu(emb))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the time added between them, around a shortcut."""

    width: int
    groups: int
    dropout: float
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, parts, emb, train: bool):
        """Parts [b, h, w, ...] of the channels and the time's [b, e] -> [b, h, w, width]."""
        norm = partial(GroupNorm, self.groups, dtype=self.dtype)
        conv = partial(Conv3x3, self.width, dtype=self.dtype)

        def first(self, parts):
            h = nn.silu(norm(name='norm1')(jnp.concatenate(parts, -1)))  # [b, h, w, c]
            return conv(name='conv1')(h)  # [b, h, w, width]

        def shortcut(self, parts):
            x = jnp.concatenate(parts, -1)  # [b, h, w, c]
            if x.shape[-1] == self.width:
                return x
            return Dense(self.width, dtype=self.dtype, name='conv_shortcut')(x)  # 1x1

        def second(self, h):
            h = nn.silu(norm(name='norm2')(h))
            h = Dropout(self.dropout, deterministic=not train)(h)
            return conv(kernel_init=NEAR_ZERO, name='conv2')(h)

        h = kept_less(first, self.remat)(self, parts)
        time = Dense(self.width, dtype=self.dtype, name='time_emb_proj')(nn.silu(emb))
        h = kept_less(second, self.remat)(self, h + time[:, None, None, :])
        return kept_less(shortcut, self.remat)(self, parts) + h


class Attention(attention.Attention):
    """Self-attention over pixels, with one head; begins as the identity."""

    kernel_init: Any = INIT
    out_init: Any = NEAR_ZERO


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h/2, w/2, c]."""
        # Below and to the right only: TensorFlow's SAME for even sizes, which the paper used.
        pad = ((0, 1), (0, 1))
        return Conv3x3(x.shape[-1], strides=2, padding=pad, dtype=self.dtype, name='conv')(x)


class Upsample(nn.Module):
    """Each pixel becomes four, then a 3x3 convolution."""

    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, 2h, 2w, c]."""

        def enlarge(self, x):
            x = x.repeat(2, axis=1).repeat(2, axis=2)  # [b, 2h, 2w, c]
            return Conv3x3(x.shape[-1], dtype=self.dtype, name='conv')(x)

        return kept_less(enlarge, self.remat)(self, x)


class UNet(nn.Module):
    """eps_theta(x_t, t), optionally given a class.

    Attributes:
      channels: width of the first level; the others are multiples of it.
      multipliers: one per level; each level but the last halves the size.
      blocks: residual blocks per level on the way down; one more on the way up.
      attention: sizes (in pixels) of the feature maps whose blocks are followed by attention. The
        middle always has one.
      dropout: probability, before the second convolution of each block.
      groups: groups of each group norm; divides every width.
      num_classes: rows of the label embedding, the null class counted where there is one; 0: the
        net takes no label.
      out_channels: channels of the result.
      remat: what the backward pass computes again instead of keeping it: 'none', 'norms' (the
        inputs of the convolutions, from those of the norms before them, and attention), 'blocks'
        (all between the ends of the blocks).
      dtype: what convolutions and attention compute in. Parameters, statistics, softmax and the
        result are float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    groups: int = 32
    num_classes: int = 0
    out_channels: int = 3
    remat: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, train: bool = False):
        """The network's estimate of the noise in x.

        Args:
          x: float [b, h, w, c]; h and w divisible by 2 ** (levels - 1).
          t: times [b], counted from 0; int or float.
          label: int32 [b] below `num_classes`; None where `num_classes` is 0.
          train: whether to drop; needs the rng 'dropout'.

        Returns:
          float32 [b, h, w, out_channels].
        """
        # Attention is worth keeping nowhere: it has few operations and many values.
        attends = Attention if self.remat == 'none' else nn.remat(Attention)
        block = nn.remat(ResBlock, static_argnums=3) if self.remat == 'blocks' else ResBlock
        res = partial(
            block, groups=self.groups, dropout=self.dropout, dtype=self.dtype, remat=self.remat
        )
        attend = partial(attends, groups=self.groups, dtype=self.dtype)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        last = len(widths) - 1

        emb = TimeEmbedding(self.channels, self.dtype, name='time_embedding')(t)  # [b, 4c]
        if self.num_classes:
            # N(0, 1) as torch's Embedding: the paper has no classes.
            table = partial(nn.Embed, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype)
            emb = emb + table(self.num_classes, emb.shape[-1], name='class_embedding')(label)

        x = Conv3x3(self.channels, dtype=self.dtype, name='conv_in')(x)  # [b, h, w, channels]
        skips = [x]
        for i, width in enumerate(widths):
            for j in range(self.blocks):
                x = res(width, name=f'down_{i}_resnet_{j}')([x], emb, train)  # [b, h, w, width]
                if x.shape[1] in self.attention:
                    x = attend(name=f'down_{i}_attention_{j}')(x)
                skips.append(x)
            if i < last:
                x = Downsample(self.dtype, name=f'down_{i}_downsampler_0')(x)  # [b, h/2, w/2, .]
                skips.append(x)

        x = res(widths[-1], name='mid_resnet_0')([x], emb, train)
        x = attend(name='mid_attention_0')(x)
        x = res(widths[-1], name='mid_resnet_1')([x], emb, train)

        for i, width in enumerate(reversed(widths)):
            for j in range(self.blocks + 1):
                parts = [x, skips.pop()]
                x = res(width, name=f'up_{i}_resnet_{j}')(parts, emb, train)  # [b, h, w, width]
                if x.shape[1] in self.attention:
                    x = attend(name=f'up_{i}_attention_{j}')(x)
            if i < last:
                # [b, 2h, 2w, width]
                x = Upsample(self.dtype, self.remat, name=f'up_{i}_upsampler_0')(x)

        def out(self, x):
            x = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name='conv_norm_out')(x))
            conv = partial(Conv3x3, kernel_init=NEAR_ZERO, name='conv_out')
            return conv(self.out_channels, dtype=self.dtype)(x)

        return kept_less(out, self.remat)(self, x).astype(jnp.float32)  # [b, h, w, out_channels]


def defaults() -> dict:
    """The network's part of a config, `config.model`: a small one for the 8x8 digits."""
    return {
        'channels': 32,  # width of the first level
        'multipliers': (1, 2),  # width of each level, in multiples of the first
        'blocks': 1,  # residual blocks per level
        'attention': (4,),  # sizes of the feature maps that get attention
        'dropout': 0.1,
        'groups': 8,  # groups of each group norm
        'remat': 'none',  # computed again in the backward pass: none, norms, blocks
        'dtype': 'float32',  # what the network computes in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> UNet:
    """The U-Net that `config.model` describes, for images as `config.data` says.

    Args and errors are those of `fitting`; `model.multipliers` are whole.
    """
    multipliers = config.model.multipliers
    expected = 'one whole number of at least 1 per level'
    require(are_whole(multipliers), 'model.multipliers', multipliers, expected)
    return fitting(config, num_classes)


def fitting(config, num_classes: int) -> UNet:
    """`from_config` for networks that round widths themselves: multipliers may be fractions.

    Args:
      config: with `model.{channels, multipliers, blocks, attention, dropout, groups, remat,
        dtype}` and `data.{image_size, channels}`.
      num_classes: rows of the label embedding; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, data = config.model, config.data
    levels = len(model.multipliers)
    fits = levels >= 1 and are_positive(model.multipliers)
    require(fits, 'model.multipliers', model.multipliers, 'one number above 0 per level')
    require(model.blocks >= 1, 'model.blocks', model.blocks, 'at least 1')
    require(0 <= model.dropout < 1, 'model.dropout', model.dropout, 'a probability below 1')
    fits = model.channels >= 4 and model.channels % 2 == 0
    require(fits, 'model.channels', model.channels, 'an even number of at least 4')
    known = f'a known name{nearest(model.remat, REMATS)}'
    require(model.remat in REMATS, 'model.remat', model.remat, known)
    require(
        model.dtype in DTYPES, 'model.dtype', model.dtype, f'a type{nearest(model.dtype, DTYPES)}'
    )
    step = 2 ** (levels - 1)
    require(
        data.image_size % step == 0,
        'data.image_size',
        data.image_size,
        f'a multiple of {step}, as the {levels} levels of config.model.multipliers need',
    )
    sizes = [data.image_size // 2**i for i in range(levels)]
    require(
        set(model.attention) <= set(sizes),
        'model.attention',
        model.attention,
        f'sizes of feature maps, which here are {sizes}',
    )
    widths = [model.channels * multiplier for multiplier in model.multipliers]
    require(
        model.groups >= 1 and all(w > 0 and w % model.groups == 0 for w in widths),
        'model.groups',
        model.groups,
        f'a number that divides the width of each level, which are {widths}',
    )
    return UNet(
        channels=model.channels,
        multipliers=tuple(model.multipliers),
        blocks=model.blocks,
        attention=tuple(model.attention),
        dropout=model.dropout,
        groups=model.groups,
        num_classes=num_classes,
        out_channels=data.channels,
        remat=model.remat,
        dtype=DTYPES[model.dtype],
    )
