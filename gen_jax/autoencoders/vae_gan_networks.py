"""VAE-GAN's encoder, decoder and discriminator: Larsen et al. 2016, table 1.

5x5 convolutions halve and double images; batch norm and ReLU follow all layers but the first of the
discriminator, which has ReLU alone, and the last ones. What the table leaves open is that of the
authors' code (github.com/andersbll/autoencoding_beyond_pixels, architectures.py): no biases before
batch norm, two zeros around an image, an average of statistics of momentum 0.9.

By default those of the authors' code for 64x64 images, which are the table's but for the encoder's
fully connected layer: 1,024 units, 2,048 in the table.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.config import are_whole, require
from gen_jax.nn.conv import ConvTranspose, conv

DTYPES = 'float32', 'bfloat16'
Conv = partial(nn.Conv, kernel_size=(5, 5), padding=2, conv_general_dilated=conv)
Halving = partial(Conv, strides=2, use_bias=False)


class NormedReLU(nn.Module):
    """Batch norm, by the batch with `train`, then ReLU.

    Attributes:
      train: whether to normalise by the batch and mix its statistics into the running ones.
      dtype: of the result; statistics are float32.
    """

    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[b, ..., c] -> the same."""
        options = {'momentum': 0.9, 'use_fast_variance': False, 'dtype': self.dtype}
        return nn.relu(nn.BatchNorm(not self.train, name='bn', **options)(x))


class Encoder(nn.Module):
    """Images to posteriors.

    Attributes:
      widths: channels after each halving.
      hidden: width of the fully connected layer.
      latent_dim: length d of z.
      dtype: of the computation; parameters stay float32.
    """

    widths: tuple[int, ...]
    hidden: int
    latent_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[b, h, w, c] -> mu and log sigma^2, float32 [b, d] each."""
        for i, width in enumerate(self.widths):
            x = Halving(width, dtype=self.dtype, name=f'conv_{i}')(x)  # [b, h / 2, w / 2, width]
            x = NormedReLU(train, self.dtype, name=f'norm_{i}')(x)
        x = x.reshape(len(x), -1)
        x = nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name='hidden')(x)
        x = NormedReLU(train, self.dtype, name='norm_hidden')(x)
        # The last layer is float32: its output is the exponent of a variance.
        x = nn.Dense(2 * self.latent_dim, name='out')(x.astype(jnp.float32))
        return jnp.split(x, 2, -1)


class Decoder(nn.Module):
    """Vectors to images, in [-1, 1].

    Attributes:
      widths: channels of the first map, then after each doubling.
      image_size: height and width of the images.
      channels: theirs.
      dtype: of the computation; parameters stay float32.
    """

    widths: tuple[int, ...]
    image_size: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, *, train: bool):
        """[b, d] -> float32 [b, image_size, image_size, channels]."""
        first, *rest = self.widths
        side = self.image_size // 2 ** len(rest)
        width = side * side * first
        x = nn.Dense(width, use_bias=False, dtype=self.dtype, name='in')(z)
        x = NormedReLU(train, self.dtype, name='norm_in')(x).reshape(-1, side, side, first)
        for i, width in enumerate(rest):
            up = partial(ConvTranspose, width, (5, 5), (2, 2), (2, 1), use_bias=False)
            x = up(dtype=self.dtype, name=f'conv_{i}')(x)  # [b, 2 * h, 2 * w, width]
            x = NormedReLU(train, self.dtype, name=f'norm_{i}')(x)
        x = Conv(self.channels, dtype=self.dtype, name='out')(x)
        return nn.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images to logits, and to what they are compared by.

    Attributes:
      widths: channels of the first convolution, then after each halving.
      hidden: width of the fully connected layer.
      layer: which halving convolution says how like images are, from 1 on: what it gives, before
        batch norm.
      dtype: of the computation; parameters stay float32.
    """

    widths: tuple[int, ...]
    hidden: int
    layer: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[b, h, w, c] -> logits [b] and Dis_l(x) [b, f], float32."""
        first, *rest = self.widths
        x = nn.relu(Conv(first, dtype=self.dtype, name='conv_0')(x))
        for i, width in enumerate(rest, 1):
            x = Halving(width, dtype=self.dtype, name=f'conv_{i}')(x)  # [b, h / 2, w / 2, width]
            if i == self.layer:
                features = x.reshape(len(x), -1).astype(jnp.float32)
            x = NormedReLU(train, self.dtype, name=f'norm_{i}')(x)
        x = x.reshape(len(x), -1)
        x = nn.Dense(self.hidden, use_bias=False, dtype=self.dtype, name='hidden')(x)
        x = NormedReLU(train, self.dtype, name='norm_hidden')(x)
        return nn.Dense(1, name='out')(x.astype(jnp.float32))[:, 0], features


def defaults() -> dict:
    """The networks' part of a config, `config.model`: the authors' code's."""
    return {
        'latent_dim': 128,  # length of z
        'encoder_widths': (64, 128, 256),  # channels after each halving
        'encoder_hidden': 1024,  # width of the fully connected layer
        'decoder_widths': (256, 256, 128, 32),  # of the first map, then after each doubling
        # Of the first convolution, then after each halving.
        'discriminator_widths': (32, 128, 256, 256),
        'discriminator_hidden': 512,  # width of the fully connected layer
        'layer': 3,  # which halving convolution of the discriminator compares images
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config) -> tuple[Encoder, Decoder, Discriminator]:
    """The networks of `config.model`, for images as `config.data` says.

    Raises:
      UserError: numbers that do not fit.
    """
    model, data = config.model, config.data
    for name in ('latent_dim', 'encoder_hidden', 'discriminator_hidden'):
        require(model[name] >= 1, f'model.{name}', model[name], 'a whole number of at least 1')
    nets = 'encoder', 'decoder', 'discriminator'
    encoder, decoder, discriminator = (tuple(model[f'{net}_widths']) for net in nets)
    stages = len(encoder)
    expected = 'one whole number of at least 1 per halving, such as (64, 128, 256)'
    fits = stages > 0 and are_whole(encoder)
    require(fits, 'model.encoder_widths', encoder, expected)
    expected = f'{stages + 1} whole numbers of at least 1, as model.encoder_widths={encoder}'
    for name, found in (('decoder', decoder), ('discriminator', discriminator)):
        fits = len(found) == stages + 1 and are_whole(found)
        require(fits, f'model.{name}_widths', found, expected)
    factor = 2**stages
    expected = f'a multiple of {factor}, as {stages} stages of model.encoder_widths halve it'
    require(data.image_size % factor == 0, 'data.image_size', data.image_size, expected)
    expected = f'1 to {stages}, a halving convolution of the discriminator'
    require(1 <= model.layer <= stages, 'model.layer', model.layer, expected)
    require(model.dtype in DTYPES, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    dtype = jnp.dtype(model.dtype)
    return (
        Encoder(encoder, model.encoder_hidden, model.latent_dim, dtype),
        Decoder(decoder, data.image_size, data.channels, dtype),
        Discriminator(discriminator, model.discriminator_hidden, model.layer, dtype),
    )
