"""Weights of DDPM U-Nets to and from diffusers' `UNet2DModel`, without torch.

Reads what `save_pretrained` of a pipeline writes (`unet/`, `scheduler/`) and the older flat layout
of google/ddpm-cifar10-32, whose attention layers still bear their first names.
"""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from gen_jax.diffusion import gaussian, networks
from gen_jax.diffusion.unet import UNet
from gen_jax.errors import UserError
from gen_jax.interop import tensors as torch_tensors
from gen_jax.interop.diffusers_folder import (
    WEIGHTS,
    check_fields,
    check_schedule,
    levels,
    read_json,
    read_weights,
    require,
    weights_of,
    whole,
)

# Fields of UNet2DModel that our U-Net has with one value only: (that value, diffusers' default).
FIXED = {
    '_class_name': ('UNet2DModel', 'UNet2DModel'),
    'center_input_sample': (False, False),
    'time_embedding_type': ('positional', 'positional'),
    'time_embedding_dim': (None, None),
    'freq_shift': (1, 0),
    'flip_sin_to_cos': (False, True),
    'mid_block_type': ('UNetMidBlock2D', 'UNetMidBlock2D'),
    'mid_block_scale_factor': (1, 1),
    'downsample_padding': (0, 1),
    'downsample_type': ('conv', 'conv'),
    'upsample_type': ('conv', 'conv'),
    'act_fn': ('silu', 'silu'),
    'attention_head_dim': (None, 8),
    'attn_norm_num_groups': (None, None),
    'norm_eps': (1e-6, 1e-5),
    'resnet_time_scale_shift': ('default', 'default'),
    'add_attention': (True, True),
    'class_embed_type': (None, None),
}
# Fields that say something about our U-Net, or (the last two) nothing about what it computes.
READ = (
    'sample_size',
    'in_channels',
    'out_channels',
    'down_block_types',
    'up_block_types',
    'block_out_channels',
    'layers_per_block',
    'dropout',
    'norm_num_groups',
    'num_class_embeds',
    'num_train_timesteps',
    '_diffusers_version',
    '_name_or_path',
)


def load_unet(folder: str) -> tuple[UNet, dict]:
    """The network in a diffusers folder and its parameters.

    Args:
      folder: holds `config.json` and `diffusion_pytorch_model.safetensors`, or does in `unet/`.

    Returns:
      The module, and its 'params' as float32 numpy arrays.

    Raises:
      UserError: where files are missing, or the network is one that `UNet` cannot be, or tensors
        are missing, superfluous or of another shape.
    """
    place = Path(folder, 'unet') if Path(folder, 'unet').is_dir() else Path(folder)
    fields = read_json(place / 'config.json')
    unet = _unet(fields, place / 'config.json')
    tensors = read_weights(place, 'UNet2DModel')
    channels = whole(fields, 'in_channels', 3, place / 'config.json')
    shapes = _shapes(unet, fields['sample_size'], channels)
    return unet, _from_torch(tensors, shapes, weights_of(place))


def save_unet(unet: UNet, params: dict, image_size: int, folder: str) -> None:
    """Writes what diffusers' `UNet2DModel.from_pretrained(folder)` and `load_unet` read.

    Args:
      unet: the module.
      params: its 'params'.
      image_size: pixels, which say which levels have attention.
      folder: made where missing; its `config.json` and weights are replaced.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(params)
    tensors = {torch_name(path): _to_torch(path, np.asarray(x)) for path, x in flat.items()}
    in_channels = flat['conv_in', 'kernel'].shape[2]
    fields = json.dumps(_fields(unet, image_size, in_channels), indent=2)
    # Each file appears whole or not at all.
    part = Path(folder, 'part')
    save_file(tensors, part, metadata={'format': 'pt'})
    os.replace(part, Path(folder, WEIGHTS))
    part.write_text(fields + '\n')
    os.replace(part, Path(folder, 'config.json'))


def gaussian_state(config, folder: str) -> gaussian.State:
    """A state of `diffusion.gaussian` whose parameters, and their average, are those of a folder.

    The optimiser starts afresh: sample from it, or go on training.

    Raises:
      UserError: as `load_unet` does, and where the folder's network or noise schedule is not the
        one that the config describes.
    """
    gaussian.check(config)
    place = f'config.init_from={folder!r}'
    if config.network != 'unet':
        raise UserError(f"{place}: expected config.network='unet', which is {config.network!r}")
    want = networks.build(config)
    unet, params = load_unet(folder)
    for name in ('channels', 'multipliers', 'blocks', 'groups', 'num_classes'):
        theirs, ours = getattr(unet, name), getattr(want, name)
        if theirs != ours:
            raise UserError(f'{place}: its network has {name}={theirs}, the config makes {ours}')
    # The folder's sizes are of its own images: the same levels must have attention.
    size = config.data.image_size
    sizes = [size // 2**i for i in range(len(want.multipliers))]
    theirs = [x for i, x in enumerate(sizes) if f'down_{i}_attention_0' in params]
    if set(theirs) != set(want.attention):
        raise UserError(
            f'{place}: its network has attention={(*theirs,)} at config.data.image_size={size}, '
            f'the config makes {want.attention}'
        )
    channels = params['conv_in']['kernel'].shape[2], unet.out_channels
    if channels != (config.data.channels,) * 2:
        raise UserError(
            f'{place}: its images have {channels[0]} channels and its output {channels[1]}, '
            f'expected config.data.channels={config.data.channels} for both'
        )
    told, learned = config.diffusion.told, config.diffusion.learned_variance
    if told != 'time' or learned:
        raise UserError(
            f'{place}: diffusers tells its network the time and has no variance learned, expected '
            f"config.diffusion.told='time' and learned_variance=False, not {told!r} and {learned}"
        )
    check_schedule(config.diffusion, folder)
    params = jax.tree.map(jnp.asarray, params)
    return gaussian.first_state(config, {'params': params})


def torch_name(path: tuple[str, ...]) -> str:
    """('down_0_resnet_1', 'conv1', 'kernel') -> 'down_blocks.0.resnets.1.conv1.weight'."""
    return _diffusers_name(torch_tensors.torch_name(path))


def _diffusers_name(name: str) -> str:
    name = re.sub(r'^mid_([a-z]+)_(\d+)', r'mid_block.\1s.\2', name)
    name = re.sub(r'^(down|up)_(\d+)_([a-z]+)_(\d+)', r'\1_blocks.\2.\3s.\4', name)
    return re.sub(r'to_out\.([a-z]+)$', r'to_out.0.\1', name)


def _to_torch(path: tuple[str, ...], x: np.ndarray) -> np.ndarray:
    """A parameter as torch lays it out: outputs first, then inputs, then height and width."""
    if path[-1] == 'kernel':
        x = np.moveaxis(x, (-1, -2), (0, 1))  # [..., in, out] -> [out, in, ...]
    if 'conv_shortcut' in path and x.ndim == 2:
        x = x[:, :, None, None]  # [out, in] -> [out, in, 1, 1]
    return np.ascontiguousarray(x, np.float32)


def _from_torch(tensors: dict, shapes: dict, place: Path) -> dict:
    variables = torch_tensors.to_variables(
        tensors, {'params': shapes}, place, _diffusers_name, described='config.json describes'
    )
    return variables['params']


def _shapes(unet: UNet, size: int, channels: int) -> dict:
    """Shapes and dtypes of the parameters; nothing is computed."""
    x, t, label = jnp.zeros((1, size, size, channels)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(unet.init, jax.random.key(0), x, t, label)['params']


def _unet(fields: dict, place: Path) -> UNet:
    """The module that a UNet2DModel's config describes; UserError where there is none."""
    check_fields(fields, FIXED, READ, place)
    needed = ('down_block_types', 'up_block_types', 'block_out_channels')
    if missing := [name for name in needed if name not in fields]:
        raise UserError(f'{place}: {missing[0]!r} is missing, expected a config of UNet2DModel')
    told = levels(fields, None, 2, place)
    n = len(told['multipliers'])
    downs, ups = fields['down_block_types'], fields['up_block_types']
    has = [name == 'AttnDownBlock2D' for name in downs] if isinstance(downs, list) else []
    if len(has) != n or _block_types(has) != (downs, ups):
        raise UserError(
            f'{place}: blocks {downs} and {ups} are not supported, expected {n} of DownBlock2D '
            'and AttnDownBlock2D, and the same on the way up in the opposite order'
        )
    size, step = whole(fields, 'sample_size', None, place), 2 ** (n - 1)
    expected = f'a multiple of {step}, as {n} levels need'
    require(size % step == 0, 'sample_size', size, expected, place)
    dropout, classes = fields.get('dropout', 0.0), fields.get('num_class_embeds')
    fits = isinstance(dropout, int | float) and 0 <= dropout < 1
    require(fits, 'dropout', dropout, 'a probability below 1', place)
    return UNet(
        **told,
        attention=tuple(size // 2**i for i, yes in enumerate(has) if yes),
        dropout=dropout,
        num_classes=0 if classes is None else whole(fields, 'num_class_embeds', None, place),
        out_channels=whole(fields, 'out_channels', 3, place),
    )


def _fields(unet: UNet, image_size: int, in_channels: int) -> dict:
    """The inverse of `_unet`."""
    sizes = [image_size // 2**i for i in range(len(unet.multipliers))]
    downs, ups = _block_types([size in unet.attention for size in sizes])
    return {
        'sample_size': image_size,
        'in_channels': in_channels,
        'out_channels': unet.out_channels,
        'down_block_types': downs,
        'up_block_types': ups,
        'block_out_channels': [unet.channels * multiplier for multiplier in unet.multipliers],
        'layers_per_block': unet.blocks,
        'dropout': unet.dropout,
        'norm_num_groups': unet.groups,
        'num_class_embeds': unet.num_classes or None,
        **{name: value for name, (value, _) in FIXED.items()},
    }


def _block_types(attention: list[bool]) -> tuple[list[str], list[str]]:
    """Names of the blocks on the way down and up, from whether each level has attention."""
    downs = ['AttnDownBlock2D' if yes else 'DownBlock2D' for yes in attention]
    ups = ['AttnUpBlock2D' if yes else 'UpBlock2D' for yes in reversed(attention)]
    return downs, ups
