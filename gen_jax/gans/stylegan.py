"""StyleGAN: Karras et al. 2019, "A Style-Based Generator Architecture for GANs".

Initial values, and what the paper leaves open, are those of the authors' code
(github.com/NVlabs/stylegan, networks_stylegan.py), which is in TensorFlow 1 and was read, not run.
At 1024x1024 the generator has 26,219,627 parameters and the discriminator 23,087,249, as theirs:
latent_dim=w_dim=512, channel_base=16384, channel_max=512, mapping_layers=8. The discriminator is
that of Progressive GAN with a filter before each halving, and both networks grow as that one does.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.gans.layers import DTYPES
from gen_jax.gans.progressive import HE, Discriminator, blurred, grown, leaky
from gen_jax.gans.style_layers import (
    BOX,
    EPSILON,
    EqualizedConv,
    EqualizedDense,
    check_model,
    noise,
    pixel_norm,
    sizes_up_to,
    width_at,
)
from gen_jax.gans.stylegan2 import StyleGenerator, fields

WHOLE = ('latent_dim', 'w_dim', 'channel_max', 'mapping_layers', 'mbstd_group')
CHOICES = {'dtype': DTYPES}


def instance_norm(x: jax.Array) -> jax.Array:
    """Mean 0 and mean square 1 over the pixels of each channel, float32: [b, h, w, c] -> same."""
    x = x.astype(jnp.float32)
    x = x - x.mean((1, 2), keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean((1, 2), keepdims=True) + EPSILON)


class Mapping(nn.Module):
    """The mapping network f: latents and embedded labels, normalised together, to w. float32.

    Attributes:
      width: of w and of all layers.
      layers: dense ones, after the label's embedding.
      rate: learning rate of the layers relative to the optimiser's.
      num_classes: 0: no labels.
    """

    width: int
    layers: int
    rate: float
    num_classes: int

    @nn.compact
    def __call__(self, z, label):
        """[b, d], int32 [b] or None -> w [b, width]."""
        if self.num_classes:
            init = nn.initializers.normal(1.0)
            table = nn.Embed(self.num_classes, z.shape[-1], embedding_init=init, name='embed')
            z = jnp.concatenate([z, table(label)], -1)  # [b, 2d]
        x = pixel_norm(z)
        for i in range(self.layers):
            x = leaky(EqualizedDense(self.width, self.rate, HE, name=f'dense_{i}')(x))
        return x


class Style(nn.Module):
    """What ends each layer: noise, bias, activation and AdaIN (equation 1; figure 1b)."""

    layer: int

    @nn.compact
    def __call__(self, x, w, keys):
        """[b, h, w, c], [b, w_dim] and keys [b] or None -> [b, h, w, c]."""
        c, dtype = x.shape[-1], x.dtype
        strength = self.param('noise_strength', nn.initializers.zeros, (c,))
        bias = self.param('bias', nn.initializers.zeros, (c,))
        drawn = noise(self, x.shape[1], self.layer, keys)  # [b, h, w, 1] or [h, w, 1]
        x = leaky(x + (strength * drawn + bias).astype(dtype))
        style = EqualizedDense(2 * c, name='affine')(w)[:, None, None, :]  # [b, 1, 1, 2c]
        scale, shift = jnp.split(style, 2, -1)
        return (instance_norm(x) * (1 + scale) + shift).astype(dtype)


class Synthesis(nn.Module):
    """The synthesis network g: one w per layer to an image. Attributes as of `Generator`."""

    image_size: int
    channels: int
    channel_base: int
    channel_max: int
    dtype: Any

    @nn.compact
    def __call__(self, ws, keys, size=None, alpha=1.0):
        """[b, num_ws, w_dim], keys [b] or None, as `Generator` says -> [b, size, size, c]."""
        width = width_at(4, self.channel_base, self.channel_max)
        x = self.param('const', nn.initializers.ones, (4, 4, width)).astype(self.dtype)
        x, images = jnp.broadcast_to(x, (len(ws), *x.shape)), []  # [b, 4, 4, width]
        for i, at in enumerate(sizes_up_to(size or self.image_size)):
            width, name = width_at(at, self.channel_base, self.channel_max), f'block_{at}'
            if i:
                up = EqualizedConv(width, 3, 'up', BOX, HE, use_bias=False, name=f'{name}_conv_0')
                x = blurred(up(x))  # [b, at, at, width]
            x = Style(2 * i, name=f'{name}_style_0')(x, ws[:, 2 * i], keys)
            x = EqualizedConv(width, gain=HE, use_bias=False, name=f'{name}_conv_1')(x)
            x = Style(2 * i + 1, name=f'{name}_style_1')(x, ws[:, 2 * i + 1], keys)
            to_rgb = EqualizedConv(self.channels, 1, name=f'{name}_to_rgb')
            images.append(to_rgb(x.astype(jnp.float32)))  # [b, at, at, channels]
        return grown(images, alpha)


class Generator(StyleGenerator):
    """StyleGAN's generator: attributes as of `StyleGenerator`.

    `__call__` and `synthesis` also take

        size: of the images, pixels; None: `image_size`, and only then are all parameters made.
        alpha: how far this size is faded in, in [0, 1]; traced.
    """

    W_AVG_DECAY = 0.995

    channel_base: int = 16384

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """As `StyleGenerator` needs them."""
        mapping = Mapping(self.w_dim, self.mapping_layers, self.mapping_rate, self.num_classes)
        synthesis = Synthesis(
            self.image_size, self.channels, self.channel_base, self.channel_max, self.dtype
        )
        return mapping, synthesis


def defaults() -> dict:
    """The networks' part of a config, `config.model`: small ones, for the 8x8 digits."""
    return {
        'latent_dim': 64,  # length of z
        'w_dim': 64,  # length of w
        'channel_base': 512,  # s x s pixels have min(channel_base // s, channel_max) channels
        'channel_max': 64,
        'mapping_layers': 2,  # of the mapping network; 8 in the paper
        'mapping_rate': 0.01,  # its learning rate relative to the optimiser's
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
    check_model(config, WHOLE, CHOICES)
    told, shared = fields(config, num_classes)
    discriminator = Discriminator(group=config.model.mbstd_group, blur=True, **shared)
    return Generator(**told, **shared), discriminator
