"""Weights of DiTs to and from the names and layout of the authors' checkpoints.

Such as DiT-XL-2-256x256.pt, whose tensors are `read_tensors` of it (gen_jax.interop.tensors), and
whose network is `DiT(num_classes=1001, out_channels=8)`. SiT's have the same names.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gen_jax.diffusion.dit import DiT, positions
from gen_jax.errors import UserError
from gen_jax.interop import tensors as torch_tensors

PATCHES = 'x_embedder.proj.weight'
# Two functions agree in float32 but for rounding; other positions differ by about 1.
POSITIONS_DIFFER = 1e-5


def from_reference(
    tensors: dict[str, np.ndarray], net: DiT, channels: int, place='the checkpoint'
) -> dict:
    """The 'params' of `net` as float32 numpy arrays.

    Args:
      tensors: by the authors' names. `pos_embed` is compared with `positions` and left behind.
      net: the module that they are for.
      channels: of its input.
      place: where the tensors come from, for errors.

    Raises:
      UserError: tensors are missing, superfluous or of another shape, or the positions differ.
    """
    tensors = dict(tensors)
    _check_positions(tensors.pop('pos_embed', None), net.width, place)
    kernel = tensors.get(PATCHES)
    if kernel is not None and kernel.shape[2:] == (net.patch, net.patch):
        kernel = kernel.transpose(0, 2, 3, 1)  # [out, h, w, in], the order of `patches`
        tensors[PATCHES] = kernel.reshape(len(kernel), -1)  # [out, h * w * in]
    x = jnp.zeros((1, net.patch, net.patch, channels))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return torch_tensors.to_variables(tensors, shapes, place, _reference_name)['params']


def to_reference(params: dict, net: DiT, image_size: int) -> dict[str, np.ndarray]:
    """What `load_state_dict` of the authors' network for images of that size takes, float32."""
    tensors = {}
    for path, x in flatten_dict(params).items():
        x = np.asarray(x, np.float32)
        name = _reference_name(torch_tensors.torch_name(path))
        tensors[name] = x.T if path[-1] == 'kernel' else x  # [out, in]
    kernel = tensors[PATCHES].reshape(net.width, net.patch, net.patch, -1)  # [out, h, w, in]
    tensors[PATCHES] = kernel.transpose(0, 3, 1, 2)  # [out, in, h, w]
    side = image_size // net.patch
    tensors['pos_embed'] = np.asarray(positions(side, side, net.width))[None]  # [1, n, width]
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def _reference_name(name: str) -> str:
    """'blocks_1.adaLN_modulation_1.weight' -> 'blocks.1.adaLN_modulation.1.weight'."""
    name = name.replace('x_embedder', 'x_embedder.proj')
    name = name.replace('y_embedder', 'y_embedder.embedding_table')
    return re.sub(r'_(\d+)\.', r'.\1.', name)


def _check_positions(stored: np.ndarray | None, width: int, place) -> None:
    """Raises UserError where positions were stored that are not those that DiT computes."""
    if stored is None:
        return
    side = round(np.sqrt(stored.size / width))
    if stored.shape != (1, side * side, width):
        raise UserError(
            f'{place} has pos_embed of shape {stored.shape}, expected [1, n, {width}] with n '
            'square: these are the weights of another network'
        )
    difference = np.abs(stored.astype(np.float32) - positions(side, side, width)).max()
    if not difference < POSITIONS_DIFFER:
        raise UserError(
            f"{place} has pos_embed that differs by {difference:.2g} from DiT's sines and "
            'cosines, expected those: gen_jax has no DiT whose positions are learned'
        )
