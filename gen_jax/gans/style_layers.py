"""Layers of Progressive GAN, StyleGAN and StyleGAN2.

Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation"
(sections 3 and 4: minibatch standard deviation, equalized learning rate, pixel norm), and Karras
et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (section 2.2: weight
modulation and demodulation; appendix B: filters).

Widths are told by two numbers: a feature map of s by s pixels has min(channel_base // s,
channel_max) channels.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import require, require_known, require_least
from gen_jax.errors import UserError
from gen_jax.nn.conv import NHWC, conv
from gen_jax.nn.fir import downsample, upsample
from gen_jax.nn.fir_conv import down_conv, up_conv

TAPS = (1, 3, 3, 1)  # StyleGAN2's filter
BOX = (0, 1, 1, 0)  # nearest neighbours when doubling, means when halving
EPSILON = 1e-8  # added to mean squares and sums of squares


def lrelu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, times sqrt(2), which keeps the mean square of a normal's half."""
    return 2**0.5 * nn.leaky_relu(x, 0.2)


def pixel_norm(x: jax.Array) -> jax.Array:
    """Divides by the root mean square over the last axis; shapes stay."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)


def minibatch_std(x: jax.Array, group: int) -> jax.Array:
    """How much the images of a group differ, as one more channel.

    Standard deviations over the group, averaged over pixels and channels. Group i of n holds the
    images i, n + i, 2n + i, ...

    Args:
      x: float32 [b, h, w, c].
      group: images in a group; smaller batches are one group.

    Returns:
      float32 [b, h, w, c + 1].

    Raises:
      UserError: groups do not divide the batch.
    """
    b, h, w, c = x.shape
    group = min(group, b)
    if b % group:
        raise UserError(
            f'a discriminator that compares images in groups of {group} got {b} of them: expected '
            'a multiple; change config.batch_size or config.model.mbstd_group'
        )
    grouped = x.reshape(group, b // group, h, w, c)  # [group, n, h, w, c]
    std = jnp.sqrt(grouped.var(0) + EPSILON).mean((1, 2, 3))  # [n]
    std = jnp.broadcast_to(jnp.tile(std, group)[:, None, None, None], (b, h, w, 1))
    return jnp.concatenate([x, std], -1)  # [b, h, w, c + 1]


def convolved(
    x: jax.Array, kernel: jax.Array, resample: str = '', taps: Sequence[float] = TAPS
) -> jax.Array:
    """A convolution with zeros padded, after doubling or before halving where told.

    Args:
      x: float [b, h, w, c].
      kernel: [3, 3, c, o], or [c, o] for a 1x1 convolution; computed in x's dtype.
      resample: '', 'up' or 'down'.
      taps: of the filter for that, four numbers.

    Returns:
      x's dtype, [b, h', w', o].
    """
    kernel = kernel.astype(x.dtype)
    if kernel.ndim == 2:
        x = (downsample(x, taps) if resample == 'down' else x) @ kernel
        return upsample(x, taps) if resample == 'up' else x
    if resample:
        return {'up': up_conv, 'down': down_conv}[resample](x, kernel, taps)
    return conv(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC)


def modulated_conv(
    x: jax.Array, kernel: jax.Array, style: jax.Array, demodulate: bool = True, resample: str = ''
) -> jax.Array:
    """A convolution whose kernel each image scales (Karras et al. 2020, equations 1 and 3).

    Scaling the kernel's inputs is scaling the image's channels, and demodulation scales outputs, so
    that all images share one kernel: on a CPU, gradients included, 60 times as fast as a grouped
    convolution with a kernel for each of 16 images.

    Args:
      x: float [b, h, w, c].
      kernel, resample: as of `convolved`.
      style: s, float32 [b, c].
      demodulate: whether to divide each output by the root of the sum of squares of its scaled
        kernel.

    Returns:
      x's dtype, [b, h', w', o].
    """
    y = convolved(x * style[:, None, None, :].astype(x.dtype), kernel, resample)
    if demodulate:
        squares = jnp.square(kernel).reshape(-1, *kernel.shape[-2:]).sum(0)  # [c, o]
        demodulation = jax.lax.rsqrt(jnp.square(style) @ squares + EPSILON)  # [b, o]
        y = y * demodulation[:, None, None, :].astype(x.dtype)
    return y


class EqualizedDense(nn.Module):
    """A dense layer whose parameters all learn at one rate: scaled when used, not when drawn.

    Attributes:
      features: of the result.
      rate: learning rate of this layer relative to the optimiser's.
      gain: root mean square of the result, where that of the input is 1.
      bias_init: the bias at first, as the result has it where `rate` is 1; None: there is none.
      dtype: what it computes in.
    """

    features: int
    rate: float = 1.0
    gain: float = 1.0
    bias_init: float | None = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., c] -> [..., features]."""
        shape = x.shape[-1], self.features
        kernel = self.param('kernel', nn.initializers.normal(1 / self.rate), shape)
        kernel = self.gain * self.rate * shape[0] ** -0.5 * kernel
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias_init is not None:
            bias = self.param('bias', nn.initializers.constant(self.bias_init), (self.features,))
            x = x + (self.rate * bias).astype(self.dtype)
        return x


class EqualizedConv(nn.Module):
    """A convolution whose parameters all learn at one rate; computes in its input's dtype.

    Attributes:
      features: channels of the result.
      size: of the kernel: 3, or 1.
      resample, taps: as `convolved` takes them.
      gain: as of `EqualizedDense`.
      use_bias: whether a bias is added.
    """

    features: int
    size: int = 3
    resample: str = ''
    taps: tuple[float, ...] = TAPS
    gain: float = 1.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h', w', features]."""
        c = x.shape[-1]
        shape = (3, 3) * (self.size == 3) + (c, self.features)
        kernel = self.param('kernel', nn.initializers.normal(1.0), shape)
        scale = self.gain * (self.size**2 * c) ** -0.5
        x = convolved(x, scale * kernel, self.resample, self.taps)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,))
            x = x + bias.astype(x.dtype)
        return x


def noise(module: nn.Module, size: int, layer: int, keys: jax.Array | None) -> jax.Array:
    """An image of standard normal noise for each sample, or one for all that never changes.

    Args:
      module: of a layer; the image that never changes is its `noise` in the collection `constants`.
      size: pixels along each axis.
      layer: number that tells the layer from others.
      keys: typed PRNG keys [b]; None: the image that never changes.

    Returns:
      float32 [b, size, size, 1], or [size, size, 1].
    """

    def draw(key):
        return jax.random.normal(key, (size, size))

    fixed = module.variable('constants', 'noise', lambda: draw(module.make_rng('params')))
    if keys is None:
        return fixed.value[..., None]
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, layer)))(keys)[..., None]


def sizes_up_to(image_size: int) -> list[int]:
    """4, 8, ..., image_size: the sizes of feature maps, pixels."""
    return [2**i for i in range(2, image_size.bit_length())]


def width_at(size: int, channel_base: int, channel_max: int) -> int:
    """Channels of a feature map of size by size pixels."""
    return min(channel_base // size, channel_max)


def check_model(config, whole: Sequence[str], choices: dict[str, Iterable[str]]) -> None:
    """Checks what the configs of Progressive GAN, StyleGAN and StyleGAN2 have in common.

    Args:
      config: with `model` and `data`.
      whole: names of `model`'s numbers that are whole and at least 1.
      choices: what its names may be.

    Raises:
      UserError: a number or name is out of bounds.
    """
    model, size = config.model, config.data.image_size
    sizes = 'a power of two of at least 8: 8, 16, 32, ...'
    require(size >= 8 and size == 2 ** (size.bit_length() - 1), 'data.image_size', size, sizes)
    require_least('model', model, **dict.fromkeys(whole, 1))
    expected = f'at least data.image_size={size}, so that each feature map has a channel'
    require(model.channel_base >= size, 'model.channel_base', model.channel_base, expected)
    require_known('model', model, **choices)
