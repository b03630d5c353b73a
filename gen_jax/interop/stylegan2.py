"""Weights of StyleGAN2 from the authors' names, without torch.

Those of github.com/NVlabs/stylegan2-ada-pytorch and github.com/NVlabs/stylegan3. The authors' files
hold programs, which nothing here runs: with their code, turn a network into its tensors by
`torch.save(G_ema.state_dict(), FILE)`, which `gen_jax.interop.tensors.read_tensors` reads.
StudioGAN's files, of the same networks but for the name of one layer, are read as they are.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.gans.stylegan2 import Discriminator, Generator
from gen_jax.interop.tensors import to_variables

# Our names (torch's for leaves) and theirs, each a regex and what replaces it.
NAMES = (
    (r'^mapping_network\.', 'mapping.'),
    (r'^synthesis_network\.', 'synthesis.'),
    (r'^w_avg$', 'mapping.w_avg'),
    (r'^synthesis\.const$', 'synthesis.b4.const'),
    (r'\.noise$', '.noise_const'),
    (r'\bdense_(\d+)', r'fc\1'),
    (r'\bblock_(\d+)_', r'b\1.'),
    (r'\bepilogue_', 'b4.'),
    (r'\bb4\.dense\b', 'b4.fc'),
    (r'\bconv_(\d)\b', r'conv\1'),
    (r'\bto_rgb\b', 'torgb'),
)
STUDIOS_LAST = r'^linear1\.'  # what the authors call b4.out
# Which are the same for all networks.
FILTERS = r'(.*\.)?resample_filter'


def generator_from_reference(
    tensors: dict[str, np.ndarray], net: Generator, place: str | Path = 'the state dict'
) -> dict:
    """Variables from the state dict of a `Generator`.

    Args:
      tensors: by the authors' names.
      net: the generator that they become.
      place: where the tensors come from, for errors.

    Returns:
      'params', 'constants' and 'w_avg', of float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    z, label = jnp.zeros((1, net.latent_dim)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda key: net.init(key, z, label, train=False), jax.random.key(0))
    tensors = {name: _relaid(name, x) for name, x in tensors.items()}
    return to_variables(tensors, shapes, place, their_name, FILTERS)


def discriminator_from_reference(
    tensors: dict[str, np.ndarray], net: Discriminator, place: str | Path = 'the state dict'
) -> dict:
    """Variables from the state dict of a `Discriminator`.

    Args:
      tensors: by the authors' names, which tell the size of the images, or StudioGAN's.
      net: the discriminator that they become.
      place: where the tensors come from, for errors.

    Returns:
      'params', of float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    tensors = {re.sub(STUDIOS_LAST, 'b4.out.', name): x for name, x in tensors.items()}
    first = next((name for name in tensors if re.fullmatch(r'b\d+\.fromrgb\.weight', name)), None)
    if first is None:
        raise UserError(
            f"{place} has no tensor 'b*.fromrgb.weight': expected the weights of a Discriminator"
        )
    size, channels = int(first[1:].split('.')[0]), tensors[first].shape[1]
    x, label = jnp.zeros((1, size, size, channels)), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(lambda key: net.init(key, x, label, train=False), jax.random.key(0))
    tensors = {name: _relaid(name, x) for name, x in tensors.items()}

    def rename(name):
        return first.replace('weight', name[9:]) if name[:9] == 'from_rgb.' else their_name(name)

    return to_variables(tensors, {'params': shapes['params']}, place, rename, FILTERS)


def their_name(name: str) -> str:
    """'synthesis_network.block_8_conv_0.affine.weight' -> 'synthesis.b8.conv0.affine.weight'."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _relaid(name: str, x: np.ndarray) -> np.ndarray:
    """What differs in more than names, in torch's layout."""
    if name == 'synthesis.b4.const':
        return np.moveaxis(x, 0, -1)  # [4, 4, c]
    if re.fullmatch(r'synthesis\.b\d+\.conv0\.weight', name):
        return x[:, :, ::-1, ::-1]  # what enlarges is turned there
    if name == 'b4.fc.weight':
        c = x.shape[1] // 16
        return x.reshape(-1, c, 16).swapaxes(1, 2).reshape(-1, 16 * c)  # channels come last here
    return x
