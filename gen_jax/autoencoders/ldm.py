"""The first stage of latent diffusion: images to a small map of vectors and back.

The networks of VQGAN (Esser et al. 2021, "Taming Transformers", table 7) as Rombach et al. 2022 use
them: residual blocks with group norm, attention in the middle. Modules bear the names of diffusers'
`AutoencoderKL` and `VQModel`, so that gen_jax.interop maps weights by rule.

With channels 128, multipliers (1, 2, 4, 4) and 4 numbers at each place a `KLAutoencoder` has
83,653,863 parameters (Stable Diffusion's, f = 8), with 16 and without 1x1 convolutions 83,819,683
(Stable Diffusion 3's); with (1, 2, 4), 8,192 codes of 3 numbers a
`VQAutoencoder` has 55,322,782 (f = 4).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.autoencoders.quantizer import Quantized, VectorQuantizer
from gen_jax.nn.attention import Attention
from gen_jax.nn.conv import conv
from gen_jax.nn.norm import GroupNorm

Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=conv)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
      width: channels of the result.
      groups: of each norm.
      dtype: of the computation; parameters and statistics are float32.
    """

    width: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h, w, width]."""
        h = x
        for i in (1, 2):
            h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name=f'norm{i}')(h))
            h = Conv3x3(self.width, dtype=self.dtype, name=f'conv{i}')(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, dtype=self.dtype, name='conv_shortcut')(x)
        return x + h


class Coder(nn.Module):
    """What encoder and decoder have in common.

    Attributes:
      channels: width of the level next to the image; the others are multiples of it.
      multipliers: one per level, from the image on; each level but the last halves the size.
      blocks: residual blocks of each level; the decoder's have one more.
      groups: groups of each group norm; divides every width.
      features: numbers of the result at each place.
      dtype: of the computation; parameters, statistics and the result are float32.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    groups: int
    features: int
    dtype: Any = jnp.float32

    @property
    def widths(self) -> list[int]:
        """Of each level, from the image on."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def level(self, x, width: int, blocks: int, name: str):
        """[b, h, w, c] -> [b, h, w, width]."""
        for j in range(blocks):
            x = ResBlock(width, self.groups, self.dtype, name=f'{name}_resnet_{j}')(x)
        return x

    def middle(self, x):
        """[b, h, w, c] -> the same."""
        block = partial(ResBlock, x.shape[-1], self.groups, self.dtype)
        x = block(name='mid_resnet_0')(x)
        x = Attention(self.groups, self.dtype, name='mid_attention_0')(x)
        return block(name='mid_resnet_1')(x)

    def last(self, x):
        """[b, h, w, c] -> float32 [b, h, w, features]."""
        x = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name='conv_norm_out')(x))
        x = Conv3x3(self.features, dtype=self.dtype, name='conv_out')(x)
        return x.astype(jnp.float32)


class Encoder(Coder):
    """Images to a map of vectors."""

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> float32 [b, h / f, w / f, features], f = 2**(levels - 1)."""
        x = Conv3x3(self.channels, dtype=self.dtype, name='conv_in')(x)
        for i, width in enumerate(self.widths):
            x = self.level(x, width, self.blocks, f'down_{i}')
            if i < len(self.widths) - 1:
                # Zeros below and to the right only, as in DDPM's network.
                options = {'strides': 2, 'padding': ((0, 1), (0, 1)), 'dtype': self.dtype}
                x = Conv3x3(width, name=f'down_{i}_downsampler', **options)(x)
        return self.last(self.middle(x))


class Decoder(Coder):
    """A map of vectors to images: the encoder's mirror."""

    @nn.compact
    def __call__(self, z):
        """[b, h, w, d] -> float32 [b, h * f, w * f, features], f = 2**(levels - 1)."""
        x = Conv3x3(self.widths[-1], dtype=self.dtype, name='conv_in')(z)
        x = self.middle(x)
        for i, width in enumerate(reversed(self.widths)):
            x = self.level(x, width, self.blocks + 1, f'up_{i}')
            if i < len(self.widths) - 1:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv3x3(width, dtype=self.dtype, name=f'up_{i}_upsampler')(x)
        return self.last(x)


class FirstStage(nn.Module):
    """Both networks, and a 1x1 convolution on each side of what lies between them.

    Attributes:
      encoder, decoder: the networks.
      dim: numbers at each place of a map.
      pointwise: whether there are 1x1 convolutions (Stable Diffusion 3 has none).
    """

    encoder: Encoder
    decoder: Decoder
    dim: int
    pointwise: bool = True

    def setup(self):
        """Makes the 1x1 convolutions."""
        if self.pointwise:
            self.quant_conv = nn.Dense(self.encoded_dim)
            self.post_quant_conv = nn.Dense(self.latent_channels)

    @property
    def encoded_dim(self) -> int:
        """Numbers that are told of each place."""
        return self.dim

    @property
    def latent_channels(self) -> int:
        """Numbers that the decoder sees of each place."""
        return self.encoder.features

    def encode(self, x):
        """[b, h, w, c] -> [b, h / f, w / f, encoded_dim]."""
        x = self.encoder(x)
        return self.quant_conv(x) if self.pointwise else x

    def decode(self, z):
        """[b, h, w, dim] -> images float32 [b, h * f, w * f, c], unbounded."""
        return self.decoder(self.post_quant_conv(z) if self.pointwise else z)

    def drawn(self, z):
        """As `decode`, of latents that another model draws."""
        return self.decode(z)


class KLAutoencoder(FirstStage):
    """With a Gaussian of each number: the encoder gives mean and log variance of `dim` numbers."""

    def __call__(self, x):
        """Images as they come back by the means, for `init`."""
        return self.decode(self.posterior(x)[0])

    @property
    def encoded_dim(self) -> int:
        """Means and log variances."""
        return 2 * self.dim

    @property
    def latent_channels(self) -> int:
        """As many as there are means."""
        return self.dim

    def posterior(self, x):
        """Mean and log variance [b, h / f, w / f, dim]; the latter within [-30, 20]."""
        mean, log_var = jnp.split(self.encode(x), 2, -1)
        return mean, jnp.clip(log_var, -30.0, 20.0)


class VQAutoencoder(FirstStage):
    """With codes.

    Attributes:
      quantizer: of vectors of `dim` numbers.
    """

    quantizer: VectorQuantizer = None

    def __call__(self, x, train: bool = False):
        """Images [b, h, w, c] as they come back by their codes, and these."""
        found = self.codes(x, train)
        return self.decode(found.z), found

    def codes(self, x, train: bool = False) -> Quantized:
        """The codes of images, [b, h / f, w / f, dim]."""
        return self.quantizer(self.encode(x), train)

    def drawn(self, z):
        """As `decode`, of the codes nearest to latents that another model draws."""
        return self.decode(self.quantizer(z).z)
