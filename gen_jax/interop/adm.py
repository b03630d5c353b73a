"""Weights of ADM's networks to and from the authors' files, without torch.

Those of github.com/openai/guided-diffusion and of its parent, github.com/openai/improved-diffusion,
which bear the same names; and those of the same U-Net in github.com/NVlabs/edm (`DhariwalUNet`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gen_jax.config import nearest, require
from gen_jax.diffusion.adm import ADMClassifier, ADMUNet, Encoder, number_of_heads
from gen_jax.errors import UserError
from gen_jax.interop.tensors import read_tensors, to_tensors, to_variables

# Of `config.diffusion`.
LINEAR = {'timesteps': 1000, 'betas': 'linear', 'beta_min': 1e-4, 'beta_max': 0.02, 'told': 'time'}
COSINE = {'timesteps': 1000, 'betas': 'cosine', 'told': 'time'}
LONG = {'timesteps': 4000, 'betas': 'cosine', 'told': 'thousandths'}


class Published(NamedTuple):
    """A network whose weights the authors offer.

    Attributes:
      net: its module; a U-Net's result has the noise in 3 channels, then the variance in 3.
      image_size: pixels.
      noise: that it was trained with, and what it is told of that.
      new_order: as `from_reference` takes it.
    """

    net: Encoder
    image_size: int
    noise: dict = LINEAR
    new_order: bool = False


WIDTHS = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
CLASSES = {'num_classes': 1000}
FOUR_HEADS = {'heads': 4, 'head_channels': 0}


def _guided(size: int, **changes) -> ADMUNet:
    fields = {'channels': 256, 'multipliers': WIDTHS[size], 'blocks': 2, 'dropout': 0.0}
    return ADMUNet(**{**fields, 'out_channels': 6, **changes})


def _improved(size: int, **changes) -> ADMUNet:
    fields = {'channels': 128, 'blocks': 3, 'attention': (16, 8), 'resample_in_blocks': False}
    return _guided(size, **{**fields, **FOUR_HEADS, **changes})


def _classifier(size: int, blocks: int = 2) -> Published:
    net = ADMClassifier(multipliers=WIDTHS[size], blocks=blocks)
    return Published(net, size, COSINE if size == 64 else LINEAR)


LSUN = Published(_guided(256, dropout=0.1), 256)
CIFAR = Published(_improved(32, dropout=0.3), 32, LONG)
ONE_HEAD = Published(_improved(256, blocks=2, attention=(16,), heads=1, scale_shift=False), 256)

HIDDEN = ('heads', 'head_channels', 'groups')  # which no tensor tells

# By the names of their files without '.pt', as both README files describe them. The upsamplers take
# 6 channels: the noised image, then the small one, bilinearly enlarged.
PUBLISHED = {
    '64x64_diffusion': Published(
        _guided(64, channels=192, blocks=3, dropout=0.1, **CLASSES), 64, COSINE, new_order=True
    ),
    '128x128_diffusion': Published(_guided(128, **FOUR_HEADS, **CLASSES), 128),
    '256x256_diffusion': Published(_guided(256, **CLASSES), 256),
    '256x256_diffusion_uncond': Published(_guided(256), 256),
    '512x512_diffusion': Published(_guided(512, **CLASSES), 512),
    '64x64_classifier': _classifier(64, blocks=4),
    '128x128_classifier': _classifier(128),
    '256x256_classifier': _classifier(256),
    '512x512_classifier': _classifier(512),
    '64_256_upsampler': Published(_guided(256, channels=192, **FOUR_HEADS, **CLASSES), 256),
    '128_512_upsampler': Published(_guided(256, channels=192, attention=(32, 16), **CLASSES), 512),
    'lsun_bedroom': LSUN,
    'lsun_cat': LSUN,
    'lsun_horse': LSUN,
    'lsun_horse_nodropout': LSUN._replace(net=_guided(256)),
    'cifar10_uncond_50M_500K': CIFAR,
    'cifar10_uncond_vlb_50M_500K': CIFAR,
    'imagenet64_uncond_100M_1500K': Published(_improved(64), 64, LONG),
    'imagenet64_uncond_vlb_100M_1500K': Published(_improved(64), 64, LONG),
    'imagenet64_cond_270M_250K': Published(
        _improved(64, channels=192, **CLASSES), 64, {**LONG, 'told': 'time'}
    ),
    'upsample_cond_500K': Published(
        _improved(256, channels=192, blocks=2, **CLASSES),
        256,
        {'timesteps': 4000, 'betas': 'linear', 'told': 'time'},
    ),
    'lsun_uncond_100M_1200K_bs128': ONE_HEAD,
    'lsun_uncond_100M_2400K_bs64': ONE_HEAD,
}

# Our modules outside of levels, and our layers of blocks, under the reference's names.
PLACES = {
    'time_embedding_1': 'time_embed.0',
    'time_embedding_2': 'time_embed.2',
    'class_embedding': 'label_emb',
    'conv_in': 'input_blocks.0.0',
    'mid_resnet_0': 'middle_block.0',
    'mid_attention_0': 'middle_block.1',
    'mid_resnet_1': 'middle_block.2',
    'norm_out': 'out.0',
    'conv_out': 'out.2',
    'pool': 'out.2',
}
LAYERS = {
    'norm1': 'in_layers.0',
    'conv1': 'in_layers.2',
    'emb_proj': 'emb_layers.1',
    'norm2': 'out_layers.0',
    'conv2': 'out_layers.3',
    'conv_shortcut': 'skip_connection',
}
EDM_PLACES = {
    'time_embedding_1': 'map_layer0',
    'time_embedding_2': 'map_layer1',
    'class_embedding': 'map_label',
    'norm_out': 'out_norm',
    'conv_out': 'out_conv',
}
EDM_LAYERS = {
    'norm1': 'norm0',
    'conv1': 'conv0',
    'emb_proj': 'affine',
    'norm2': 'norm1',
    'conv2': 'conv1',
    'conv_shortcut': 'skip',
    'norm': 'norm2',
    'proj_out': 'proj',
}
# Dense layers that are convolutions there, over so many axes.
POINTWISE = {'conv_shortcut': 2, 'qkv': 1, 'proj_out': 1, 'qkv_proj': 1, 'c_proj': 1}

# How the 3 * c channels of an attention come: by (k)ind, which is query, key or value, (h)ead and
# (d)epth within a head, the last changing fastest.
OURS, LEGACY, EDM = 'khd', 'hkd', 'hdk'


def load(path: str | Path) -> tuple[Encoder, dict]:
    """The network in one of the authors' files, and its parameters.

    Args:
      path: the file, under the name with which it was published.

    Returns:
      The module, and its 'params' as float32 numpy arrays.

    Raises:
      UserError: the name is none of PUBLISHED's, or the file is not what the name says.
    """
    known = _published(path)
    tensors = read_tensors(path)
    return known.net, from_reference(tensors, known.net, known.image_size, known.new_order, path)


def variables_of(config, net: Encoder) -> dict:
    """The variables of a config's network from the file `config.init_from`.

    Args:
      config: of a diffusion model or of a classifier of noised images.
      net: the network that it makes.

    Returns:
      {'params': ...} of float32 numpy arrays.

    Raises:
      UserError: the file is of another network, or of other noise than the config's as far as its
        name tells: but for EDM's, it bears the name with which it was published.
    """
    path, data, diffusion = config.init_from, config.data, config.diffusion
    tensors = read_tensors(path)
    if any(name.removeprefix('model.').startswith('enc.') for name in tensors):
        found = diffusion.get('prediction'), diffusion.told
        expected = f"('edm', 'log_ratio'), which the weights in {path} are trained for"
        named = 'diffusion.prediction, config.diffusion.told'
        require(found == ('edm', 'log_ratio'), named, found, expected)
        params = from_edm(tensors, net, data.image_size, path)
    else:
        known = _published(path)
        _check(config, net, known)
        params = from_reference(tensors, net, data.image_size, known.new_order, path)
    channels = params['conv_in']['kernel'].shape[2]
    expected = f'{channels}, which the network in {path} sees'
    require(channels == data.channels, 'data.channels', data.channels, expected)
    return {'params': params}


def _published(path: str | Path) -> Published:
    """What the authors have published under the name of a file."""
    name = Path(path).name.removesuffix('.pt').removesuffix('.safetensors')
    if name not in PUBLISHED:
        raise UserError(
            f"{path}: {name!r} is not the name of one of the authors' files"
            f'{nearest(name, PUBLISHED)}'
        )
    return PUBLISHED[name]


def _check(config, net: Encoder, known: Published) -> None:
    """Raises UserError where a config differs from what is published in what no tensor tells."""
    diffusion, noise = config.diffusion, {'prediction': 'eps', **known.noise}
    told = [(name, getattr(known.net, name), getattr(net, name)) for name in HIDDEN]
    told += [('data.image_size', known.image_size, config.data.image_size)]
    if 'timesteps' not in diffusion:
        raise UserError(
            f'config.init_from={config.init_from!r} is trained in {noise["timesteps"]} steps: '
            'expected a config of discrete time'
        )
    # Classifiers predict nothing.
    told += [(f'diffusion.{x}', noise[x], diffusion[x]) for x in noise if x in diffusion]
    for name, theirs, ours in told:
        if theirs != ours:
            raise UserError(
                f'config.init_from={config.init_from!r} has {name}={theirs!r}, the config makes '
                f'{ours!r}: expected the config of that model'
            )


def from_reference(
    tensors: dict[str, np.ndarray],
    net: Encoder,
    image_size: int,
    new_order: bool = False,
    place: str | Path = 'the state dict',
) -> dict:
    """Parameters from a state dict of guided-diffusion or improved-diffusion.

    Args:
      tensors: of a `UNetModel`, `SuperResModel`, or an `EncoderUNetModel` with attention pooling.
      net: the `ADMUNet` or `ADMClassifier` that it becomes.
      image_size: pixels, which say which levels have attention.
      new_order: whether it was made with `use_new_attention_order`, which no tensor tells.
      place: where the tensors come from, for errors.

    Returns:
      The module's 'params' as float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    tensors = {
        name: x.T if name.endswith('positional_embedding') else _without_row(x)
        for name, x in tensors.items()
    }
    params = _to_params(
        tensors, net, image_size, place, lambda name: _reference_name(name, net, image_size)
    )
    return _relaid(params, net, OURS if new_order else LEGACY, OURS)


def to_reference(
    params: dict, net: Encoder, image_size: int, new_order: bool = False
) -> dict[str, np.ndarray]:
    """The inverse of `from_reference`: a state dict of guided-diffusion, of float32 arrays."""
    params = _relaid(params, net, OURS, OURS if new_order else LEGACY)
    tensors = to_tensors(
        {'params': params},
        lambda name: _reference_name(name, net, image_size),
        lambda path: POINTWISE.get(path[-2], 0),
    )
    return {
        name: np.ascontiguousarray(x.T) if name.endswith('positional_embedding') else x
        for name, x in tensors.items()
    }


def from_edm(
    tensors: dict[str, np.ndarray],
    net: ADMUNet,
    image_size: int,
    place: str | Path = 'the state dict',
) -> dict:
    """Parameters from a state dict of EDM's `DhariwalUNet`, or of the `EDMPrecond` around one.

    The authors' files hold programs, which nothing here runs: with their code, turn one into its
    tensors by `torch.save(network.state_dict(), FILE)`.

    Args:
      tensors: of a network without augmentation labels and with groups of at least 4 channels, as
        theirs for ImageNet at 64x64, which is `ADMUNet(num_classes=1000)`.
      net: what it becomes.
      image_size: pixels, after which the tensors are named.
      place: where the tensors come from, for errors.

    Returns:
      The module's 'params' as float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    tensors = {name.removeprefix('model.'): x for name, x in tensors.items()}
    # Labels are one-hot there.
    tensors = {name: x.T if name == 'map_label.weight' else x for name, x in tensors.items()}
    # Which are the same for all networks.
    ignore = r'.*\.resample_filter'
    params = _to_params(
        tensors, net, image_size, place, lambda name: _edm_name(name, net, image_size), ignore
    )
    return _relaid(params, net, EDM, OURS)


def _without_row(x: np.ndarray) -> np.ndarray:
    """A 1x1 convolution over a row of pixels [out, in, 1] as a dense layer's [out, in]."""
    return x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x


def _to_params(
    tensors: dict, net: Encoder, size: int, place, rename: Callable, ignore: str = ''
) -> dict:
    first = tensors.get(rename('conv_in.weight'), np.empty((0, 3)))
    x, t, label = jnp.zeros((1, size, size, first.shape[1])), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    labels = [label] if isinstance(net, ADMUNet) else []
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, *labels)
    return to_variables(tensors, shapes, place, rename, ignore)['params']


def _relaid(params: dict, net: Encoder, old: str, new: str) -> dict:
    """The same, but for the order of each attention's channels."""

    def relaid(path, x):
        if path[-2] != 'qkv':
            return x
        c = x.shape[-1] // 3
        heads = number_of_heads(c, net.heads, net.head_channels)
        sizes = {'k': 3, 'h': heads, 'd': c // heads}
        split = np.reshape(x, (*x.shape[:-1], *(sizes[axis] for axis in old)))
        return np.einsum(f'...{old}->...{new}', split).reshape(x.shape)

    flat = flatten_dict(params)
    return unflatten_dict({path: relaid(path, x) for path, x in flat.items()})


def _parse(module: str) -> tuple[str, int, str, int | None]:
    """'down_0_resnet_1' -> ('down', 0, 'resnet', 1); None where there is no last number."""
    way, level, kind, *number = module.split('_')
    return way, int(level), kind, int(number[0]) if number else None


def _reference_name(name: str, net: Encoder, image_size: int) -> str:
    """'down_0_resnet_1.conv2.weight' -> 'input_blocks.2.0.out_layers.3.weight'."""
    module, *layers = name.split('.')
    place = PLACES.get(module) or _reference_place(module, net, image_size)
    return '.'.join([place, *(LAYERS.get(layer, layer) for layer in layers)])


def _reference_place(module: str, net: Encoder, image_size: int) -> str:
    """'down_0_resnet_1' -> 'input_blocks.2.0'.

    Blocks are counted over all levels. What resizes is a block of its own on the way down, and the
    end of a level's last one on the way up.
    """
    way, level, kind, number = _parse(module)
    block = level * (net.blocks + 1) + (net.blocks if number is None else number)
    bare = kind == 'resample' and not net.resample_in_blocks
    if way == 'down':
        return f'input_blocks.{block + 1}.{int(kind == "attention")}{".op" if bare else ""}'
    attended = image_size >> (len(net.multipliers) - 1 - level) in net.attention
    part = {'resnet': 0, 'attention': 1, 'resample': 1 + attended}[kind]
    return f'output_blocks.{block}.{part}{".conv" if bare else ""}'


def _edm_name(name: str, net: Encoder, image_size: int) -> str:
    """'down_0_resnet_1.conv2.weight' -> 'enc.64x64_block1.conv1.weight'."""
    module, *layers = name.split('.')
    place = EDM_PLACES.get(module) or _edm_place(module, net, image_size)
    return '.'.join([place, *(EDM_LAYERS.get(layer, layer) for layer in layers)])


def _edm_place(module: str, net: Encoder, image_size: int) -> str:
    """Blocks are named by their size, in pixels, and hold the attention that follows them."""

    def sized(level):
        return f'{image_size >> level}x{image_size >> level}'

    last = len(net.multipliers) - 1
    if module == 'conv_in':
        return f'enc.{sized(0)}_conv'
    if module.startswith('mid_'):
        return f'dec.{sized(last)}_in{int(module == "mid_resnet_1")}'
    way, level, _, number = _parse(module)
    end = '' if number is None else f'block{number}'
    if way == 'down':
        return f'enc.{sized(level)}_{end}' if end else f'enc.{sized(level + 1)}_down'
    return f'dec.{sized(last - level)}_{end}' if end else f'dec.{sized(last - level - 1)}_up'
