"""Progressive GAN: Karras et al. 2018, "Progressive Growing of GANs for Improved Quality, ...".

The networks of table 2, for any size on the way there: each size has its own way from and to RGB,
and `alpha` fades a size in (figure 2). Initial values are those of the authors' code
(github.com/tkarras/progressive_growing_of_gans, networks.py), and so are two choices: the
discriminator halves before bias and activation, where table 2 has it after them, and labels are
concatenated to latents. What the authors' discriminator says of labels is a classifier's; here each
class has a logit, of which the label picks one (Mescheder et al. 2018, "Which Training Methods for
GANs do actually Converge?"), as in the authors' StyleGAN.

At 1024x1024, with the ways to and from RGB of all sizes, the generator has 23,079,115 parameters
and the discriminator 23,087,249; the paper says 23.1 million of both.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.gans.layers import DTYPES
from gen_jax.gans.style_layers import (
    BOX,
    EqualizedConv,
    EqualizedDense,
    check_model,
    minibatch_std,
    pixel_norm,
    sizes_up_to,
    width_at,
)
from gen_jax.nn.fir import normalized, upfirdn2d, upsample

HE = 2**0.5  # gain of layers before an activation
WHOLE = ('latent_dim', 'channel_max', 'mbstd_group')
CHOICES = {'dtype': DTYPES}


def leaky(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2."""
    return nn.leaky_relu(x, 0.2)


def faded(before: jax.Array, after: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """(1 - alpha) * before + alpha * after."""
    return before + jnp.asarray(alpha, after.dtype) * (after - before)


def grown(images: list[jax.Array], alpha: float | jax.Array) -> jax.Array:
    """The last image, faded in over the one before, which is half as large.

    Args:
      images: what a generator has drawn at 4x4, 8x8, ...; float32 [b, s, s, c].
      alpha: in [0, 1].
    """
    if len(images) == 1:
        return images[0]
    return faded(upsample(images[-2], BOX), images[-1], alpha)


class Generator(nn.Module):
    """Latents to images of the size that is being trained.

    Attributes:
      latent_dim: length of z.
      image_size: 2**k, at least 8, pixels, when all has grown.
      channels: of the image.
      channel_base, channel_max: a feature map of s by s pixels has min(channel_base // s,
        channel_max) channels.
      num_classes: 0: no labels.
      dtype: what is computed in, but for images, which are float32 as parameters are.
    """

    latent_dim: int = 512
    image_size: int = 1024
    channels: int = 3
    channel_base: int = 16384
    channel_max: int = 512
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None, size=None, alpha=1.0):
        """Images.

        Args:
          z: float32 [b, latent_dim], standard normal.
          label: int32 [b] below `num_classes`; None where that is 0.
          train, keys: change nothing.
          size: of the images, pixels; None: `image_size`, and only then are all parameters made.
          alpha: how far this size is faded in, in [0, 1]; traced.

        Returns:
          float32 [b, size, size, channels], unbounded; the data lies in [-1, 1].
        """
        del train, keys
        if self.num_classes:
            z = jnp.concatenate([z, jax.nn.one_hot(label, self.num_classes)], -1)
        x, images = pixel_norm(z).astype(self.dtype), []
        for at in sizes_up_to(size or self.image_size):
            x = self._block(at, x)  # [b, at, at, width]
            to_rgb = EqualizedConv(self.channels, 1, name=f'block_{at}_to_rgb')
            images.append(to_rgb(x.astype(jnp.float32)))  # [b, at, at, channels]
        return grown(images, alpha)

    def _block(self, size, x):
        """[b, size/2, size/2, c], or latents [b, d] for size 4 -> [b, size, size, width]."""
        width, name = width_at(size, self.channel_base, self.channel_max), f'block_{size}'
        if size == 4:  # a 4x4 convolution of what is one pixel, zeros around it
            options = {'gain': HE / 4, 'bias_init': None, 'dtype': self.dtype}
            dense = EqualizedDense(16 * width, **options, name=f'{name}_dense')
            x = dense(x).reshape(len(x), 4, 4, width)  # [b, 4, 4, width]
            bias = self.param(f'{name}_bias', nn.initializers.zeros, (width,))
            x = x + bias.astype(self.dtype)
        else:
            x = EqualizedConv(width, 3, 'up', BOX, HE, name=f'{name}_conv_0')(x)
        x = pixel_norm(leaky(x))
        x = EqualizedConv(width, gain=HE, name=f'{name}_conv_1')(x)
        return pixel_norm(leaky(x))


class Discriminator(nn.Module):
    """Images of any size on the way to logits: Progressive GAN's, and with `blur` StyleGAN's.

    Attributes:
      channel_base, channel_max: as of `Generator`.
      group: images that are compared with each other, as `minibatch_std` takes it.
      num_classes: 0: no labels.
      blur: whether to filter before halving (Karras et al. 2019, appendix C).
      dtype: what is computed in at 8x8 pixels and above; the rest is float32.
    """

    channel_base: int = 16384
    channel_max: int = 512
    group: int = 4
    num_classes: int = 0
    blur: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, label=None, *, train: bool, alpha=1.0):
        """Logits.

        Args:
          x: images [b, s, s, c] in [-1, 1]; all parameters are made only for the largest.
          label: int32 [b] below `num_classes`; None where that is 0.
          train: changes nothing.
          alpha: how far this size is faded in, in [0, 1]; traced.

        Returns:
          float32 [b]; `intermediates` has the last hidden features, float32 [b, f].
        """
        del train
        image, x = x.astype(self.dtype), None
        for i, size in enumerate(reversed(sizes_up_to(image.shape[1]))):
            from_rgb = EqualizedConv(self._width(size), 1, gain=HE, name=f'block_{size}_from_rgb')
            seen = leaky(from_rgb(image))  # [b, size, size, width]
            if i < 2:
                x = faded(seen, x, alpha) if i else seen
            if size > 4:
                x = self._block(size, x)  # [b, size/2, size/2, width]
                image = nn.avg_pool(image, (2, 2), (2, 2))
        return self._judge(x.astype(jnp.float32), label)

    def _block(self, size, x):
        """[b, size, size, width] -> [b, size/2, size/2, width']."""
        width, name = self._width(size // 2), f'block_{size}'
        x = leaky(EqualizedConv(x.shape[-1], gain=HE, name=f'{name}_conv_0')(x))
        x = blurred(x) if self.blur else x
        return leaky(EqualizedConv(width, 3, 'down', BOX, HE, name=f'{name}_conv_1')(x))

    def _judge(self, x, label):
        """[b, 4, 4, width] -> [b]."""
        width, x = x.shape[-1], minibatch_std(x, self.group)  # [b, 4, 4, width + 1]
        x = leaky(EqualizedConv(width, gain=HE, name='epilogue_conv')(x))
        dense = EqualizedDense(self._width(2), gain=HE, name='epilogue_dense')
        x = leaky(dense(x.reshape(len(x), -1)))  # [b, f]
        self.sow('intermediates', 'features', x)
        x = EqualizedDense(max(self.num_classes, 1), name='epilogue_out')(x)  # [b, classes]
        return (
            (x * jax.nn.one_hot(label, self.num_classes)).sum(-1) if self.num_classes else x[:, 0]
        )

    def _width(self, size):
        return width_at(size, self.channel_base, self.channel_max)


def blurred(x: jax.Array) -> jax.Array:
    """Through the filter (1, 2, 1) along both axes, zeros around: [b, h, w, c] -> the same."""
    return upfirdn2d(x, normalized((1, 2, 1)), pad=(1, 1))


def defaults() -> dict:
    """The networks' part of a config, `config.model`: small ones, for the 8x8 digits."""
    return {
        'latent_dim': 64,  # length of z
        'channel_base': 512,  # s x s pixels have min(channel_base // s, channel_max) channels
        'channel_max': 64,
        'mbstd_group': 4,  # images that the discriminator compares with each other
        'dtype': 'float32',  # what the networks compute in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as `defaults` gives it and `data.{image_size, channels}`.
      num_classes: labels the networks are told; 0: none.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, data = config.model, config.data
    check_model(config, WHOLE, CHOICES)
    shared = {
        'channel_base': model.channel_base,
        'channel_max': model.channel_max,
        'num_classes': num_classes,
        'dtype': DTYPES[model.dtype],
    }
    generator = Generator(model.latent_dim, data.image_size, data.channels, **shared)
    return generator, Discriminator(group=model.mbstd_group, **shared)
