"""NCSNv2 (Song and Ermon 2020, Improved Techniques for Training Score-Based Generative Models).

A RefineNet (Lin et al. 2017) over residual blocks, the last of them dilated, with InstanceNorm++
(Song and Ermon 2019, appendix A). It is told nothing of the noise: the score is its result over
sigma (technique 3), which is what prediction 'score' makes of it. Initial values are those of the
authors' code (github.com/ermongroup/ncsnv2). With 128 channels, on RGB images:

    multipliers         the authors' name  for                      parameters
    (1, 2, 2, 2)        NCSNv2             CIFAR-10, CelebA 64x64   29,694,083
    (1, 2, 2, 4, 4)     NCSNv2Deeper       LSUN                     83,445,379
    (1, 2, 2, 2, 4, 4)  NCSNv2Deepest      FFHQ 256x256             94,132,611
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import are_whole, nearest, require
from gen_jax.diffusion.adm import uniform
from gen_jax.diffusion.unet import DTYPES
from gen_jax.nn.conv import conv
from gen_jax.nn.resize import halve

CHOICES = {'remat': ('none', 'blocks'), 'dtype': tuple(DTYPES)}
DILATIONS = 2, 4  # of the last two stages, which keep the size
EPSILON = 1e-5  # added to variances


def near_one(key: jax.Array, shape: tuple, dtype: Any = jnp.float32) -> jax.Array:
    """Initial scales, N(1, 0.02^2)."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def conv3x3(x: jax.Array, width: int, name: str, dilation: int = 1, use_bias: bool = True):
    """[b, h, w, c] -> [b, h, w, width]; part of the module that calls it."""
    options = {'dtype': x.dtype, 'use_bias': use_bias, 'conv_general_dilated': conv}
    return nn.Conv(
        width,
        (3, 3),
        padding=dilation,
        kernel_dilation=dilation,
        name=name,
        **options,
        **uniform(9 * x.shape[-1]),
    )(x)


def enlarge(x: jax.Array, h: int, w: int) -> jax.Array:
    """Bilinear, the corners' centers staying corners: [b, h', w', c] -> [b, h, w, c]."""
    if x.shape[1:3] == (h, w):
        return x
    down, across = _between(x.shape[1], h), _between(x.shape[2], w)
    return jnp.einsum(
        'yh,xw,bhwc->byxc', down, across, x.astype(jnp.float32), precision='highest'
    ).astype(x.dtype)


def _between(old: int, new: int) -> np.ndarray:
    """How much of `old` values each of `new` evenly spaced ones has, float32 [new, old]."""
    place = np.linspace(0, old - 1, new)[:, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(old))).astype(np.float32)


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps how far a channel's mean stands from the others'.

    gamma ((x - mu) / s + alpha (mu - m) / v) + beta, with mean mu and deviation s of each channel,
    and mean m and deviation v of the mu (Song and Ermon 2019, appendix A.1). v is the sample's.
    """

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, c], with at least 2 channels; statistics are float32."""
        alpha, gamma = (self.param(name, near_one, x.shape[-1:]) for name in ('alpha', 'gamma'))
        beta = self.param('beta', nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        mu = y.mean((1, 2), keepdims=True)  # [b, 1, 1, c]
        y = y - mu
        y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 2), keepdims=True) + EPSILON)
        variance = mu.var(-1, ddof=1, keepdims=True)  # [b, 1, 1, 1]
        mu = (mu - mu.mean(-1, keepdims=True)) * jax.lax.rsqrt(variance + EPSILON)
        return (gamma * (y + alpha * mu) + beta).astype(x.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
      width: channels of the result.
      dilation: of the convolutions; 1: none.
      begins: whether a stage begins here: its width is then reached in the second convolution, and
        where nothing is dilated the size is halved.
    """

    width: int
    dilation: int
    begins: bool

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h', w', width]."""
        h = nn.elu(InstanceNormPlus(name='norm1')(x))
        h = conv3x3(h, x.shape[-1], 'conv1', self.dilation)
        h = nn.elu(InstanceNormPlus(name='norm2')(h))
        h = conv3x3(h, self.width, 'conv2', self.dilation)  # [b, h, w, width]
        if not self.begins:
            return x + h
        if self.dilation > 1:
            return conv3x3(x, self.width, 'conv_shortcut', self.dilation) + h
        options = {'dtype': x.dtype, 'name': 'conv_shortcut', **uniform(x.shape[-1])}
        return nn.Dense(self.width, **options)(halve(x)) + halve(h)  # [b, h/2, w/2, width]


class ConvUnits(nn.Module):
    """Residual convolution units (Lin et al. 2017, section 3.2), `number` in a row."""

    number: int

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, c]."""
        for i in range(self.number):
            h = x
            for j in range(2):
                h = conv3x3(nn.elu(h), x.shape[-1], f'conv_{i + 1}_{j + 1}', use_bias=False)
            x = x + h
        return x


class RefineBlock(nn.Module):
    """Fuses feature maps of different sizes, and pools them in a chain (Lin et al. 2017, fig. 3).

    Attributes:
      width: channels of the result; of a single map those that it has.
      units: residual convolution units at the end.
    """

    width: int
    units: int

    @nn.compact
    def __call__(self, parts):
        """Parts [b, h', w', ...], the first the largest, of [b, h, w, c] -> [b, h, w, width]."""
        h, w = parts[0].shape[1:3]
        parts = [ConvUnits(2, name=f'adapt_{k}')(part) for k, part in enumerate(parts)]
        if len(parts) > 1:
            parts = [conv3x3(part, self.width, f'fuse_{k}') for k, part in enumerate(parts)]
        x = nn.elu(sum(enlarge(part, h, w) for part in parts))  # [b, h, w, width]
        path = x
        for k in range(2):
            path = nn.max_pool(path, (5, 5), padding=((2, 2), (2, 2)))
            path = conv3x3(path, self.width, f'pool_{k}', use_bias=False)
            x = x + path
        return ConvUnits(self.units, name='out')(x)


class RefineNet(nn.Module):
    """sigma times the score of x_t, told nothing but x_t.

    Modules are named by stage: 0 is the finest, on the way down and on the way up.

    Attributes:
      channels: the widths of the stages are multiples of it.
      multipliers: one per stage, at least 3; each stage but the first halves the size, or is one of
        the last two, which are dilated instead.
      out_channels: channels of the result.
      remat: what the backward pass computes again instead of keeping it: 'none', or 'blocks' (all
        between the ends of blocks).
      dtype: what convolutions compute in. Parameters, statistics and the result are float32.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    out_channels: int = 3
    remat: str = 'none'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, t, label=None, train: bool = False):
        """The network's result.

        Args:
          x: float [b, h, w, c], images in [-1, 1] plus noise; h and w divisible by
            2 ** (stages - 3).
          t, label, train: not looked at; there is no dropout.

        Returns:
          float32 [b, h, w, out_channels].
        """
        del t, label, train
        block, refine = ResBlock, RefineBlock
        if self.remat == 'blocks':
            block, refine = nn.remat(ResBlock), nn.remat(RefineBlock)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        dilations = [1] * (len(widths) - len(DILATIONS)) + [*DILATIONS]

        x, stages = conv3x3(x.astype(self.dtype), widths[0], 'conv_in'), []
        for i, (width, dilation) in enumerate(zip(widths, dilations, strict=True)):
            for j in range(2):
                begins = i > 0 and j == 0
                x = block(width, dilation, begins, name=f'down_{i}_block_{j}')(x)  # [b, h', w', .]
            stages.append(x)

        refined = []
        for i in reversed(range(len(stages))):
            width = widths[max(i - 1, 0)] if refined else widths[i]
            x = refine(width, 1 if i else 3, name=f'refine_{i}')([stages[i], *refined])
            refined = [x]  # [b, h', w', width]
        x = nn.elu(InstanceNormPlus(name='norm_out')(x))
        return conv3x3(x, self.out_channels, 'conv_out').astype(jnp.float32)


def defaults() -> dict:
    """The network's part of a config, `config.model`: a small one for the 8x8 digits."""
    return {
        'channels': 32,  # the widths of the stages are multiples of it
        'multipliers': (1, 2, 2, 2),  # one per stage; the last two are dilated, not smaller
        'remat': 'none',  # computed again in the backward pass: none, blocks
        'dtype': 'float32',  # what the network computes in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> RefineNet:
    """The network that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as `defaults` gives it and `data.{image_size, channels}`.
      num_classes: 0, as it takes no label.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, data = config.model, config.data
    expected = "0, because config.network='refinenet' takes no label"
    require(num_classes == 0, 'data.num_classes', data.num_classes, expected)
    for name, known in CHOICES.items():
        value = model[name]
        require(value in known, f'model.{name}', value, f'a known name{nearest(value, known)}')
    require(model.channels >= 2, 'model.channels', model.channels, 'at least 2')
    stages = len(model.multipliers)
    whole = are_whole(model.multipliers) and stages > len(DILATIONS)
    expected = 'three whole numbers or more of at least 1, one per stage'
    require(whole, 'model.multipliers', model.multipliers, expected)
    step = 2 ** (stages - len(DILATIONS) - 1)
    expected = f'a multiple of {step}, as the {stages} stages of config.model.multipliers need'
    require(data.image_size % step == 0, 'data.image_size', data.image_size, expected)
    return RefineNet(
        channels=model.channels,
        multipliers=tuple(model.multipliers),
        out_channels=data.channels,
        remat=model.remat,
        dtype=DTYPES[model.dtype],
    )
