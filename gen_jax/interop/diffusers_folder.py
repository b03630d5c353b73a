"""What all readers of folders as diffusers saves them have in common, without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gen_jax.errors import UserError

WEIGHTS = 'diffusion_pytorch_model.safetensors'
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def read_json(path: Path) -> dict:
    """A file of fields.

    Raises:
      UserError: no such file, or none of fields.
    """
    if not path.is_file():
        raise UserError(f'{path} not found: expected a folder as diffusers saves it')
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    if not isinstance(fields, dict):
        raise UserError(f'{path} is no JSON object: expected a folder as diffusers saves it')
    return fields


def read_weights(place: Path, kind: str) -> dict[str, np.ndarray]:
    """The tensors in a folder of one network, with the names of today.

    Args:
      place: the folder.
      kind: diffusers' class, for the error.

    Raises:
      UserError: where there are none, or no whole file.
    """
    weights = place / WEIGHTS
    if not weights.is_file():
        raise UserError(
            f'{weights} not found; a .bin can be turned into one with diffusers: '
            f'{kind}.from_pretrained(FOLDER).save_pretrained(FOLDER)'
        )
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise UserError(
            f'{weights} is no safetensors file ({error}): download it whole; a small text file '
            "there is a pointer that 'git lfs pull' replaces"
        ) from None
    return {_new_name(name): tensor for name, tensor in tensors.items()}


def check_fields(fields: dict, fixed: dict, read: tuple[str, ...], place: Path) -> None:
    """Raises UserError where a network is not one that gen_jax has.

    Args:
      fields: of the folder's config.json.
      fixed: fields that ours has with one value only, {name: (that value, diffusers' default)}.
      read: fields that say something about ours, or nothing about what it computes.
      place: the file, for errors.
    """
    unknown = [name for name in fields if name not in fixed and name not in read]
    if unknown:
        raise UserError(f'{place}: field {unknown[0]!r} is not one that gen_jax can follow')
    for name, (value, default) in fixed.items():
        theirs = fields.get(name, default)
        if theirs != value:
            raise UserError(f'{place}: {name}={theirs!r} is not supported, expected {value!r}')


def _new_name(name: str) -> str:
    """Attention layers were renamed in diffusers 0.15; published files keep the first names."""
    *modules, layer, leaf = name.split('.')
    return '.'.join([*modules, OLD_NAMES.get(layer, layer), leaf])
