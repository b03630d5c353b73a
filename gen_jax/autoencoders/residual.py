"""VQ-VAE's encoder and decoder: strided convolutions and residual blocks.

van den Oord et al. 2017, section 4.1. What it leaves open is that of the authors' code (sonnet's
examples/vqvae_example.ipynb): a 3x3 convolution before the blocks, and in the encoder a ReLU after
it; half the width next to the image.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import require
from gen_jax.nn.conv import ConvTranspose, conv

Conv = partial(nn.Conv, conv_general_dilated=conv)


class Blocks(nn.Module):
    """Residual blocks of ReLU, 3x3 convolution, ReLU, 1x1 convolution; a ReLU after the last.

    Attributes:
      blocks: how many.
      hidden: channels between.
      dtype: of the computation; parameters stay float32.
    """

    blocks: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> the same."""
        for i in range(self.blocks):
            y = Conv(self.hidden, (3, 3), dtype=self.dtype, name=f'conv_{i}')(nn.relu(x))
            x += nn.Dense(x.shape[-1], dtype=self.dtype, name=f'out_{i}')(nn.relu(y))
        return nn.relu(x)


class Encoder(nn.Module):
    """Images to a map of vectors.

    Attributes:
      channels: of the feature maps; next to the image half as many.
      hidden: within residual blocks.
      blocks: residual ones.
      halvings: strided convolutions.
      features: numbers of each vector; 0: the last feature map, of `channels`.
      rectified: whether a ReLU stands before the blocks, whose shortcuts pass on what it leaves.
      dtype: of the computation; parameters stay float32.
    """

    channels: int
    hidden: int
    blocks: int
    halvings: int
    features: int
    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h / 2**halvings, w / 2**halvings, features], vectors in float32."""
        for i in range(self.halvings):
            width = self.channels // 2 if i == 0 else self.channels
            x = nn.relu(Conv(width, (4, 4), 2, dtype=self.dtype, name=f'down_{i}')(x))
        x = Conv(self.channels, (3, 3), dtype=self.dtype, name='in')(x)
        x = nn.relu(x) if self.rectified else x
        x = Blocks(self.blocks, self.hidden, self.dtype, name='blocks')(x)
        return nn.Dense(self.features, name='out')(x.astype(jnp.float32)) if self.features else x


class Decoder(nn.Module):
    """A map of vectors to images: the encoder's mirror.

    Attributes:
      channels, hidden, blocks, halvings, dtype: those of the encoder.
      features: numbers for each pixel.
    """

    channels: int
    hidden: int
    blocks: int
    halvings: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        """[b, h, w, d] -> float32 [b, h * 2**halvings, w * 2**halvings, features]."""
        x = Conv(self.channels, (3, 3), dtype=self.dtype, name='in')(z)
        x = Blocks(self.blocks, self.hidden, self.dtype, name='blocks')(x)
        for i in range(self.halvings):
            last = i == self.halvings - 1
            width = self.features if last else self.channels // 2
            x = ConvTranspose(width, (4, 4), (2, 2), 1, dtype=self.dtype, name=f'up_{i}')(x)
            x = x if last else nn.relu(x)
        return x.astype(jnp.float32)


def defaults() -> dict:
    """The networks' part of a config, `config.model`: those of the authors' example."""
    return {
        'channels': 128,  # of feature maps; half as many next to the image
        'hidden': 32,  # within residual blocks
        'blocks': 2,  # residual ones of each net
        'halvings': 2,  # of height and width, until codes stand for what is left
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, given: int, made: int, rectified: bool) -> tuple[Encoder, Decoder]:
    """Both networks: `given` numbers of the encoder a vector, `made` of the decoder's a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model, size = config.model, config.data.image_size
    for name, least in (('channels', 2), ('hidden', 1), ('blocks', 0), ('halvings', 1)):
        expected = f'a whole number of at least {least}'
        require(model[name] >= least, f'model.{name}', model[name], expected)
    factor = 2**model.halvings
    expected = f'a multiple of {factor}, as model.halvings={model.halvings}'
    require(size % factor == 0, 'data.image_size', size, expected)
    dtypes = ('float32', 'bfloat16')
    require(model.dtype in dtypes, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    shared = {name: model[name] for name in ('channels', 'hidden', 'blocks', 'halvings')}
    shared |= {'dtype': jnp.dtype(model.dtype)}
    encoder = Encoder(features=given, rectified=rectified, **shared)
    return encoder, Decoder(features=made, **shared)
