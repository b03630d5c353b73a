"""VDVAE's weights by the authors' names (github.com/openai/vdvae), without torch.

Their published files, such as cifar10-seed1-iter-1050000-model-ema.th, hold tensors alone, which
`gen_jax.interop.tensors.read_tensors` reads.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.autoencoders.vdvae import VDVAE
from gen_jax.interop.tensors import to_variables

# Our names (torch's for leaves) and theirs, each a regex and what replaces it.
NAMES = (
    (r'^encoder\.in\.', 'encoder.in_conv.'),
    (r'^encoder\.block_(\d+)\.', r'encoder.enc_blocks.\1.'),
    (r'^decoder\.out\.', 'decoder.out_net.out_conv.'),
    (r'^layers\.layer_(\d+)\.', r'decoder.dec_blocks.\1.'),
    (r'\.posterior\.', '.enc.'),
    (r'\.project\.', '.z_proj.'),
    (r'\.block\.', '.resnet.'),
)


def from_reference(
    tensors: dict[str, np.ndarray],
    module: VDVAE,
    image: tuple[int, int, int],
    place: str | Path = 'the state dict',
) -> dict:
    """Parameters from a state dict of the authors' `VAE`.

    Args:
      tensors: by the authors' names, with or without 'module.' before them.
      module: what they become; `vdvae.module_of` makes it of a config.
      image: height, width and channels of its images.
      place: where the tensors come from, for errors.

    Returns:
      The module's 'params' as float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    x, noise = jnp.zeros((1, *image)), jnp.zeros((1, module.layers.dim))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, noise)
    starts = sorted({r for r, _ in module.layers.steps})  # theirs are a list in this order

    def rename(name):
        if found := re.fullmatch(r'layers\.start_(\d+)', name):
            return f'decoder.bias_xs.{starts.index(int(found[1]))}'
        for ours, theirs in NAMES:
            name = re.sub(ours, theirs, name)
        return name

    tensors = {name.removeprefix('module.'): x for name, x in tensors.items()}
    tensors = {name: _relaid(name, x) for name, x in tensors.items()}
    return to_variables(tensors, shapes, place, rename)['params']


def _relaid(name: str, x: np.ndarray) -> np.ndarray:
    """Maps have channels last here, and no axis of examples."""
    if name.startswith('decoder.bias_xs.'):
        return np.moveaxis(x[0], 0, -1)  # [r, r, c]
    return x.reshape(-1) if name in ('decoder.gain', 'decoder.bias') else x
