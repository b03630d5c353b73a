"""What all readers of folders as diffusers saves them have in common, without torch."""

import json
from pathlib import Path

import numpy as np

from gen_jax.errors import UserError
from gen_jax.interop.tensors import read_tensors

WEIGHTS = 'diffusion_pytorch_model.safetensors'
OLD_WEIGHTS = 'diffusion_pytorch_model.bin'  # torch's, as diffusers once wrote them
# What diffusers calls `config.diffusion.betas` and `prediction`.
BETAS = {'linear': 'linear', 'scaled_linear': 'scaled_linear', 'cosine': 'squaredcos_cap_v2'}
PREDICTIONS = {'eps': 'epsilon', 'x_0': 'sample', 'v': 'v_prediction'}
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
      UserError: where there are none, or as `read_tensors` raises it.
    """
    weights = weights_of(place)
    if not weights.is_file():
        raise UserError(
            f'{weights} not found, nor {OLD_WEIGHTS}: expected the folder of a {kind} as diffusers '
            'saves it'
        )
    return {_new_name(name): tensor for name, tensor in read_tensors(weights).items()}


def weights_of(place: Path) -> Path:
    """The file of a folder's tensors: torch's where there is no other."""
    old = not (place / WEIGHTS).is_file() and (place / OLD_WEIGHTS).is_file()
    return place / (OLD_WEIGHTS if old else WEIGHTS)


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


def check_schedule(diffusion, folder: str) -> bool:
    """Raises UserError where a folder tells that its network was trained with other noise.

    Returns whether it tells.

    Args:
      diffusion: of the config, in discrete time.
      folder: with `scheduler_config.json`, in `scheduler/` if there is that; without it nothing is
        told.
    """
    nested, flat = Path(folder, 'scheduler'), Path(folder)
    place = (nested if nested.is_dir() else flat) / 'scheduler_config.json'
    if not place.is_file():
        return False
    fields = read_json(place)
    # (what the config makes, diffusers' default)
    ours = {
        'num_train_timesteps': (diffusion.timesteps, 1000),
        'beta_schedule': (BETAS[diffusion.betas], 'linear'),
        'prediction_type': (PREDICTIONS[diffusion.prediction], 'epsilon'),
        'rescale_betas_zero_snr': (diffusion.zero_snr, False),
        'trained_betas': (None, None),
    }
    if diffusion.betas != 'cosine':
        ours['beta_start'] = diffusion.beta_min, 1e-4
        ours['beta_end'] = diffusion.beta_max, 0.02
    for name, (value, default) in ours.items():
        theirs = fields.get(name, default)
        if theirs != value:
            raise UserError(f'{place}: {name}={theirs!r}, but config.diffusion makes {value!r}')
    return True


def whole(fields: dict, name: str, usual: int | None, place: Path) -> int:
    """A field that is a whole number of at least 1.

    Args:
      fields, place: as of `check_fields`.
      name: of the field.
      usual: diffusers' default; None where it must be there.
    """
    value = fields.get(name, usual)
    require(_is_whole(value), name, value, 'a whole number of at least 1', place)
    return value


def levels(fields: dict, widths: list | None, blocks: int, place: Path) -> dict:
    """What `UNet`, `Encoder` and `Decoder` are told of their levels.

    Args:
      fields, place: as of `check_fields`.
      widths, blocks: diffusers' defaults of each level's width and number of blocks; no widths
        where they must be there.

    Returns:
      {'channels': ..., 'multipliers': ..., 'blocks': ..., 'groups': ...}.

    Raises:
      UserError: where they are no such numbers, or do not divide each other.
    """
    name, widths = 'block_out_channels', fields.get('block_out_channels', widths)
    listed = isinstance(widths, list) and widths and all(map(_is_whole, widths))
    require(listed, name, widths, 'a list of whole numbers of at least 1', place)
    first, groups = widths[0], whole(fields, 'norm_num_groups', 32, place)
    require(all(x % first == 0 for x in widths), name, widths, 'multiples of the first', place)
    expected = f'a number that divides each of block_out_channels={widths}'
    require(first % groups == 0, 'norm_num_groups', groups, expected, place)
    return {
        'channels': first,
        'multipliers': tuple(width // first for width in widths),
        'blocks': whole(fields, 'layers_per_block', blocks, place),
        'groups': groups,
    }


def require(ok: bool, name: str, value, expected: str, place: Path) -> None:
    """Raises the UserError that a bad field of `place`, a folder's config.json, deserves."""
    if not ok:
        raise UserError(f'{place}: {name}={value!r}, expected {expected}')


def _is_whole(value) -> bool:
    return type(value) is int and value >= 1  # JSON's true is an int to Python, too


def _new_name(name: str) -> str:
    """Attention layers were renamed in diffusers 0.15; published files keep the first names."""
    parts = name.split('.')
    parts[-2:-1] = [OLD_NAMES.get(layer, layer) for layer in parts[-2:-1]]
    return '.'.join(parts)
