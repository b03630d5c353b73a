"""BigGAN and BigGAN-deep (Brock et al. 2019, "Large Scale GAN Training", appendix B).

Widths, initial values and what the paper leaves open are those of the authors' code in PyTorch
(github.com/ajbrock/BigGAN-PyTorch, BigGAN.py and BigGANdeep.py). Both networks have spectral
normalisation, all but the embedding that the generator's norms share.

The defaults are StudioGAN's network for CIFAR-10, with 9,416,196 and 2,415,170 parameters for 10
classes. Others, by the fields that differ, with the parameters for ImageNet's 1000 classes:

* at 128x128: latent_dim 120, g_multipliers (16, 16, 8, 4, 2, 1), d_multipliers (1, 2, 4, 8, 16,
  16), d_halvings 5, attention (64,), norm_epsilon 1e-5: 70,433,988 and 87,982,370;
* at 256x256: as before, but latent_dim 140, g_multipliers (16, 16, 8, 8, 4, 2, 1), d_multipliers
  (1, 2, 4, 8, 8, 16, 16) and d_halvings 6: 82,235,844 and 99,225,890;
* BigGAN-deep at 128x128: as at 128x128, but deep, latent_dim 128, channels 128: 50,244,484 and
  34,590,210;
* the authors' script for CIFAR-10: latent_dim 128, channels 64, d_multipliers (4, 4, 4, 4),
  attention (), shared_dim 0, hierarchical False, weight_init 'normal', norm_epsilon 1e-5: 4,304,387
  and 4,207,361 for 10 classes.
"""

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.config import require
from gen_jax.gans import resnet
from gen_jax.gans.blocks import INITS, BottleneckDown, BottleneckUp, Layers


class Generator(resnet.Generator):
    """BigGAN's: parts of z are told along the way, and the class by an embedding all norms share.

    The attributes are those of `resnet.Generator`, and

    Attributes:
      shared_dim: length of a class's vector; 0: each norm has its own gains and biases for each
        class, without spectral normalisation.
      hierarchical: whether z is cut into a part for the first layer and one for each block, whose
        norms are told of it besides the class; their number divides `latent_dim`.
    """

    latent_dim: int = 80
    channels: int = 96
    spectral: bool = True
    shared_dim: int = 128
    hierarchical: bool = True

    @property
    def told_spectral(self) -> bool:
        """Whether what makes gains and biases of the vectors has spectral normalisation too."""
        return self.spectral and (self.shared_dim > 0 or self.hierarchical)

    def told_class(self, label):
        """Labels [b] as vectors [b, e]; None where there are none."""
        if not self.num_classes or not self.shared_dim:
            return super().told_class(label)
        options = {'embedding_init': INITS[self.weight_init], 'dtype': self.dtype}
        return nn.Embed(self.num_classes, self.shared_dim, name='shared', **options)(label)

    def told(self, z, y):
        """Of z [b, d] and y [b, e]: what the first layer is told, and what each block's norms."""
        if not self.hierarchical:
            return super().told(z, y)
        first, *parts = jnp.split(z, len(self.multipliers), -1)  # [b, d / (1 + blocks)]
        return first, [joined(y, part) for part in parts]


class DeepGenerator(Generator):
    """BigGAN-deep's: two blocks for each doubling, all told of the class and the whole z.

    The attributes are those of `Generator`, of which it always is a hierarchical one.
    """

    def told(self, z, y):
        """Of z [b, d] and y [b, e]: what the first layer is told, and what each block's norms."""
        y = joined(y, z)  # [b, e + d]
        return y, [y] * (len(self.multipliers) - 1)

    def grow(self, x, y, width: int, layers: Layers, name: str):
        """[b, h, w, c] -> [b, 2h, 2w, width]."""
        x = BottleneckUp(x.shape[-1], layers, False, name=f'{name}_0')(x, y)  # [b, h, w, c]
        return BottleneckUp(width, layers, True, name=f'{name}_1')(x, y)


class DeepDiscriminator(resnet.Discriminator):
    """BigGAN-deep's: a convolution, then two blocks for each width but the first.

    The attributes are those of `resnet.Discriminator`, but that the first of `multipliers` is of
    the convolution, and `batch_norm` is not for it.
    """

    def enter(self, x, layers: Layers):
        """What goes into the first block, and the widths of all."""
        first, *widths = self.widths
        return layers.conv3x3(first, 'conv_in')(x), widths

    def shrink(self, x, width: int, layers: Layers, i: int):
        """Blocks i: [b, h, w, c] -> [b, h/2, w/2, width] or [b, h, w, width]."""
        x = BottleneckDown(width, layers, i < self.halvings, name=f'block_{i}_0')(x)
        return BottleneckDown(width, layers, False, name=f'block_{i}_1')(x)


def joined(y, z):
    """[b, e] or None, and [b, d] -> [b, e + d]."""
    return z if y is None else jnp.concatenate([y, z], -1)


def defaults() -> dict:
    """The networks' part of a config, `config.model`: BigGAN for CIFAR-10, as in StudioGAN."""
    changes = {'latent_dim': 80, 'channels': 96, 'attention': (16,)}
    kept = resnet.defaults() | changes
    for field in ('g_spectral', 'd_spectral', 'd_batch_norm'):
        del kept[field]
    return kept | {
        'deep': False,  # BigGAN-deep; the first of d_multipliers is then before all blocks
        'shared_dim': 128,  # length of the vector of a class, which the norms share; 0: none shared
        'hierarchical': True,  # each block is told of a part of z; of the whole, where deep
    }


def from_config(config, num_classes: int) -> tuple[Generator, resnet.Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: 0: neither takes a label, whatever `model.condition` is.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model = config.model
    resnet.check(config, stem=int(model.deep))
    require(model.shared_dim >= 0, 'model.shared_dim', model.shared_dim, '0 or more')
    whole = model.hierarchical or not model.deep
    require(whole, 'model.hierarchical', model.hierarchical, 'True where config.model.deep is')
    if model.deep:
        _check_bottlenecks(model)
    elif model.hierarchical:
        parts = len(model.g_multipliers)
        expected = f'a multiple of {parts}: a part for each of config.model.g_multipliers'
        require(model.latent_dim % parts == 0, 'model.latent_dim', model.latent_dim, expected)
    g_fields, d_fields = resnet.fields(config, num_classes)
    g_fields |= {'shared_dim': model.shared_dim, 'hierarchical': model.hierarchical}
    if model.deep:
        return DeepGenerator(**g_fields), DeepDiscriminator(**d_fields)
    return Generator(**g_fields), resnet.Discriminator(**d_fields)


def _check_bottlenecks(model) -> None:
    """Raises UserError where the shortcuts of BigGAN-deep's blocks cannot drop or add channels."""
    require(model.channels % 4 == 0, 'model.channels', model.channels, 'a multiple of 4 where deep')
    for field, falls in (('g_multipliers', True), ('d_multipliers', False)):
        given = list(model[field])
        expected = f'numbers that do not {"rise" if falls else "fall"} where deep'
        require(given == sorted(given, reverse=falls), f'model.{field}', model[field], expected)
