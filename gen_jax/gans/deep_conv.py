"""StudioGAN's networks for DCGAN and LSGAN on CIFAR-10: unlike the paper's, at every size twice.

After github.com/POSTECH-CVLab/PyTorch-StudioGAN (models/deep_conv.py at 947b35e): a generator that
ends in a 3x3 convolution, and a discriminator of a 3x3 and a strided 4x4 convolution at each size,
with ReLU in both, sums over pixels before the last layer, and orthogonal initial values. Networks
that look like the paper's are gen_jax.gans.dcgan's.

Without labels the defaults have 3,812,355 and 2,931,009 parameters.
"""

import flax.linen as nn

from gen_jax.config import require, require_least
from gen_jax.gans.layers import BatchNorm, Conv, Dense
from gen_jax.nn.conv import ConvTranspose

INIT = nn.initializers.orthogonal()
EPSILON = 1e-4  # of batch norm
STAGES = 3  # doublings from 4x4 pixels, and halvings


class Generator(nn.Module):
    """Noise to images of 32x32 pixels.

    Attributes:
      latent_dim: length of z.
      width: channels before the last layer; eight times as many at 4x4 pixels.
      channels: of the image.
    """

    latent_dim: int = 128
    width: int = 64
    channels: int = 3

    num_classes = 0  # told of none
    base_size = 4  # pixels of the first map

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None):
        """Noise [b, latent_dim] -> float32 images [b, 32, 32, channels] in [-1, 1].

        `label` and `keys` are ignored.
        """
        del label, keys
        c, side = self.width * 2**STAGES, self.base_size
        x = nn.Dense(side**2 * c, kernel_init=INIT, name='dense')(z).reshape(-1, side, side, c)
        for i in range(STAGES):
            c //= 2
            up = {'kernel_init': INIT, 'name': f'conv_{i}'}
            x = ConvTranspose(c, (4, 4), (2, 2), 1, **up)(x)  # [b, 2h, 2w, c]
            x = nn.relu(BatchNorm(train, EPSILON, name=f'norm_{i}')(x))
        x = Conv(self.channels, (3, 3), kernel_init=INIT, name='conv_out')(x)
        return nn.tanh(x)


class Discriminator(nn.Module):
    """Images to logits; the last hidden values, [b, 8 * width], are sown as 'features'.

    Attributes:
      width: channels of the largest size; twice as many of each that follows.
      spectral: whether weights are divided by their largest singular value, instead of batch norm.
    """

    width: int = 64
    spectral: bool = False

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """Images [b, h, w, c] in [-1, 1], sides divisible by 8 -> float32 logits [b].

        `label` is ignored.
        """
        del label
        options = {'spectral': self.spectral, 'train': train, 'kernel_init': INIT}

        def normalised(x, name):
            return x if self.spectral else BatchNorm(train, EPSILON, name=name)(x)

        for i in range(STAGES):
            c = self.width * 2**i
            x = Conv(c, (3, 3), name=f'conv_{i}_0', **options)(x)  # [b, h, w, c]
            x = nn.relu(normalised(x, f'norm_{i}_0'))
            x = Conv(c, (4, 4), 2, padding=1, name=f'conv_{i}_1', **options)(x)  # [b, h/2, w/2, c]
            x = nn.relu(normalised(x, f'norm_{i}_1'))
        x = Conv(self.width * 2**STAGES, (3, 3), name='conv_out', **options)(x)
        features = nn.relu(normalised(x, 'norm_out')).sum((1, 2))  # [b, 8 * width]
        self.sow('intermediates', 'features', features)
        return Dense(1, name='dense', **options)(features)[:, 0]


def defaults() -> dict:
    """The networks' part of a config, `config.model`; the numbers are StudioGAN's."""
    return {
        'latent_dim': 128,  # length of z
        'width': 64,  # channels at 32x32 pixels; doubled whenever the side is halved
        'd_spectral': False,  # whether the discriminator's weights are, instead of batch norm
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: of the labels, which these networks are not told.

    Raises:
      UserError: where the numbers do not fit.
    """
    del num_classes
    model, data = config.model, config.data
    size = Generator.base_size * 2**STAGES
    require(data.image_size == size, 'data.image_size', data.image_size, f'{size}, with deep_conv')
    require_least('model', model, latent_dim=1, width=1)
    generator = Generator(model.latent_dim, model.width, data.channels)
    return generator, Discriminator(model.width, model.d_spectral)
