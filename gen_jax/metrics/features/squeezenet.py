"""SqueezeNet 1.1 (Iandola et al. 2016) up to its last fire module, for LPIPS.

Layers bear torchvision's names, so that its file of weights fits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.interop.weights import WeightsFile

WEIGHTS = WeightsFile(
    'squeezenet1_1-b8a52dc0.pth',
    'https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth',
    'b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b',
)
SMALLEST_SIDE = 17
# {position in torchvision's `features`: channels of (squeeze, each expand)}.
FIRES = {
    3: (16, 64),
    4: (16, 64),
    6: (32, 128),
    7: (32, 128),
    9: (48, 192),
    10: (48, 192),
    11: (64, 256),
    12: (64, 256),
}
# A maximum over 3x3 by 2 comes before POOLED; LPIPS looks at what TAPPED give.
POOLED = (3, 6, 9)
TAPPED = (4, 7, 9, 10, 11, 12)


class Fire(nn.Module):
    """1x1 convolutions down to `squeeze` channels, then `expand` of 1x1 beside `expand` of 3x3."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h, w, 2 * expand]."""
        x = _conv_relu(x, self.squeeze, 1, 'squeeze')
        left = _conv_relu(x, self.expand, 1, 'expand1x1')
        return jnp.concatenate([left, _conv_relu(x, self.expand, 3, 'expand3x3', padding=1)], -1)


class SqueezeNet(nn.Module):
    """The convolutions of SqueezeNet 1.1 in inference mode."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Normalised images [b, h, w, 3] -> the ends of the lpips package's seven slices.

        The rectified first convolution, of 64 channels at 1/2 of the sides; then fire modules, of
        128 channels at 1/4, 256 at 1/8, and 384, 384, 512, 512 at 1/16; sides are at least 17.
        """
        x = _conv_relu(x, 64, 3, 'features.0', strides=2)
        taps = [x]
        for i, (squeeze, expand) in FIRES.items():
            if i in POOLED:
                x = _max_pool_ceil(x)
            x = Fire(squeeze, expand, name=f'features.{i}')(x)
            if i in TAPPED:
                taps.append(x)
        return tuple(taps)


def _conv_relu(x, channels, side, name, strides=1, padding=0):
    conv = nn.Conv(channels, (side, side), strides, padding=padding, precision='highest', name=name)
    return nn.relu(conv(x))


def _max_pool_ceil(x):
    """3x3 by 2; a window that begins inside the image counts even if it ends outside."""
    return nn.max_pool(x, (3, 3), (2, 2), [(0, 1 - side % 2) for side in x.shape[1:3]])
