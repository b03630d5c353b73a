"""Strided convolutions and their transposes: the networks of studies of disentanglement.

Defaults are those of Locatello et al. 2019, as their disentanglement_lib has them (conv_encoder,
deconv_decoder). Burgess et al. 2018 have `widths` (32, 32, 32, 32), `kernels` (4, 4, 4, 4) and
`hidden` (256, 256).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gen_jax.autoencoders.mlp import Hidden, beside
from gen_jax.config import are_whole, require
from gen_jax.nn.conv import ConvTranspose, conv

# TensorFlow's, which these papers leave as it is.
INIT = nn.initializers.glorot_uniform()
Conv = partial(nn.Conv, conv_general_dilated=conv, kernel_init=INIT)


class Encoder(nn.Module):
    """Images to vectors: a halving convolution per width, then fully connected layers.

    Attributes:
      widths: one per convolution; n convolutions divide height and width by 2**n.
      kernels: height and width of each one's kernel, even numbers.
      hidden: widths of the fully connected layers.
      features: length of the vector that comes out.
      dtype: of the computation; parameters stay float32.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    hidden: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, told=None):
        """Images [b, h, w, c], told [b, k] -> float32 [b, features]."""
        for i, (width, k) in enumerate(zip(self.widths, self.kernels, strict=True)):
            x = Conv(width, (k, k), (2, 2), dtype=self.dtype, name=f'conv_{i}')(x)
            x = nn.relu(x)  # [b, h / 2**(i+1), w / 2**(i+1), width]
        x = beside(x.reshape(len(x), -1), told)
        x = Hidden(self.hidden, 'relu', self.dtype, INIT, name='hidden')(x)
        # The last layer is float32: its output is the exponent of a variance.
        return nn.Dense(self.features, kernel_init=INIT, name='out')(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Vectors to images: the encoder's mirror, with kernels of 4 x 4.

    Attributes:
      widths, hidden, dtype: those of the encoder.
      image_size: height and width of the images.
      features: their channels.
    """

    widths: tuple[int, ...]
    hidden: tuple[int, ...]
    image_size: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, told=None):
        """Vectors [b, d], told [b, k] -> float32 [b, image_size, image_size, features]."""
        side, first = self.image_size // 2 ** len(self.widths), self.widths[-1]
        widths = *self.hidden[::-1], side * side * first
        x = Hidden(widths, 'relu', self.dtype, INIT, name='hidden')(beside(z, told))
        x = x.reshape(-1, side, side, first)
        up = partial(
            ConvTranspose,
            kernel_size=(4, 4),
            strides=(2, 2),
            padding=1,
            kernel_init=INIT,
            dtype=self.dtype,
        )
        for i, width in enumerate(self.widths[-2::-1]):
            x = nn.relu(up(width, name=f'up_{i}')(x))  # [b, 2 * h, 2 * w, width]
        return up(self.features, name='out')(x).astype(jnp.float32)


def defaults() -> dict:
    """The networks' part of a config, `config.model`."""
    return {
        'widths': (32, 32, 64, 64),  # of the convolutions; each halves height and width
        'kernels': (4, 4, 2, 2),  # sides of the encoder's kernels; the decoder's are 4
        'hidden': (256,),  # widths of the fully connected layers around the latents
        'latent_dim': 10,  # length of z
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, given: int, made: int) -> tuple[Encoder, Decoder]:
    """Both networks: `given` numbers of the encoder for an image, `made` of the decoder's a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model, size = config.model, config.data.image_size
    for name in ('widths', 'hidden'):
        expected = 'one whole number of at least 1 per layer, such as (32, 64)'
        wide = len(model[name]) > 0 and are_whole(model[name])
        require(wide, f'model.{name}', model[name], expected)
    n = len(model.widths)
    even = are_whole(model.kernels) and all(k % 2 == 0 for k in model.kernels)
    expected = f'as many even numbers as model.widths has, {n}'
    require(even and len(model.kernels) == n, 'model.kernels', model.kernels, expected)
    expected = f'a multiple of {2**n}, as the {n} convolutions of model.widths halve it'
    require(size % 2**n == 0, 'data.image_size', size, expected)
    shared = {'widths': tuple(model.widths), 'hidden': tuple(model.hidden)}
    shared['dtype'] = jnp.dtype(model.dtype)
    decoder = Decoder(image_size=size, features=made, **shared)
    return Encoder(kernels=tuple(model.kernels), features=given, **shared), decoder
