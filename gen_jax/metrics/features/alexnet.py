"""AlexNet (Krizhevsky 2014, "one weird trick") up to its last rectifier, for LPIPS.

Layers bear torchvision's names, so that its file of weights fits.
"""

import flax.linen as nn
import jax

from gen_jax.interop.weights import WeightsFile

WEIGHTS = WeightsFile(
    'alexnet-owt-7be5be79.pth',
    'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth',
    '7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02',
)
SMALLEST_SIDE = 31
# Position in torchvision's `features`, channels, side of the kernel, stride, padding.
LAYERS = (
    (0, 64, 11, 4, 2),
    (3, 192, 5, 1, 2),
    (6, 384, 3, 1, 1),
    (8, 256, 3, 1, 1),
    (10, 256, 3, 1, 1),
)
# A maximum over 3x3 by 2 comes before these.
POOLED = (3, 6)


class AlexNet(nn.Module):
    """The convolutions of AlexNet in inference mode."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Normalised images [b, h, w, 3] -> the five rectified convolutions, relu1 to relu5.

        Of 64, 192, 384, 256 and 256 channels, at 1/4, 1/8, 1/16, 1/16 and 1/16 of the sides, less
        the borders; sides are at least 31.
        """
        taps = []
        for i, channels, side, stride, padding in LAYERS:
            if i in POOLED:
                x = nn.max_pool(x, (3, 3), (2, 2))
            conv = nn.Conv(
                channels,
                (side, side),
                stride,
                padding=padding,
                precision='highest',
                name=f'features.{i}',
            )
            x = nn.relu(conv(x))
            taps.append(x)
        return tuple(taps)
