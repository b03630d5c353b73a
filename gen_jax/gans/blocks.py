"""Residual blocks that double or halve the size, which SNGAN, SAGAN and BigGAN have in common."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.gans.layers import BatchNorm, Conv, Dense, Embed, SelfAttention
from gen_jax.nn.resize import double, halve

INITS = {
    'orthogonal': nn.initializers.orthogonal(),
    'normal': nn.initializers.normal(0.02),
    'xavier': nn.initializers.xavier_uniform(),
}


@dataclasses.dataclass(frozen=True)
class Layers:
    """Makes a network's layers, part of the module that calls them, all with the same options.

    Attributes:
      train: whether norms use the batch's statistics, and spectral vectors are improved.
      spectral: whether weights are divided by their largest singular value.
      told_spectral: whether those are, by which norms are told of the class.
      epsilon: of the norms.
      weight_init: name of the weights' initial values, of `INITS`. Biases begin at 0.
      dtype: of the computation.
    """

    train: bool
    spectral: bool
    told_spectral: bool
    epsilon: float
    weight_init: str
    dtype: Any

    @property
    def _options(self) -> dict:
        options = {'train': self.train, 'spectral': self.spectral, 'dtype': self.dtype}
        return options | {'kernel_init': INITS[self.weight_init]}

    def conv3x3(self, width: int, name: str) -> Conv:
        """[b, h, w, c] -> [b, h, w, width]."""
        return Conv(width, (3, 3), padding=1, name=name, **self._options)

    def dense(self, width: int, name: str, use_bias: bool = True) -> Dense:
        """[..., c] -> [..., width]."""
        return Dense(width, use_bias=use_bias, name=name, **self._options)

    def embed(self, classes: int, width: int, name: str) -> Embed:
        """Labels [b] -> [b, width]."""
        options = self._options | {'embedding_init': INITS[self.weight_init]}
        del options['kernel_init']
        return Embed(classes, width, name=name, **options)

    def norm(self, name: str) -> BatchNorm:
        """[b, h, w, c] and y [b, e] or None -> [b, h, w, c]."""
        options = self._options | {'spectral': self.told_spectral}
        return BatchNorm(epsilon=self.epsilon, name=name, **options)

    def attention(self, name: str) -> SelfAttention:
        """[b, h, w, c] -> [b, h, w, c]."""
        return SelfAttention(name=name, **self._options)


def same(x: jax.Array) -> jax.Array:
    """The same."""
    return x


class UpBlock(nn.Module):
    """Doubles the size, normalising before each convolution."""

    width: int
    layers: Layers

    @nn.compact
    def __call__(self, x, y):
        """[b, h, w, c] and what the norms are told, [b, e] or None -> [b, 2h, 2w, width]."""
        layers = self.layers
        h = double(nn.relu(layers.norm('norm1')(x, y)))  # [b, 2h, 2w, c]
        h = layers.conv3x3(self.width, 'conv1')(h)  # [b, 2h, 2w, width]
        h = layers.conv3x3(self.width, 'conv2')(nn.relu(layers.norm('norm2')(h, y)))
        return h + double(layers.dense(self.width, 'conv_shortcut')(x))


class DownBlock(nn.Module):
    """May halve the size.

    Attributes:
      first: whether it takes the image itself, which has nothing to be rectified.
      shrinks: whether it halves the size.
      batch_norm: whether to normalise before each activation, and on the shortcut.
    """

    width: int
    layers: Layers
    first: bool
    shrinks: bool
    batch_norm: bool

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h/2, w/2, width], or [b, h, w, width] where it does not shrink."""
        layers = self.layers
        norm: Callable = layers.norm if self.batch_norm else lambda name: same
        shrink = halve if self.shrinks else same
        h = x if self.first else nn.relu(norm('norm1')(x))
        h = layers.conv3x3(self.width, 'conv1')(h)  # [b, h, w, width]
        h = layers.conv3x3(self.width, 'conv2')(nn.relu(norm('norm2')(h)))
        if self.shrinks or x.shape[-1] != self.width:
            # An image's norm sees what is left of it, as in StudioGAN.
            x = norm('norm_shortcut')(shrink(x)) if self.first else shrink(norm('norm_shortcut')(x))
            x = layers.dense(self.width, 'conv_shortcut')(x)  # [b, h', w', width]
        return shrink(h) + x


class BottleneckUp(nn.Module):
    """BigGAN-deep's block: four convolutions of a quarter of the channels; drops channels.

    Attributes:
      width: channels of the result, at most those that come.
      grows: whether it doubles the size.
    """

    width: int
    layers: Layers
    grows: bool

    @nn.compact
    def __call__(self, x, y):
        """[b, h, w, c] and what the norms are told, [b, e] -> [b, h', w', width]."""
        layers, hidden = self.layers, x.shape[-1] // 4
        grow = double if self.grows else same
        h = layers.dense(hidden, 'conv1')(nn.relu(layers.norm('norm1')(x, y)))  # [b, h, w, c/4]
        h = grow(nn.relu(layers.norm('norm2')(h, y)))  # [b, h', w', c/4]
        h = layers.conv3x3(hidden, 'conv2')(h)
        h = layers.conv3x3(hidden, 'conv3')(nn.relu(layers.norm('norm3')(h, y)))
        h = layers.dense(self.width, 'conv4')(nn.relu(layers.norm('norm4')(h, y)))
        return h + grow(x[..., : self.width])  # [b, h', w', width]


class BottleneckDown(nn.Module):
    """BigGAN-deep's block: four convolutions of a quarter of the channels; adds channels.

    Attributes:
      width: channels of the result, at least those that come.
      shrinks: whether it halves the size.
    """

    width: int
    layers: Layers
    shrinks: bool

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h', w', width]."""
        layers, c = self.layers, x.shape[-1]
        shrink = halve if self.shrinks else same
        h = layers.dense(self.width // 4, 'conv1')(nn.relu(x))  # [b, h, w, width/4]
        h = layers.conv3x3(self.width // 4, 'conv2')(nn.relu(h))
        h = layers.conv3x3(self.width // 4, 'conv3')(nn.relu(h))
        h = layers.dense(self.width, 'conv4')(shrink(nn.relu(h)))  # [b, h', w', width]
        x = shrink(x)  # [b, h', w', c]
        if self.width != c:
            new = layers.dense(self.width - c, 'conv_shortcut')(x)
            x = jnp.concatenate([x, new], -1)  # [b, h', w', width]
        return h + x
