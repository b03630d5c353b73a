"""The residual networks of SNGAN, SAGAN, WGAN-GP and AC-GAN.

Miyato et al. 2018 ("Spectral Normalization for Generative Adversarial Networks", tables 4 and 5)
and Miyato and Koyama 2018 ("cGANs with Projection Discriminator", eq. 3); Zhang et al. 2019
("Self-Attention Generative Adversarial Networks"); the classifier of Odena et al. 2017
("Conditional Image Synthesis with Auxiliary Classifier GANs"). Widths, initial values and what no
paper says are those of StudioGAN (github.com/POSTECH-CVLab/PyTorch-StudioGAN, models/resnet.py),
but for one thing: there the activation before a discriminator's block works in place and rectifies
the shortcut as well. Here the shortcut has the input itself, as in the code of Miyato et al.

For CIFAR-10 with 10 classes the defaults have 4,304,387 and 1,055,105 parameters, and with
`spectral` of both and attention at 16, as SAGAN has, 4,386,308 and 1,075,586.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.config import are_whole, require, require_known, require_least
from gen_jax.gans.blocks import INITS, DownBlock, Layers, UpBlock
from gen_jax.gans.layers import DTYPES

CONDITIONS = ('none', 'projection', 'auxiliary')


class Generator(nn.Module):
    """Noise to images, told of the class by every norm but the last.

    Attributes:
      latent_dim: length of z.
      channels: the widths are multiples of it.
      multipliers: of the first feature map, then of what each block makes of it.
      base_size: pixels of the first feature map; each block doubles them.
      attention: sizes of feature maps, in pixels, after whose blocks attention comes.
      num_classes: 0: it takes no label.
      out_channels: of the image.
      spectral: whether weights are divided by their largest singular value.
      epsilon: of batch norm.
      weight_init: of the weights, a name of `gen_jax.gans.blocks.INITS`.
      dtype: of the computation but for the last layer; parameters and images are float32.
    """

    latent_dim: int = 128
    channels: int = 64
    multipliers: tuple[int, ...] = (4, 4, 4, 4)
    base_size: int = 4
    attention: tuple[int, ...] = ()
    num_classes: int = 0
    out_channels: int = 3
    spectral: bool = False
    epsilon: float = 1e-4
    weight_init: str = 'orthogonal'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None):
        """The images of z.

        Args:
          z: float32 [b, latent_dim], standard normal.
          label: int32 [b] below `num_classes`; ignored where that is 0.
          train: whether norms use the batch's statistics, and spectral vectors are improved.
          keys: ignored: there is no noise but z.

        Returns:
          float32 [b, s, s, out_channels] in [-1, 1], s = base_size * 2 ** (number of blocks).
        """
        del keys
        layers = Layers(
            train, self.spectral, self.told_spectral, self.epsilon, self.weight_init, self.dtype
        )
        z, told = self.told(z.astype(self.dtype), self.told_class(label))
        width, *widths = [self.channels * multiplier for multiplier in self.multipliers]
        x = layers.dense(self.base_size**2 * width, 'dense')(z)
        x = x.reshape(-1, self.base_size, self.base_size, width)  # [b, base, base, width]
        for i, (width, y) in enumerate(zip(widths, told, strict=True)):
            x = self.grow(x, y, width, layers, f'block_{i}')  # [b, 2h, 2w, width]
            if x.shape[1] in self.attention:
                x = layers.attention(f'attention_{i}')(x)
        x = nn.relu(layers.norm('norm_out')(x))
        last = dataclasses.replace(layers, dtype=jnp.float32)
        x = last.conv3x3(self.out_channels, 'conv_out')(x)  # [b, s, s, out_channels]
        return jnp.tanh(x)

    def told_class(self, label):
        """Labels [b] as vectors [b, e]; None where there are none."""
        return (
            jax.nn.one_hot(label, self.num_classes, dtype=self.dtype) if self.num_classes else None
        )

    @property
    def told_spectral(self) -> bool:
        """Whether what makes gains and biases of the vectors has spectral normalisation too."""
        return self.spectral

    def told(self, z, y):
        """Of z [b, d] and y [b, e]: what the first layer is told, and what each block's norms."""
        return z, [y] * (len(self.multipliers) - 1)

    def grow(self, x, y, width: int, layers: Layers, name: str):
        """[b, h, w, c] -> [b, 2h, 2w, width]."""
        return UpBlock(width, layers, name=name)(x, y)


class Discriminator(nn.Module):
    """Images to logits of being real.

    What it finds, [b, f], is sown as 'features' into 'intermediates', and with the head 'auxiliary'
    the logits of the class, [b, num_classes], as 'class_logits'.

    Attributes:
      channels: the widths are multiples of it.
      multipliers: one for each block.
      halvings: so many blocks, the first ones, halve the size.
      attention: sizes of feature maps, in pixels, after whose blocks attention comes.
      num_classes: 0: it takes no label.
      head: how a label is told. 'projection': the features' product with a vector of the class is
        added to the logit. 'auxiliary': it is not told, but guessed.
      spectral: whether weights are divided by their largest singular value.
      batch_norm: whether blocks normalise.
      epsilon: of batch norm.
      weight_init: of the weights, a name of `gen_jax.gans.blocks.INITS`.
      dtype: of the computation but for the heads; parameters, features and logits are float32.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (2, 2, 2, 2)
    halvings: int = 2
    attention: tuple[int, ...] = ()
    num_classes: int = 0
    head: str = 'projection'
    spectral: bool = True
    batch_norm: bool = False
    epsilon: float = 1e-4
    weight_init: str = 'orthogonal'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """The logits of images.

        Args:
          x: float32 [b, h, w, c] in [-1, 1]; height and width divisible by 2**halvings.
          label: int32 [b] below `num_classes`; used with the head 'projection' only.
          train: whether norms use the batch's statistics, and spectral vectors are improved.

        Returns:
          float32 [b].
        """
        layers = self.layers(train, self.dtype)
        x, widths = self.enter(x.astype(self.dtype), layers)
        for i, width in enumerate(widths):
            x = self.shrink(x, width, layers, i)  # [b, h', w', width]
            if x.shape[1] in self.attention:
                x = layers.attention(f'attention_{i}')(x)
        features = nn.relu(x).astype(jnp.float32).sum((1, 2))  # [b, width]
        self.sow('intermediates', 'features', features)
        return self.judge(features, label, self.layers(train, jnp.float32))

    def layers(self, train: bool, dtype) -> Layers:
        """What makes the layers."""
        return Layers(train, self.spectral, self.spectral, self.epsilon, self.weight_init, dtype)

    @property
    def widths(self) -> list[int]:
        """The multiples of `channels`."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def enter(self, x, layers: Layers):
        """What goes into the first block, and the widths of all."""
        del layers
        return x, self.widths

    def shrink(self, x, width: int, layers: Layers, i: int):
        """Block i: [b, h, w, c] -> [b, h/2, w/2, width] or [b, h, w, width]."""
        options = {'first': i == 0, 'shrinks': i < self.halvings, 'batch_norm': self.batch_norm}
        return DownBlock(width, layers, **options, name=f'block_{i}')(x)

    def judge(self, features, label, layers: Layers):
        """Features [b, f] and labels [b] -> logits [b]."""
        logits = layers.dense(1, 'dense')(features)[:, 0]  # [b]
        if self.num_classes and self.head == 'projection':
            rows = layers.embed(self.num_classes, features.shape[-1], 'embedding')(label)  # [b, f]
            logits = logits + (rows * features).sum(-1)
        elif self.num_classes:
            classify = layers.dense(self.num_classes, 'classifier', use_bias=False)
            self.sow('intermediates', 'class_logits', classify(features))
        return logits


def defaults() -> dict:
    """The networks' part of a config, `config.model`: SNGAN for CIFAR-10."""
    return {
        'latent_dim': 128,  # length of z
        'channels': 64,  # all widths are multiples of it
        'g_multipliers': (
            4,
            4,
            4,
            4,
        ),  # the generator's first feature map, then after each doubling
        'd_multipliers': (2, 2, 2, 2),  # after each of the discriminator's blocks
        'd_halvings': 2,  # of these, so many halve the size, the first ones
        'attention': (),  # sizes of feature maps, in pixels, that get attention in both networks
        'condition': 'projection',  # how labels are told: none, projection, auxiliary (AC-GAN)
        'g_spectral': False,  # whether the generator's weights have spectral normalisation
        'd_spectral': True,  # whether the discriminator's have
        'd_batch_norm': False,  # whether the discriminator has batch norm; the generator does
        'norm_epsilon': 1e-4,  # added to the variance by batch norm
        'weight_init': 'orthogonal',  # orthogonal, normal (deviation 0.02), xavier (uniform)
        'dtype': 'float32',  # what the networks compute in: float32, bfloat16
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: 0: neither takes a label, whatever `model.condition` is.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    check(config)
    g_fields, d_fields = fields(config, num_classes)
    model = config.model
    g_fields['spectral'] = model.g_spectral
    d_fields |= {'spectral': model.d_spectral, 'batch_norm': model.d_batch_norm}
    return Generator(**g_fields), Discriminator(**d_fields)


def fields(config, num_classes: int) -> tuple[dict, dict]:
    """What BigGAN's networks have in common with these, of `config.model`."""
    model, data = config.model, config.data
    both = {
        'channels': model.channels,
        'attention': tuple(model.attention),
        'num_classes': 0 if model.condition == 'none' else num_classes,
        'epsilon': model.norm_epsilon,
        'weight_init': model.weight_init,
        'dtype': DTYPES[model.dtype],
    }
    generator = {
        'latent_dim': model.latent_dim,
        'multipliers': tuple(model.g_multipliers),
        'base_size': data.image_size // 2 ** (len(model.g_multipliers) - 1),
        'out_channels': data.channels,
    }
    discriminator = {
        'multipliers': tuple(model.d_multipliers),
        'halvings': model.d_halvings,
        'head': 'projection' if model.condition == 'none' else model.condition,
    }
    return both | generator, both | discriminator


def check(config, stem: int = 0) -> None:
    """Raises UserError where `config.model` does not fit itself or the data.

    Args:
      config: as `from_config` takes it.
      stem: how many of `d_multipliers` are not of blocks.
    """
    model = config.model
    require_least('model', model, latent_dim=1, channels=1)
    require_known('model', model, condition=CONDITIONS, weight_init=INITS, dtype=DTYPES)
    fits = 0 < model.norm_epsilon < math.inf
    require(fits, 'model.norm_epsilon', model.norm_epsilon, 'a positive number, and finite')
    for field, fewest in (('g_multipliers', 2), ('d_multipliers', 1 + stem)):
        good = len(model[field]) >= fewest and are_whole(model[field])
        require(
            good, f'model.{field}', model[field], f'{fewest} or more whole numbers of at least 1'
        )
    _check_sizes(config, stem)


def _check_sizes(config, stem: int) -> None:
    model, size = config.model, config.data.image_size
    doublings, blocks = len(model.g_multipliers) - 1, len(model.d_multipliers) - stem
    good = 0 <= model.d_halvings <= blocks
    require(good, 'model.d_halvings', model.d_halvings, f'a number from 0 to {blocks}')
    step = 2 ** max(doublings, model.d_halvings)
    require(
        size % step == 0,
        'data.image_size',
        size,
        f'a multiple of {step}, for {doublings} doublings (config.model.g_multipliers) and '
        f'{model.d_halvings} halvings (config.model.d_halvings)',
    )
    maps = {size >> i: width for i, width in enumerate(reversed(model.g_multipliers[1:]))}
    for i, width in enumerate(model.d_multipliers[stem:], 1):
        side = size >> min(i, model.d_halvings)
        maps[side] = min(width, maps.get(side, width))
    wide = sorted(n for n, width in maps.items() if n % 2 == 0 and width * model.channels >= 8)
    require(
        set(model.attention) <= set(wide),
        'model.attention',
        model.attention,
        f'even sizes of feature maps with 8 channels or more, which here are {wide}',
    )
