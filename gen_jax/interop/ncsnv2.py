"""Weights of NCSNv2's networks to and from the authors' checkpoints, without torch.

Those of github.com/ermongroup/ncsnv2, which its README offers: exp/logs/NAME/checkpoint_STEP.pth.
"""

import functools
import operator
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import require
from gen_jax.diffusion.refinenet import DILATIONS, RefineNet
from gen_jax.errors import UserError
from gen_jax.interop import tensors as torch_tensors
from gen_jax.interop.noise import require_sigmas

# The authors' numbers of stages, from the finest, and of refinements, in the order of their run.
NUMBERS = {
    4: (('1', '2', '3', '4'), ('1', '2', '3', '4')),
    5: (('1', '2', '3', '4', '5'), ('1', '2', '3', '4', '5')),
    6: (('1', '2', '3', '31', '4', '5'), ('1', '2', '31', '3', '4', '5')),
}
PLACES = {'conv_in': 'begin_conv', 'norm_out': 'normalizer', 'conv_out': 'end_conv'}
LAYERS = {
    'norm1': 'normalize1',
    'conv1': 'conv1',
    'norm2': 'normalize2',
    'conv2': 'conv2',
    'conv_shortcut': 'shortcut',
}
POOLED = {'conv2': '.conv', 'conv_shortcut': '.conv'}  # added where the size is halved
REFINE_LAYERS = {
    'adapt': 'adapt_convs',
    'fuse': 'msf.convs',
    'pool': 'crp.convs',
    'out': 'output_convs',
}


def load(path: str | Path) -> tuple[RefineNet, dict]:
    """The network in one of the authors' checkpoints, and its averaged parameters.

    Args:
      path: a .pth, a list: named tensors, the optimiser's state, epoch, step, and the averages
        where any were kept; where not, the parameters themselves are meant.

    Returns:
      The module, for images as the file's, and its 'params' as float32 numpy arrays.

    Raises:
      UserError: as `tensors.read` does, and where the file holds something else.
    """
    tensors = read_checkpoint(path)
    net = _network(tensors, path)
    return net, from_reference(tensors, net, path)


def variables_of(config, net: RefineNet) -> dict:
    """The variables of a config's network from the file `config.init_from`.

    Args:
      config: of a diffusion model.
      net: the network that it makes.

    Returns:
      {'params': ...} of float32 numpy arrays.

    Raises:
      UserError: the file is of another network, or the config asks it something else.
    """
    path, prediction = config.init_from, config.diffusion.prediction
    expected = f"'score', which the weights in {path} are trained for"
    require(prediction == 'score', 'diffusion.prediction', prediction, expected)
    listed = isinstance(torch_tensors.read(path), list)
    tensors = read_checkpoint(path) if listed else torch_tensors.read_tensors(path)
    require_sigmas(config.diffusion, tensors, 'ladder', path)
    return {'params': from_reference(tensors, net, path)}


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one of the authors' checkpoints, parameters replaced by their averages.

    Args, errors: as of `load`.
    """
    tree = torch_tensors.read(path)
    try:
        state, _, _, _, *averages = tree
        parts = [_plain(part) for part in (state, *averages)]
    except (TypeError, ValueError, AttributeError):
        raise UserError(
            f'{path} is no checkpoint of ncsnv2: expected a list of 4 or 5 parts, of which the '
            'first holds tensors; read a file of tensors alone with gen_jax.interop.tensors'
        ) from None
    return functools.reduce(operator.or_, parts)


def from_reference(
    tensors: dict[str, np.ndarray], net: RefineNet, place: str | Path = 'the state dict'
) -> dict:
    """Parameters from a state dict of the authors' `NCSNv2`, `NCSNv2Deeper` or `NCSNv2Deepest`.

    Args:
      tensors: {'begin_conv.weight': array, ...}, with or without 'module.' before it. `sigmas`, the
        noise levels, are left behind: the network is told none.
      net: the module that it becomes, of 4, 5 or 6 stages.
      place: where the tensors come from, for errors.

    Returns:
      The module's 'params' as float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    x = jnp.zeros((1, 16, 16, net.out_channels))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1))
    rename = _names(net, place)
    return torch_tensors.to_variables(_plain(tensors), shapes, place, rename, 'sigmas')['params']


def to_reference(params: dict, net: RefineNet) -> dict[str, np.ndarray]:
    """The inverse of `from_reference`, but for `sigmas`: `load_state_dict(..., strict=False)`."""
    return torch_tensors.to_tensors({'params': params}, _names(net), lambda path: 2)


def _plain(tensors: dict) -> dict:
    return {name.removeprefix('module.'): x for name, x in tensors.items()}


def _network(tensors: dict, place: str | Path) -> RefineNet:
    """The one whose widths the tensors have."""
    stages = 4 + ('res5.1.conv1.bias' in tensors) + ('res31.1.conv1.bias' in tensors)
    try:
        channels, images = tensors['begin_conv.weight'].shape[:2]
        widths = [len(tensors[f'res{number}.1.conv1.bias']) for number in NUMBERS[stages][0]]
    except KeyError as error:
        raise UserError(
            f"{place} lacks {error}, which each of ncsnv2's networks has: these are other weights"
        ) from None
    multipliers = tuple(width // channels for width in widths)
    return RefineNet(channels=channels, multipliers=multipliers, out_channels=images)


def _names(net: RefineNet, place: str | Path = 'ncsnv2') -> Callable[[str], str]:
    """Our name of a tensor, with torch's leaf -> the authors'."""
    stages = len(net.multipliers)
    if stages not in NUMBERS:
        raise UserError(f'{place}: expected a net of 4, 5 or 6 stages, as ncsnv2 has, got {stages}')
    down, up = NUMBERS[stages]

    def rename(name: str) -> str:
        module, *layers, leaf = name.split('.')
        if module in PLACES:
            return f'{PLACES[module]}.{leaf}'
        way, number, *block = module.split('_')  # down_0_block_1, refine_0
        stage = int(number)
        if way == 'refine':
            places = [f'refine{up[stages - 1 - stage]}', *map(_refine_layer, layers)]
        else:
            halves = 0 < stage < stages - len(DILATIONS) and block[1] == '0'
            layers = [LAYERS[layer] + POOLED.get(layer, '') * halves for layer in layers]
            places = [f'res{down[stage]}', block[1], *layers]
        return '.'.join([*places, leaf])

    return rename


def _refine_layer(layer: str) -> str:
    """'adapt_1' -> 'adapt_convs.1'; 'conv_2_1' -> '2_1_conv'."""
    kind, *numbers = layer.split('_')
    if kind == 'conv':
        return '_'.join([*numbers, kind])
    return '.'.join([REFINE_LAYERS[kind], *numbers])
