"""Networks of dense layers: those of the first GANs, and of toy problems.

Goodfellow et al. 2014 (section 5): the discriminator has maxout units (Goodfellow et al. 2013) and
dropout. With `pieces` 1 units are rectified instead. Told labels, both nets see them beside their
input, which is the idea of Mirza and Osindero 2014; their networks (section 4.1) give z, or the
image, and the label a layer of its own each before these meet. Both papers' last layer is a
sigmoid, for pixels in [0, 1]; here it is a hyperbolic tangent, for [-1, 1], which is the same
function of twice its input.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import are_whole, require, require_known, require_least
from gen_jax.gans.layers import Dense, MinibatchDiscrimination
from gen_jax.nn.dropout import Dropout

CONDITIONS = ('none', 'concat')
OUTPUTS = ('tanh', 'linear')
XAVIER = nn.initializers.xavier_uniform()


class Generator(nn.Module):
    """Noise, and the label where it is told, to an image by rectified layers.

    Attributes:
      shape: (h, w, c) of the image.
      widths: of the hidden layers.
      latent_dim: length d of z.
      num_classes: k; 0: no labels.
      output: 'tanh', or 'linear' for data that are no pixels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    latent_dim: int
    num_classes: int
    output: str

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None):
        """Noise [b, d] and int32 [b] or None -> float32 images [b, h, w, c]."""
        del train, keys
        x = _beside(z, label, self.num_classes)  # [b, d + k]
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, kernel_init=XAVIER, name=f'dense_{i}')(x))  # [b, width]
        x = nn.Dense(math.prod(self.shape), kernel_init=XAVIER, name='out')(x)
        x = x.reshape(-1, *self.shape)  # [b, h, w, c]
        return jnp.tanh(x) if self.output == 'tanh' else x


class Discriminator(nn.Module):
    """Images, and the label where it is told, to logits; sows its last hidden layer as 'features'.

    Packed (PacGAN: Lin et al. 2018, section 2), it sees m neighbours of the batch as one input, and
    has one logit and one row of features for them.

    Attributes:
      widths: of the hidden layers.
      pieces: linear functions of which a maxout unit is the largest; 1: rectified units.
      dropout: share of hidden values that are dropped in training.
      spectral: whether weights are divided by their largest singular value.
      num_classes: k; 0: no labels.
      minibatch_kernels: closenesses that minibatch discrimination tells the last layer; 0: none.
      packing: m, images that are judged together; 1: each alone.
    """

    widths: tuple[int, ...]
    pieces: int
    dropout: float
    spectral: bool
    num_classes: int
    minibatch_kernels: int
    packing: int = 1

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """Images [b, h, w, c], int32 [b] or None -> logits [b / m]; training: rng 'dropout'."""
        x = _beside(x.reshape(len(x), -1), label, self.num_classes)  # [b, h w c + k]
        x = x.reshape(-1, self.packing * x.shape[-1])  # [b / m, m (h w c + k)]; b / m is b below
        for i, width in enumerate(self.widths):
            x = self._dense(width * self.pieces, train, f'dense_{i}')(x)
            # [b, width]
            x = x.reshape(-1, width, self.pieces).max(-1) if self.pieces > 1 else nn.relu(x)
            x = Dropout(self.dropout, deterministic=not train)(x)
        self.sow('intermediates', 'features', x)
        if self.minibatch_kernels:
            options = {'spectral': self.spectral, 'train': train, 'name': 'minibatch'}
            x = MinibatchDiscrimination(self.minibatch_kernels, **options)(x)
        return self._dense(1, train, 'out')(x)[:, 0]

    def _dense(self, width, train, name):
        return Dense(width, kernel_init=XAVIER, spectral=self.spectral, train=train, name=name)


def _beside(x, label, num_classes):
    """Vectors x [b, d], and the label [b] as a one-hot vector after it."""
    if not num_classes:
        return x
    return jnp.concatenate([x, jax.nn.one_hot(label, num_classes)], -1)


def defaults() -> dict:
    """The networks' part of a config, `config.model`."""
    return {
        'latent_dim': 100,  # length of z
        'g_widths': (1200, 1200),  # of the generator's hidden layers
        'd_widths': (240, 240),  # of the discriminator's
        'pieces': 5,  # of its maxout units; 1: rectified units
        'dropout': 0.5,  # share of its hidden values that are dropped
        'd_spectral': False,  # whether its weights have spectral normalisation
        'condition': 'none',  # how labels are told: none, concat (beside z, and beside the image)
        'minibatch_kernels': 0,  # of minibatch discrimination; 0: none
        'packing': 1,  # images that the discriminator judges together (PacGAN); divides the batch
        'output': 'tanh',  # of the generator: tanh, linear
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: of the labels, where `model.condition` tells them.

    Raises:
      UserError: a number or name is out of bounds.
    """
    model, data = config.model, config.data
    require_least('model', model, latent_dim=1, pieces=1, minibatch_kernels=0, packing=1)
    for name in ('g_widths', 'd_widths'):
        good = len(model[name]) > 0 and are_whole(model[name])
        require(good, f'model.{name}', model[name], 'whole numbers of at least 1, one or more')
    require(0 <= model.dropout < 1, 'model.dropout', model.dropout, '0 or more, below 1')
    require_known('model', model, condition=CONDITIONS, output=OUTPUTS)
    classes = num_classes if model.condition == 'concat' else 0
    shape = (data.image_size, data.image_size, data.channels)
    generator = Generator(shape, tuple(model.g_widths), model.latent_dim, classes, model.output)
    discriminator = Discriminator(
        tuple(model.d_widths),
        model.pieces,
        model.dropout,
        model.d_spectral,
        classes,
        model.minibatch_kernels,
        model.packing,
    )
    return generator, discriminator
