"""Latent diffusion's first stages in diffusers, without torch.

Reads what `save_pretrained` of an `AutoencoderKL` or a `VQModel` writes, and what that is as a run
of `autoencoders.first_stage`.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from gen_jax.autoencoders import first_stage
from gen_jax.autoencoders.ldm import Decoder, Encoder, FirstStage, KLAutoencoder, VQAutoencoder
from gen_jax.autoencoders.quantizer import VectorQuantizer
from gen_jax.config import default
from gen_jax.errors import UserError
from gen_jax.interop.diffusers_folder import (
    check_fields,
    levels,
    read_json,
    read_weights,
    require,
    weights_of,
    whole,
)
from gen_jax.interop.tensors import to_variables

# Fields that our networks have with one value only: (that value, diffusers' default).
FIXED = {
    'act_fn': ('silu', 'silu'),
    'mid_block_add_attention': (True, True),
    'norm_type': ('group', 'group'),
    'latents_mean': (None, None),
    'latents_std': (None, None),
    'lookup_from_codebook': (False, False),
}
READ = (
    'in_channels',
    'out_channels',
    'down_block_types',
    'up_block_types',
    'block_out_channels',
    'layers_per_block',
    'latent_channels',
    'norm_num_groups',
    'num_vq_embeddings',
    'vq_embed_dim',
    'scaling_factor',
    'shift_factor',
    'use_quant_conv',
    'use_post_quant_conv',
    'sample_size',
    'force_upcast',
    '_class_name',
    '_diffusers_version',
    '_name_or_path',
)
KINDS = {'AutoencoderKL': 'kl', 'VQModel': 'vq'}


def is_saved(folder: str | Path) -> bool:
    """Whether a folder is one of diffusers, as a run's is not; `load` says which."""
    path = _place(folder) / 'config.json'
    return path.is_file() and '_class_name' in read_json(path)


def load(folder: str) -> tuple[FirstStage, dict, tuple[float, float]]:
    """The networks in a diffusers folder.

    Args:
      folder: holds `config.json` and `diffusion_pytorch_model.safetensors`, or does in `vae/` or
        `vqvae/`.

    Returns:
      The module; its variables, float32 NumPy arrays; and (factor, shift): a diffusion model has
      factor * (latents - shift).

    Raises:
      UserError: where files are missing, or the networks are ones that gen_jax has not, or tensors
        are missing, superfluous or of another shape.
    """
    place = _place(folder)
    fields = read_json(place / 'config.json')
    module = _module(fields, place / 'config.json')
    f = 2 ** (len(module.encoder.multipliers) - 1)
    x = jnp.zeros((1, f, f, whole(fields, 'in_channels', 3, place / 'config.json')))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    tensors = read_weights(place, fields['_class_name'])
    variables = to_variables(
        tensors, shapes, weights_of(place), torch_name, described='config.json describes'
    )
    scale = fields.get('scaling_factor', 0.18215), fields.get('shift_factor') or 0.0
    return module, variables, scale


def check_scale(folder: str | Path, factor: float) -> None:
    """For published weights of a diffusion model that learned a folder's latents.

    Args:
      folder: as of `load`.
      factor: that latents are multiplied by.

    Raises:
      UserError: the folder tells of another factor, or of a shift.
    """
    path = _place(folder) / 'config.json'
    fields = read_json(path)
    shift, told = fields.get('shift_factor') or 0.0, fields.get('scaling_factor', factor)
    require(shift == 0, 'shift_factor', shift, '0: latents are multiplied by a factor only', path)
    require(told == factor, 'scaling_factor', told, f'config.latent.factor={factor}', path)


def config_of(folder: str | Path, data) -> ml_collections.ConfigDict:
    """The config of `autoencoders.first_stage` whose networks a folder holds; reads no weights.

    Nothing judges it: what only training needs is left out.

    Args:
      folder: as of `load`.
      data: `config.data` of whoever uses it, whose size of images it gets; all sizes do.

    Raises:
      UserError: as `load`; or the method has no such networks.
    """
    path = _place(folder) / 'config.json'
    fields = read_json(path)
    module = _module(fields, path)
    config = default('autoencoders.first_stage', kind=KINDS[fields['_class_name']])
    for name in ('channels', 'multipliers', 'blocks', 'groups'):
        config.model[name] = getattr(module.encoder, name)
    config.model.latent_channels = module.dim
    if config.kind == 'vq':
        config.first_stage.codes = module.quantizer.codes
    config.first_stage.judge_weight = 0.0
    config.init_from = str(folder)
    config.data.update(data)
    config.data.num_classes = 0
    config.data.channels = whole(fields, 'in_channels', 3, path)
    if first_stage.module_of(config) != module:
        raise UserError(
            f'{path}: expected networks that autoencoders.first_stage has, with quant_conv and '
            'post_quant_conv, codes as wide as the latents, and as many channels out as in'
        )
    return config


def state_of(config, key: jax.Array) -> first_stage.State:
    """The state of a config of `autoencoders.first_stage` with the folder `config.init_from`'s.

    Args:
      config: of the networks that the folder has.
      key: of what the discriminator starts from, where there is one.

    Raises:
      UserError: as `load`; or they are not the config's.
    """
    theirs, ours = (
        {'kind': x.kind, 'data.channels': x.data.channels}
        | {f'model.{name}': value for name, value in x.model.items() if name != 'dtype'}
        | {'first_stage.codes': x.first_stage.get('codes', 0)}
        for x in (config_of(config.init_from, config.data), config)
    )
    for field, want in theirs.items():
        if ours[field] != want:
            raise UserError(
                f'config.init_from={config.init_from!r} has config.{field}={want!r}: expected '
                f'{ours[field]!r} as here; set it, or take another folder'
            )
    _, variables, _ = load(config.init_from)
    return first_stage.first_state(config, jax.tree.map(jnp.asarray, variables), key)


def torch_name(name: str) -> str:
    """'encoder.down_0_resnet_1.conv1.weight' -> 'encoder.down_blocks.0.resnets.1.conv1.weight'."""
    if name == 'quantizer.codes':
        return 'quantize.embedding.weight'
    name = re.sub(r'\.mid_([a-z]+)_(\d+)\.', r'.mid_block.\1s.\2.', name)
    name = re.sub(r'\.(down|up)_(\d+)_resnet_(\d+)\.', r'.\1_blocks.\2.resnets.\3.', name)
    name = re.sub(
        r'\.(down|up)_(\d+)_(down|up)sampler\.', r'.\1_blocks.\2.\3samplers.0.conv.', name
    )
    return name.replace('.to_out.', '.to_out.0.')


def _place(folder: str | Path) -> Path:
    """The folder itself, or what it has in `vae/` or `vqvae/`."""
    nested = (Path(folder, name) for name in ('vae', 'vqvae'))
    return next((path for path in nested if path.is_dir()), Path(folder))


def _module(fields: dict, place: Path) -> FirstStage:
    kind = fields.get('_class_name')
    require(kind in KINDS, '_class_name', kind, ' or '.join(KINDS), place)
    check_fields(fields, FIXED, READ, place)
    shared = levels(fields, [64], 1, place)
    n = len(shared['multipliers'])
    blocks = ['DownEncoderBlock2D'] * n, ['UpDecoderBlock2D'] * n
    theirs = tuple(
        fields.get(f'{name}_block_types', usual[:1])
        for name, usual in zip(('down', 'up'), blocks, strict=True)
    )
    if theirs != blocks:
        raise UserError(f'{place}: blocks {theirs} are not supported, expected {blocks}')
    latent = whole(fields, 'latent_channels', 4 if kind == 'AutoencoderKL' else 3, place)
    decoder = Decoder(features=whole(fields, 'out_channels', 3, place), **shared)
    if kind == 'AutoencoderKL':
        pointwise = [fields.get(f'use_{name}_conv', True) for name in ('quant', 'post_quant')]
        if len(set(pointwise)) > 1:
            raise UserError(f'{place}: use_quant_conv and use_post_quant_conv differ')
        return KLAutoencoder(Encoder(features=2 * latent, **shared), decoder, latent, pointwise[0])
    dim = fields.get('vq_embed_dim')
    dim = latent if dim is None else whole(fields, 'vq_embed_dim', None, place)
    quantizer = VectorQuantizer(whole(fields, 'num_vq_embeddings', 256, place), dim)
    encoder = Encoder(features=latent, **shared)
    return VQAutoencoder(encoder, decoder, dim, quantizer=quantizer)
