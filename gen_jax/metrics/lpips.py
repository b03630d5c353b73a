"""LPIPS, the learned perceptual image patch similarity (Zhang et al. 2018), version 0.1.

Distances are comparable within one network only; 'alex' is the paper's choice for judging images,
'vgg' that of training losses and of perceptual path length. After the lpips package (BSD), whose
linear heads it takes; the networks below them are torchvision's.
"""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.interop.tensors import read_tensors, to_variables
from gen_jax.interop.weights import WeightsFile, are_read, find
from gen_jax.metrics.features import alexnet, squeezenet, vgg16
from gen_jax.metrics.psnr import check_pair

# The scaling layer: ImageNet's mean and deviation, for pixels in [-1, 1].
SHIFT = np.float32([-0.030, -0.088, -0.188])
SCALE = np.float32([0.458, 0.448, 0.450])


class Net(NamedTuple):
    """What LPIPS stands on.

    Attributes:
      module: images -> its taps; a flax module class.
      backbone: the file of its weights.
      heads: the file of the weights of the linear layers above the taps.
      smallest_side: of an image, in pixels.
    """

    module: type[nn.Module]
    backbone: WeightsFile
    heads: WeightsFile
    smallest_side: int


def _heads(name: str, sha256: str) -> WeightsFile:
    folder = 'https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1'
    return WeightsFile(f'lpips-v0.1-{name}.pth', f'{folder}/{name}.pth', sha256)


NETS = {
    'alex': Net(
        alexnet.AlexNet,
        alexnet.WEIGHTS,
        _heads('alex', 'df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0'),
        alexnet.SMALLEST_SIDE,
    ),
    'vgg': Net(
        vgg16.VGG16,
        vgg16.WEIGHTS,
        _heads('vgg', 'a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868'),
        vgg16.SMALLEST_SIDE,
    ),
    'squeeze': Net(
        squeezenet.SqueezeNet,
        squeezenet.WEIGHTS,
        _heads('squeeze', '4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76'),
        squeezenet.SMALLEST_SIDE,
    ),
}


def lpips(variables: dict, x: jax.Array, y: jax.Array, net: str) -> jax.Array:
    """The distance of each pair of images, eq. 1; [b].

    Args:
      variables: from `load`, or `LPIPS(net).init` for random ones.
      x: float images [b, h, w, c] in [-1, 1]; c is 3, or 1 for grey, which is repeated.
      y: images to compare them with, of the same shape.
      net: 'alex', 'vgg' or 'squeeze'; sides of at least 31, 16 or 17 pixels.

    Returns:
      0 for identical images (to rounding of some 1e-12), not bounded above; symmetric.

    Raises:
      UserError: for an unknown network, or images that are no pair, too small, or not RGB or grey.
    """
    _check_net(net)
    x, y = check_pair(x, y, NETS[net].smallest_side, f"LPIPS's network {net!r}")
    if x.shape[-1] not in (1, 3):
        raise UserError(f'LPIPS of images with {x.shape[-1]} channels, expected 3, or 1 for grey')
    return LPIPS(net).apply(variables, x, y)


def load(
    net: str, backbone: str | Path = '', heads: str | Path = '', section: str = 'eval'
) -> dict:
    """The variables that `lpips` takes, float32, of the published weights or one's own.

    Zeros within `gen_jax.interop.weights.shapes_only`.

    Args:
      net: 'alex', 'vgg' or 'squeeze'.
      backbone: torchvision's file, .pth or .safetensors, whose classifier is left out; '': the
        cache, or a download of `NETS[net].backbone`.
      heads: the lpips package's file of version 0.1; '': likewise, `NETS[net].heads`.
      section: of the config, whose fields say where these are.

    Raises:
      UserError: for an unknown network, a file that is missing, damaged or of another network.
    """
    _check_net(net)
    side = NETS[net].smallest_side
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    described = jax.eval_shape(LPIPS(net).init, jax.random.key(0), image, image)
    if not are_read():
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), described)
    params = described['params']
    shapes = {'net': {'params': params.pop('net')}, 'heads': {'params': params}}
    loaded = {}
    for part, file, path, option, ignore in (
        ('net', NETS[net].backbone, backbone, 'weights', r'classifier\..*'),
        ('heads', NETS[net].heads, heads, 'heads', ''),
    ):
        place = find(file, path, f'--config.{section}.perceptual_{option}=FILE')
        loaded[part] = to_variables(read_tensors(place), shapes[part], place, ignore=ignore)
    return {'params': {'net': loaded['net']['params'], **loaded['heads']['params']}}


class LPIPS(nn.Module):
    """The backbone, called 'net', and the linear heads above its taps.

    Attributes:
      net: 'alex', 'vgg' or 'squeeze'.
    """

    net: str

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Two batches of images [b, h, w, 3] in [-1, 1] -> distances [b]."""
        images = (jnp.concatenate([x, y]) - SHIFT) / SCALE  # [2b, h, w, 3]
        distance = 0.0
        for i, tap in enumerate(NETS[self.net].module(name='net')(images)):
            a, b = jnp.split(_unit(tap), 2)
            # The head is linear: applied to the mean over places, it gives the mean of its values.
            square = ((a - b) ** 2).mean((1, 2))  # [b, c]
            head = nn.Dense(1, use_bias=False, precision='highest', name=f'lin{i}.model.1')
            distance += head(square)[:, 0]
        return distance


def _unit(x):
    """Channels of length 1, or 0 where all are 0; taps are rectified, so gradients are 0 there."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)


def _check_net(net):
    if net not in NETS:
        raise UserError(f'LPIPS over net={net!r}, expected one of {", ".join(NETS)}')
