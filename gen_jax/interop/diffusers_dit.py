"""Weights of DiTs from diffusers' `DiTTransformer2DModel`, without torch.

Each of its blocks has embedders of time and class of its own; those of published networks are the
authors', copied. The authors' numbers hold where diffusers' differ: the epsilon of norms, 1e-6, and
the slowest frequency of the time.
"""

import re
from pathlib import Path

import numpy as np

from gen_jax.diffusion.dit import DiT
from gen_jax.errors import UserError
from gen_jax.interop import dit
from gen_jax.interop.diffusers_folder import (
    check_fields,
    read_json,
    read_weights,
    require,
    weights_of,
    whole,
)

KINDS = ('DiTTransformer2DModel', 'Transformer2DModel')  # today's name, and that of the first ones
# Fields that our network has with one value only: (that value, diffusers' default).
FIXED = {
    'norm_type': ('ada_norm_zero', 'ada_norm_zero'),
    'activation_fn': ('gelu-approximate', 'gelu-approximate'),
    'attention_bias': (True, True),
    'norm_elementwise_affine': (False, False),
    'dropout': (0.0, 0.0),
    'cross_attention_dim': (None, None),
    'num_vector_embeds': (None, None),
    'only_cross_attention': (False, False),
    'use_linear_projection': (False, False),
}
READ = (
    '_class_name',
    '_diffusers_version',
    '_name_or_path',
    'num_attention_heads',
    'attention_head_dim',
    'num_layers',
    'patch_size',
    'in_channels',
    'out_channels',
    'num_embeds_ada_norm',
    'sample_size',
    'norm_eps',
    'norm_num_groups',
    'upcast_attention',
)
# Their names and the authors', each a regex and what replaces it; {q}, {k} and {v} make one tensor.
NAMES = (
    (r'pos_embed\.proj\.', 'x_embedder.proj.'),
    (r'pos_embed\.pos_embed', 'pos_embed'),
    (r'proj_out_1\.', 'final_layer.adaLN_modulation.1.'),
    (r'proj_out_2\.', 'final_layer.linear.'),
    (r'transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_1\.', 't_embedder.mlp.0.'),
    (r'transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_2\.', 't_embedder.mlp.2.'),
    (r'transformer_blocks\.\d+\.norm1\.emb\.class_embedder\.', 'y_embedder.'),
    (r'transformer_blocks\.(\d+)\.norm1\.linear\.', r'blocks.\1.adaLN_modulation.1.'),
    (r'transformer_blocks\.(\d+)\.attn1\.to_([qkv])\.', r'blocks.\1.attn.qkv.{\2}'),
    (r'transformer_blocks\.(\d+)\.attn1\.to_out\.0\.', r'blocks.\1.attn.proj.'),
    (r'transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.', r'blocks.\1.mlp.fc1.'),
    (r'transformer_blocks\.(\d+)\.ff\.net\.2\.', r'blocks.\1.mlp.fc2.'),
)


def load_into(folder: str | Path, net: DiT, channels: int) -> dict:
    """The 'params' of `net` as float32 numpy arrays, from a folder of diffusers.

    Args:
      folder: holds `config.json` and `diffusion_pytorch_model.safetensors`, or does in
        `transformer/`.
      net: the module that they are for.
      channels: of its input.

    Raises:
      UserError: where files are missing, or the network is another than `net`, or tensors are
        missing, superfluous or of another shape.
    """
    nested = Path(folder, 'transformer')
    place = nested if nested.is_dir() else Path(folder)
    _check(read_json(place / 'config.json'), net, channels, place / 'config.json')
    tensors = authors_names(read_weights(place, KINDS[0]), weights_of(place))
    return dit.from_reference(tensors, net, channels, weights_of(place))


def authors_names(tensors: dict[str, np.ndarray], place) -> dict[str, np.ndarray]:
    """The tensors of a `DiTTransformer2DModel` as the authors name and join them.

    Raises:
      UserError: blocks whose embedders differ, which one for all cannot be.
    """
    found = {}
    for name, x in tensors.items():
        for theirs, ours in NAMES:
            name = re.sub(f'^{theirs}', ours, name)
        if name in found and not np.array_equal(found[name], x):
            raise UserError(
                f'{place}: blocks have different embedders ({name}), expected the same in all, as '
                "the authors' network has one: train it anew"
            )
        found[name] = x
    for name in [name for name in found if '{q}' in name]:
        parts = [found.pop(name.replace('{q}', f'{{{part}}}'), None) for part in 'qkv']
        if all(part is not None for part in parts):
            found[name.replace('{q}', '')] = np.concatenate(parts)
    return found


def _check(fields: dict, net: DiT, channels: int, place: Path) -> None:
    """Raises UserError where a folder's config.json describes another network."""
    kind = fields.get('_class_name')
    require(kind in KINDS, '_class_name', kind, KINDS[0], place)
    check_fields(fields, FIXED, READ, place)
    numbers = {
        'num_attention_heads': (16, net.heads),
        'attention_head_dim': (72, net.width // net.heads),
        'num_layers': (28, net.depth),
        'patch_size': (2, net.patch),
        'in_channels': (4, channels),
        'out_channels': (fields.get('in_channels', 4), net.out_channels),
    }
    for name, (usual, want) in numbers.items():
        theirs = usual if fields.get(name) is None else whole(fields, name, usual, place)
        require(theirs == want, name, theirs, f'{want} as the config makes it', place)
