"""The convolutional encoder and decoder of the autoencoders."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gen_jax.autoencoders.mlp import beside
from gen_jax.config import are_whole, require
from gen_jax.nn.conv import conv

Conv = partial(nn.Conv, conv_general_dilated=conv)


class Encoder(nn.Module):
    """Images to vectors: a halving convolution per multiplier, then a hidden layer.

    Attributes:
      channels: width of a stage whose multiplier is 1.
      multipliers: one per stage; n stages divide height and width by 2**n.
      hidden: width of the fully connected layer.
      features: length of the vector that comes out.
      dtype: of the computation; parameters stay float32.
    """

    channels: int
    multipliers: tuple[int, ...]
    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, told=None):
        """Images [b, h, w, c], told [b, k] -> float32 [b, features]; h, w divide by 2**stages."""
        for i, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            x = Conv(width, (4, 4), (2, 2), dtype=self.dtype, name=f'conv_{i}')(x)
            x = nn.relu(x)  # [b, h / 2**(i+1), w / 2**(i+1), width]
        x = beside(x.reshape(len(x), -1), told)  # [b, h * w * c + k]
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(x))
        # The last layer is float32: its output is the exponent of a variance.
        return nn.Dense(self.features, name='out')(x.astype(jnp.float32))  # [b, features]


class Decoder(nn.Module):
    """Vectors to images: the encoder's mirror.

    A stage doubles its input by repeating pixels before it convolves: unlike a strided transposed
    convolution it touches every pixel equally often, so it draws no checkerboard.

    Attributes:
      channels, multipliers, hidden, dtype: those of the encoder.
      image_size: height and width of the images.
      features: their channels.
    """

    channels: int
    multipliers: tuple[int, ...]
    hidden: int
    image_size: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, told=None):
        """Vectors [b, d], told [b, k] -> float32 [b, image_size, image_size, features]."""
        side = self.image_size // 2 ** len(self.multipliers)
        width = self.channels * self.multipliers[-1]
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name='hidden')(beside(z, told)))
        x = nn.relu(nn.Dense(side * side * width, dtype=self.dtype, name='in')(x))
        x = x.reshape(-1, side, side, width)  # [b, side, side, width]
        for i in reversed(range(len(self.multipliers))):
            x = x.repeat(2, axis=1).repeat(2, axis=2)  # [b, 2 * h, 2 * w, c]
            width = self.channels * self.multipliers[i]
            x = nn.relu(Conv(width, (3, 3), dtype=self.dtype, name=f'conv_{i}')(x))
        x = Conv(self.features, (3, 3), dtype=self.dtype, name='out')(x)
        return x.astype(jnp.float32)  # [b, image_size, image_size, features]


def defaults() -> dict:
    """The networks' part of a config, `config.model`."""
    return {
        'channels': 32,  # width of a stage whose multiplier is 1
        'multipliers': (1, 2),  # one per stage; each stage halves height and width
        'hidden': 256,  # width of the fully connected layers around the latents
        'latent_dim': 32,  # length of z
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, given: int, made: int) -> tuple[Encoder, Decoder]:
    """Both networks: `given` numbers of the encoder for an image, `made` of the decoder's a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model, size = config.model, config.data.image_size
    for name in ('channels', 'hidden'):
        require(model[name] >= 1, f'model.{name}', model[name], 'a whole number of at least 1')
    require(
        len(model.multipliers) > 0 and are_whole(model.multipliers),
        'model.multipliers',
        model.multipliers,
        'one whole number of at least 1 per stage, such as (1, 2)',
    )
    factor = 2 ** len(model.multipliers)
    require(
        size % factor == 0,
        'data.image_size',
        size,
        f'a multiple of {factor}, as {len(model.multipliers)} stages of model.multipliers halve it',
    )
    shared = {'dtype': jnp.dtype(model.dtype), 'hidden': model.hidden}
    shared |= {'channels': model.channels, 'multipliers': tuple(model.multipliers)}
    decoder = Decoder(image_size=size, features=made, **shared)
    return Encoder(features=given, **shared), decoder
