"""Networks of dense layers: those of the first GANs, and of toy problems.

Goodfellow et al. 2014 (section 5): the discriminator has maxout units (Goodfellow et al. 2013) and
dropout. Units of one piece are rectified instead. Told labels, both nets see them beside their
input or, as Mirza and Osindero 2014 (section 4.1) have it, give z, or the image, and the label a
first layer of its own each, whose values meet. That paper drops values of the generator's layers
too, which is left out here. Both papers' last layer is a sigmoid, for pixels in [0, 1]; here it is
a hyperbolic tangent, for [-1, 1], which is the same function of twice its input.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import are_whole, require, require_known, require_least
from gen_jax.errors import UserError
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
      label_width: of a first layer of the label's own; 0: the label is told beside z.
      output: 'tanh', or 'linear' for data that are no pixels.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    latent_dim: int
    num_classes: int
    label_width: int
    output: str

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None):
        """Noise [b, d] and int32 [b] or None -> float32 images [b, h, w, c]."""
        del train, keys

        def layer(x, width, name):
            return nn.relu(nn.Dense(width, kernel_init=XAVIER, name=name)(x))

        x, apart = _told(z, label, self.num_classes, self.label_width)
        for i, width in enumerate(self.widths):
            x = layer(x, width, f'dense_{i}')  # [b, width]
            if i == 0 and apart is not None:
                x = jnp.concatenate([x, layer(apart, self.label_width, 'label')], -1)
        x = nn.Dense(math.prod(self.shape), kernel_init=XAVIER, name='out')(x)
        x = x.reshape(-1, *self.shape)  # [b, h, w, c]
        return jnp.tanh(x) if self.output == 'tanh' else x


class Discriminator(nn.Module):
    """Images, and the label where it is told, to logits; sows its last hidden layer as 'features'.

    Packed (PacGAN: Lin et al. 2018, section 2), it sees m neighbours of the batch as one input, and
    has one logit and one row of features for them.

    Attributes:
      widths: of the hidden layers.
      pieces: for each layer, linear functions of which a maxout unit is the largest; 1: rectified
        units.
      dropout: share of hidden values that are dropped in training.
      spectral: whether weights are divided by their largest singular value.
      num_classes: k; 0: no labels.
      label_width: of a first layer of the label's own; 0: the label is told beside the image.
      minibatch_kernels: closenesses that minibatch discrimination tells the last layer; 0: none.
      packing: m, images that are judged together; 1: each alone.
    """

    widths: tuple[int, ...]
    pieces: tuple[int, ...]
    dropout: float
    spectral: bool
    num_classes: int
    label_width: int
    minibatch_kernels: int
    packing: int = 1

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """Images [b, h, w, c], int32 [b] or None -> logits [b / m]; training: rng 'dropout'."""

        def layer(x, width, pieces, name):
            x = self._dense(width * pieces, train, name)(x)
            x = x.reshape(-1, width, pieces).max(-1) if pieces > 1 else nn.relu(x)
            return Dropout(self.dropout, deterministic=not train)(x)

        def packed(x):  # [b, n] -> [b / m, m n]; b / m is b below
            return x.reshape(-1, self.packing * x.shape[-1])

        x, apart = _told(x.reshape(len(x), -1), label, self.num_classes, self.label_width)
        x = packed(x)
        for i, (width, pieces) in enumerate(zip(self.widths, self.pieces, strict=True)):
            x = layer(x, width, pieces, f'dense_{i}')  # [b, width]
            if i == 0 and apart is not None:
                told = layer(packed(apart), self.label_width, pieces, 'label')
                x = jnp.concatenate([x, told], -1)
        self.sow('intermediates', 'features', x)
        if self.minibatch_kernels:
            options = {'spectral': self.spectral, 'train': train, 'name': 'minibatch'}
            x = MinibatchDiscrimination(self.minibatch_kernels, **options)(x)
        return self._dense(1, train, 'out')(x)[:, 0]

    def _dense(self, width, train, name):
        return Dense(width, kernel_init=XAVIER, spectral=self.spectral, train=train, name=name)


def _told(x, label, num_classes, label_width):
    """What the first layer sees of vectors x [b, d], and what the label's own sees, None: no such.

    The label [b] is one-hot, [b, k]: after x where it has no layer of its own.
    """
    if not num_classes:
        return x, None
    label = jax.nn.one_hot(label, num_classes)
    return (x, label) if label_width else (jnp.concatenate([x, label], -1), None)


def defaults() -> dict:
    """The networks' part of a config, `config.model`."""
    return {
        'latent_dim': 100,  # length of z
        'g_widths': (1200, 1200),  # of the generator's hidden layers
        'd_widths': (240, 240),  # of the discriminator's
        'pieces': (5, 5),  # of its maxout units, for each layer; 1: rectified units
        'dropout': 0.5,  # share of its hidden values that are dropped
        'd_spectral': False,  # whether its weights have spectral normalisation
        'condition': 'none',  # how labels are told: none, concat (beside z, and beside the image)
        'label_widths': (0, 0),  # of layers that the label has to itself in each net; 0: none
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
    require_least('model', model, latent_dim=1, minibatch_kernels=0, packing=1)
    for name in ('g_widths', 'd_widths'):
        good = len(model[name]) > 0 and are_whole(model[name])
        require(good, f'model.{name}', model[name], 'whole numbers of at least 1, one or more')
    per_layer = len(model.pieces) == len(model.d_widths) and are_whole(model.pieces)
    require(per_layer, 'model.pieces', model.pieces, 'a whole number for each of model.d_widths')
    _require_label_widths(model)
    require(0 <= model.dropout < 1, 'model.dropout', model.dropout, '0 or more, below 1')
    require_known('model', model, condition=CONDITIONS, output=OUTPUTS)
    classes = num_classes if model.condition == 'concat' else 0
    shape = (data.image_size, data.image_size, data.channels)
    of_g, of_d = model.label_widths
    generator = Generator(
        shape, tuple(model.g_widths), model.latent_dim, classes, of_g, model.output
    )
    discriminator = Discriminator(
        tuple(model.d_widths),
        tuple(model.pieces),
        model.dropout,
        model.d_spectral,
        classes,
        of_d,
        model.minibatch_kernels,
        model.packing,
    )
    return generator, discriminator


def _require_label_widths(model) -> None:
    widths = model.label_widths
    good = len(widths) == 2 and all(isinstance(x, int) and x >= 0 for x in widths)
    require(good, 'model.label_widths', widths, 'two whole numbers of 0 or more')
    if any(widths) and model.condition != 'concat':
        raise UserError(
            f'model.label_widths={widths} with model.condition={model.condition!r}: no label is '
            "told; set model.condition='concat'"
        )
