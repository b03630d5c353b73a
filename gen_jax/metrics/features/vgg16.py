"""VGG-16 (Simonyan & Zisserman 2015, configuration D) up to its last rectifier, for LPIPS.

Layers bear torchvision's names, so that its file of weights fits.
"""

import flax.linen as nn
import jax

from gen_jax.interop.weights import WeightsFile

WEIGHTS = WeightsFile(
    'vgg16-397923af.pth',
    'https://download.pytorch.org/models/vgg16-397923af.pth',
    '397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0',
)
SMALLEST_SIDE = 16
# (channels, position of each convolution in torchvision's `features`) of the five stages.
STAGES = (
    (64, (0, 2)),
    (128, (5, 7)),
    (256, (10, 12, 14)),
    (512, (17, 19, 21)),
    (512, (24, 26, 28)),
)


class VGG16(nn.Module):
    """The convolutions of VGG-16 in inference mode."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Normalised images [b, h, w, 3] -> relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.

        Of [b, h / 2^i, w / 2^i, c] for i = 0 to 4, c = 64, 128, 256, 512, 512; sides are at
        least 16.
        """
        taps = []
        for channels, positions in STAGES:
            if taps:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in positions:
                conv = nn.Conv(
                    channels, (3, 3), padding=1, precision='highest', name=f'features.{i}'
                )
                x = nn.relu(conv(x))
            taps.append(x)
        return tuple(taps)
