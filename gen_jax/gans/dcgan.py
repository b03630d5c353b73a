"""DCGAN's networks: Radford, Metz and Chintala 2016, "... Deep Convolutional GANs".

They are those of github.com/soumith/dcgan.torch, with 64 channels next to the image and 4x4
kernels; the paper's authors (github.com/Newmu/dcgan_code) have 128 channels and 5x5 kernels.

The running variance is that of flax: an average of biased batch variances. PyTorch averages
unbiased ones, larger by n / (n - 1), n = b * h * w.

Options beside the paper's, for objectives that want them: a discriminator without batch norm, which
ties the examples of a batch to each other, or with spectral normalisation; labels; minibatch
discrimination.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen_jax.config import require, require_known, require_least
from gen_jax.gans.layers import DTYPES, MOMENTUM, Conv, Dense, MinibatchDiscrimination
from gen_jax.nn.conv import ConvTranspose

CONDITIONS = ('none', 'concat')
KERNEL_INIT = nn.initializers.normal(0.02)


def _norm(train: bool, dtype, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=1e-5,
        scale_init=lambda key, shape, dtype: 1 + KERNEL_INIT(key, shape, dtype),
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


class Generator(nn.Module):
    """Noise to images by transposed convolutions; no biases; batch norm in all but the last.

    Attributes:
      width: channels before the last layer.
      stages: doublings from 4x4 to the image.
      channels: of the image.
      latent_dim: length d of z.
      num_classes: k, told as a one-hot vector beside z (Mirza and Osindero 2014); 0: none.
      dtype: of the computation but for the last layer; parameters stay float32.
    """

    width: int
    stages: int
    channels: int
    latent_dim: int = 100
    num_classes: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, label=None, *, train: bool, keys=None):
        """Noise [b, d] and int32 [b] or None -> float32 images [b, s, s, channels] in [-1, 1].

        s is 4 * 2**stages; `keys` are ignored.
        """
        del keys
        if self.num_classes:
            z = jnp.concatenate([z, jax.nn.one_hot(label, self.num_classes)], -1)  # [b, d + k]
        x = z[:, None, None, :]  # [b, 1, 1, d]
        features = self.width * 2 ** (self.stages - 1)
        x = self._up(features, 1, 0, 'conv_0')(x)  # [b, 4, 4, features]
        x = nn.relu(_norm(train, self.dtype, 'norm_0')(x))
        for i in range(1, self.stages):
            features //= 2
            x = self._up(features, 2, 1, f'conv_{i}')(x)  # [b, 2 * h, 2 * w, c / 2]
            x = nn.relu(_norm(train, self.dtype, f'norm_{i}')(x))
        last = self._up(self.channels, 2, 1, f'conv_{self.stages}', jnp.float32)
        return nn.tanh(last(x.astype(jnp.float32)))  # [b, 2 * h, 2 * w, channels]

    def _up(self, features: int, stride: int, padding: int, name: str, dtype=None):
        return ConvTranspose(
            features,
            (4, 4),
            (stride, stride),
            padding,
            use_bias=False,
            kernel_init=KERNEL_INIT,
            dtype=dtype or self.dtype,
            name=name,
        )


class Discriminator(nn.Module):
    """Images to logits by strided convolutions; batch norm in all but first and last.

    What it finds, [b, 4 * 4 * f], is sown as 'features' into 'intermediates'.

    Attributes:
      width: channels after the first layer.
      stages: halvings from the image to 4x4.
      batch_norm: whether there is any; without it, convolutions have biases.
      spectral: whether kernels are divided by their largest singular value.
      num_classes: k, told as further channels, one-hot (Mirza and Osindero 2014); 0: none.
      minibatch_kernels: closenesses that minibatch discrimination tells the last layer; 0: none.
      dtype: of the computation but for the last layer; parameters stay float32.
    """

    width: int
    stages: int
    batch_norm: bool = True
    spectral: bool = False
    num_classes: int = 0
    minibatch_kernels: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, label=None, *, train: bool):
        """Images [b, s, s, c] in [-1, 1], s = 4 * 2**stages, int32 [b] -> float32 logits [b]."""
        if self.num_classes:
            told = jax.nn.one_hot(label, self.num_classes)[:, None, None, :]  # [b, 1, 1, k]
            told = jnp.broadcast_to(told, (*x.shape[:3], self.num_classes))
            x = jnp.concatenate([x, told], -1)  # [b, s, s, c + k]
        for i in range(self.stages):
            x = self._down(self.width * 2**i, train, f'conv_{i}')(x)  # [b, h / 2, w / 2, 2 * c]
            if i and self.batch_norm:
                x = _norm(train, self.dtype, f'norm_{i}')(x)
            x = nn.leaky_relu(x, 0.2)
        x = x.astype(jnp.float32)  # [b, 4, 4, f]
        features = x.reshape(len(x), -1)  # [b, 4 * 4 * f]
        self.sow('intermediates', 'features', features)
        options = {'strides': 1, 'padding': 'VALID', 'dtype': jnp.float32}
        logits = self._down(1, train, f'conv_{self.stages}', **options)(x)[:, 0, 0, 0]  # [b]
        if self.minibatch_kernels:
            options = {'spectral': self.spectral, 'train': train}
            near = MinibatchDiscrimination(self.minibatch_kernels, name='minibatch', **options)
            told = Dense(1, use_bias=False, kernel_init=KERNEL_INIT, name='nearness', **options)
            logits = logits + told(near(features)[:, features.shape[-1] :])[:, 0]
        return logits

    def _down(self, features, train: bool, name: str, strides=2, padding='SAME', dtype=None):
        return Conv(
            features,
            (4, 4),
            (strides, strides),
            padding,
            use_bias=not self.batch_norm,
            kernel_init=KERNEL_INIT,
            dtype=dtype or self.dtype,
            spectral=self.spectral,
            train=train,
            name=name,
        )


def defaults() -> dict:
    """The networks' part of a config, `config.model`; the numbers are dcgan.torch's."""
    return {
        'latent_dim': 100,  # length of z
        'width': 64,  # channels next to the image; doubled whenever the side is halved
        'condition': 'none',  # how labels are told: none, concat (beside z, as channels)
        'd_batch_norm': True,  # whether the discriminator has batch norm; the generator does
        'd_spectral': False,  # whether its kernels have spectral normalisation
        'minibatch_kernels': 0,  # of minibatch discrimination; 0: none
        'dtype': 'float32',  # of the computation: float32 or bfloat16
    }


def from_config(config, num_classes: int) -> tuple[Generator, Discriminator]:
    """The networks that `config.model` describes, for images as `config.data` says.

    Args:
      config: with `model` as in `defaults` and `data.{image_size, channels}`.
      num_classes: of the labels, where `model.condition` tells them.

    Raises:
      UserError: where the numbers do not fit each other.
    """
    model, size = config.model, config.data.image_size
    stages = max(size // 4, 1).bit_length() - 1
    sizes = '4 * 2**k with k >= 2: 16, 32, 64 (the paper), 128, ...'
    require(stages >= 2 and size == 4 * 2**stages, 'data.image_size', size, sizes)
    require_least('model', model, latent_dim=1, width=1, minibatch_kernels=0)
    require_known('model', model, condition=CONDITIONS, dtype=DTYPES)
    shared = {
        'num_classes': num_classes if model.condition == 'concat' else 0,
        'dtype': DTYPES[model.dtype],
    }
    generator = Generator(model.width, stages, config.data.channels, model.latent_dim, **shared)
    discriminator = Discriminator(
        model.width,
        stages,
        model.d_batch_norm,
        model.d_spectral,
        minibatch_kernels=model.minibatch_kernels,
        **shared,
    )
    return generator, discriminator
