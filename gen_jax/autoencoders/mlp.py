"""The multilayer encoder and decoder of the first autoencoders: images as vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import are_whole, require

ACTIVATIONS = {'relu': nn.relu, 'tanh': nn.tanh}


class Hidden(nn.Module):
    """Fully connected layers, each with its activation.

    Attributes:
      widths: one per layer.
      activation: of `ACTIVATIONS`.
      dtype: of the computation; parameters stay float32.
      kernel_init: of each layer.
    """

    widths: tuple[int, ...]
    activation: str
    dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        """[b, d] -> [b, widths[-1]]."""
        options = {'dtype': self.dtype, 'kernel_init': self.kernel_init}
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f'dense_{i}', **options)(x)
            x = ACTIVATIONS[self.activation](x)
        return x


class Encoder(nn.Module):
    """Images to vectors.

    Attributes:
      hidden: the layers between.
      features: length of the vector that comes out.
    """

    hidden: Hidden
    features: int

    @nn.compact
    def __call__(self, x, told=None):
        """Images [b, h, w, c] and, beside them, told [b, k] -> float32 [b, features]."""
        x = self.hidden(beside(x.reshape(len(x), -1), told))
        # The last layer is float32: its output is the exponent of a variance.
        return nn.Dense(self.features, name='out')(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Vectors to images.

    Attributes:
      hidden: the layers between.
      image_size: height and width of the images.
      features: numbers for each pixel.
    """

    hidden: Hidden
    image_size: int
    features: int

    @nn.compact
    def __call__(self, z, told=None):
        """[b, d] and, beside it, told [b, k] -> float32 [b, image_size, image_size, features]."""
        shape = self.image_size, self.image_size, self.features
        x = self.hidden(beside(z, told)).astype(jnp.float32)
        return nn.Dense(shape[0] * shape[1] * shape[2], name='out')(x).reshape(-1, *shape)


def beside(x: jax.Array, told: jax.Array | None) -> jax.Array:
    """[b, d] and told [b, k], or None, as one vector."""
    return x if told is None else jnp.concatenate([x, told.astype(x.dtype)], -1)


def defaults() -> dict:
    """The networks' part of a config, `config.model`; the numbers are Burda et al.'s (2016)."""
    return {
        'widths': (200, 200),  # of the encoder's layers; the decoder's are these in reverse
        'activation': 'tanh',  # or relu
        'latent_dim': 50,  # length of z
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, given: int, made: int) -> tuple[Encoder, Decoder]:
    """Both networks: `given` numbers of the encoder for an image, `made` of the decoder's a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model = config.model
    require(
        len(model.widths) > 0 and are_whole(model.widths),
        'model.widths',
        model.widths,
        'one whole number of at least 1 per layer, such as (200, 200)',
    )
    expected = f'one of {", ".join(ACTIVATIONS)}'
    require(model.activation in ACTIVATIONS, 'model.activation', model.activation, expected)
    options = {'activation': model.activation, 'dtype': jnp.dtype(model.dtype)}
    encoder = Encoder(Hidden(tuple(model.widths), **options), given)
    decoder = Hidden(tuple(model.widths)[::-1], **options)
    return encoder, Decoder(decoder, config.data.image_size, made)
