"""PatchGAN's discriminator (Isola et al. 2017), as VQGAN has it: a logit for each patch.

Initial values and what the paper leaves open are those of CycleGAN's code, which Esser et al. 2021
take: normal kernels of deviation 0.02, gains of batch norm around 1. With width 64, 3 layers and
images of 3 channels it has 2,765,633 parameters, and sees patches of 70x70 pixels.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn.conv import conv

INIT = nn.initializers.normal(0.02)
WIDEST = 8  # multiples of the first width


def _gain(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """Images to logits of overlapping patches.

    Attributes:
      width: channels after the first convolution; doubled by each that follows, at most 8 times.
      layers: convolutions that halve the image; two more keep it but for a pixel.
      dtype: of the computation; parameters and statistics are float32.
    """

    width: int = 64
    layers: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[b, h, w, c] -> float32 logits [b, h', w'].

        With `train` batch norm is by the batch, whose statistics it keeps.
        """
        options = {'padding': 1, 'kernel_init': INIT, 'dtype': self.dtype}
        layer = partial(nn.Conv, kernel_size=(4, 4), conv_general_dilated=conv, **options)
        x = nn.leaky_relu(layer(self.width, strides=2, name='conv_0')(x), 0.2)
        for i in range(1, self.layers + 1):
            width = self.width * min(2**i, WIDEST)
            strides = 2 if i < self.layers else 1
            x = layer(width, strides=strides, use_bias=False, name=f'conv_{i}')(x)
            norm = partial(nn.BatchNorm, not train, momentum=0.9, scale_init=_gain)
            x = nn.leaky_relu(norm(use_fast_variance=False, name=f'norm_{i}')(x), 0.2)
            x = x.astype(self.dtype)
        x = layer(1, name=f'conv_{self.layers + 1}')(x)
        return x[..., 0].astype(jnp.float32)
