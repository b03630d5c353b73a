"""Layers of Progressive GAN, StyleGAN and StyleGAN2.

Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, Stability, and Variation"
(sections 3 and 4: minibatch standard deviation, equalized learning rate, pixel norm), and Karras
et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (section 2.2: weight
modulation and demodulation; appendix B: filters).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.nn.conv import NHWC, conv
from gen_jax.nn.fir import downsample, upsample
from gen_jax.nn.fir_conv import down_conv, up_conv

TAPS = (1, 3, 3, 1)  # through which all three networks resize
SMALL = 1e-8  # added to mean squares and sums of squares


def lrelu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, times sqrt(2), which keeps the mean square of a normal's half."""
    return 2**0.5 * nn.leaky_relu(x, 0.2)


def pixel_norm(x: jax.Array) -> jax.Array:
    """Divides by the root mean square over the last axis; shapes stay."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + SMALL)


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
    std = jnp.sqrt(grouped.var(0) + SMALL).mean((1, 2, 3))  # [n]
    std = jnp.broadcast_to(jnp.tile(std, group)[:, None, None, None], (b, h, w, 1))
    return jnp.concatenate([x, std], -1)  # [b, h, w, c + 1]


def convolved(x: jax.Array, kernel: jax.Array, resample: str = '') -> jax.Array:
    """A convolution with zeros padded, after doubling or before halving where told.

    Args:
      x: float [b, h, w, c].
      kernel: [3, 3, c, o], or [c, o] for a 1x1 convolution; computed in x's dtype.
      resample: '', 'up' or 'down', through the filter TAPS.

    Returns:
      x's dtype, [b, h', w', o].
    """
    kernel = kernel.astype(x.dtype)
    if kernel.ndim == 2:
        x = (downsample(x, TAPS) if resample == 'down' else x) @ kernel
        return upsample(x, TAPS) if resample == 'up' else x
    if resample:
        return {'up': up_conv, 'down': down_conv}[resample](x, kernel, TAPS)
    return conv(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=NHWC)


def modulated_conv(
    x: jax.Array, kernel: jax.Array, style: jax.Array, demodulate: bool = True, resample: str = ''
) -> jax.Array:
    """A convolution whose kernel each image scales (Karras et al. 2020, equations 1 and 3).

    Scaling the kernel's inputs is scaling the image's channels, and demodulation scales outputs, so
    that all images share one kernel.

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
        demodulation = jax.lax.rsqrt(jnp.square(style) @ squares + SMALL)  # [b, o]
        y = y * demodulation[:, None, None, :].astype(x.dtype)
    return y


class EqualizedDense(nn.Module):
    """A dense layer whose parameters all learn at one rate: scaled when used, not when drawn.

    Attributes:
      features: of the result.
      rate: learning rate of this layer relative to the optimiser's.
      bias_init: the bias at first, as the result has it where `rate` is 1.
      dtype: what it computes in.
    """

    features: int
    rate: float = 1.0
    bias_init: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., c] -> [..., features]."""
        shape = x.shape[-1], self.features
        kernel = self.param('kernel', nn.initializers.normal(1 / self.rate), shape)
        bias = self.param('bias', nn.initializers.constant(self.bias_init), (self.features,))
        kernel = (self.rate * shape[0] ** -0.5 * kernel).astype(self.dtype)
        return x.astype(self.dtype) @ kernel + (self.rate * bias).astype(self.dtype)


class EqualizedConv(nn.Module):
    """A convolution whose parameters all learn at one rate; computes in its input's dtype.

    Attributes:
      features: channels of the result.
      size: of the kernel: 3, or 1.
      resample: as `convolved` takes it.
      use_bias: whether a bias is added.
    """

    features: int
    size: int = 3
    resample: str = ''
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h', w', features]."""
        c = x.shape[-1]
        shape = (3, 3) * (self.size == 3) + (c, self.features)
        kernel = self.param('kernel', nn.initializers.normal(1.0), shape)
        x = convolved(x, (self.size**2 * c) ** -0.5 * kernel, self.resample)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (self.features,))
            x = x + bias.astype(x.dtype)
        return x
