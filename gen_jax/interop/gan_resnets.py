"""Weights of SNGAN, SAGAN, BigGAN and their kin from state dicts of others, without torch.

Those of github.com/POSTECH-CVLab/PyTorch-StudioGAN, whose backbones `resnet`, `big_resnet` and
`deep_conv` are meant, and of the BigGAN authors' github.com/ajbrock/BigGAN-PyTorch.
"""

import re
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.errors import UserError
from gen_jax.gans import biggan, deep_conv, resnet
from gen_jax.interop.tensors import to_variables

# Our modules under the reference's names; numbered ones are below.
STUDIO = {
    'shared': 'shared',
    'embedding': 'embedding',
    'classifier': 'linear2',
    'norm_out': 'bn4',
    'conv_out': 'conv2d5',
}
STUDIO_LAYERS = {
    'norm1': 'bn1',
    'norm2': 'bn2',
    'norm_shortcut': 'bn0',
    'conv_shortcut': 'conv2d0',
    'conv1': 'conv2d1',
    'conv2': 'conv2d2',
    'theta': 'conv1x1_theta',
    'phi': 'conv1x1_phi',
    'g': 'conv1x1_g',
    'o': 'conv1x1_attn',
    'gamma': 'sigma',
}
# Of deep_conv's generator and its discriminator, each a regex and what replaces it.
DEEP = (
    (r'^dense\.', 'linear0.'),
    (r'^conv_out\.', 'conv4.'),
    (r'^conv_(\d)\.', r'blocks.\1.0.deconv0.'),
    (r'^norm_(\d)\.bn\.', r'blocks.\1.0.bn0.'),
)
DEEP_JUDGE = (
    (r'^dense\.', 'linear1.'),
    (r'^conv_out\.', 'conv1.'),
    (r'^norm_out\.bn\.', 'bn1.'),
    (r'^conv_(\d)_(\d)\.', r'blocks.\1.0.conv\2.'),
    (r'^norm_(\d)_(\d)\.bn\.', r'blocks.\1.0.bn\2.'),
)
BIG = {
    'shared': 'shared',
    'dense': 'linear',
    'embedding': 'embed',
    'norm_out': 'output_layer.0',
    'conv_out': 'output_layer.2',
    'conv_in': 'input_conv',
}
BIG_LAYERS = {f'norm{i}': f'bn{i}' for i in range(1, 5)} | {'conv_shortcut': 'conv_sc'}


def from_studiogan(
    tensors: dict[str, np.ndarray],
    net: nn.Module,
    image_size: int,
    place: str | Path = 'the state dict',
) -> dict:
    """Variables from a state dict of StudioGAN.

    StudioGAN's discriminators were trained with activations that work in place, by which the
    shortcut of each block with spectral normalisation gets what is rectified. Here it gets the
    input itself: those discriminators judge otherwise here than there. Generators do the same.

    Args:
      tensors: of a generator or discriminator of the backbones `resnet`, `big_resnet`, `deep_conv`.
      net: what it becomes: a `resnet.Generator`, `biggan.Generator`, `resnet.Discriminator`, or one
        of `gen_jax.gans.deep_conv`.
      image_size: pixels.
      place: where the tensors come from, for errors.

    Returns:
      The module's variables as float32 numpy arrays: 'params', and 'batch_stats' and 'spectral'
      where it has them.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    tensors = {name.removesuffix('_orig'): np.asarray(x) for name, x in tensors.items()}
    for name in [name for name in tensors if name.endswith('.weight_v')]:
        weight = tensors.get(name.removesuffix('_v'))
        if weight is not None and weight.ndim == 4:  # [out, in, h, w], and ours [h, w, in, out]
            tensors[name] = np.moveaxis(tensors[name].reshape(weight.shape[1:]), 0, -1).ravel()
    shapes = _shapes(net, image_size)
    if isinstance(net, deep_conv.Generator | deep_conv.Discriminator):
        return _variables(tensors, net, shapes, place, lambda x: _deep_name(x, net), 'linear0')
    attended = [int(name[10:]) for name in shapes['params'] if name.startswith('attention_')]
    return _variables(
        tensors, net, shapes, place, lambda name: _studio_name(name, net, attended), 'linear0'
    )


def from_biggan(
    tensors: dict[str, np.ndarray],
    net: nn.Module,
    image_size: int,
    place: str | Path = 'the state dict',
) -> dict:
    """Variables from a state dict of the authors' BigGAN or BigGAN-deep.

    Their networks take one more step of power iteration in evaluation, and forget it. Here it is
    taken now, and stays.

    Args:
      tensors: of a generator or discriminator, with one singular value of each weight.
      net: what it becomes, of the classes in `gen_jax.gans.biggan` or a `resnet.Discriminator`.
      image_size: pixels.
      place: where the tensors come from, for errors.

    Returns:
      The module's variables as float32 numpy arrays: 'params', and 'batch_stats' and 'spectral'
      where it has them.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    # Behind 'bn' where statistics were those of all GPUs (--cross_replica, --mybn).
    own = re.compile(r'\.bn\.(?:running|stored)_')
    tensors = {own.sub('.stored_', name): np.asarray(x) for name, x in tensors.items()}
    for name in [name for name in tensors if name.endswith('.u0')]:
        module, u = name.removesuffix('.u0'), tensors.pop(name).ravel()
        weight = tensors.get(f'{module}.weight', np.ones((len(u), 1), np.float32))
        W = np.moveaxis(weight, (1, 0), (-2, -1)).reshape(-1, len(u))  # [inputs, outputs]
        v = W @ u  # In NumPy: to compile a step for each shape takes longer.
        v /= np.linalg.norm(v)
        u = v @ W
        tensors |= {f'{module}.weight_u': u / np.linalg.norm(u), f'{module}.weight_v': v}
    if isinstance(net, biggan.Generator) and not (net.shared_dim or net.hierarchical):
        # Embeddings of classes there, and here linear in one-hot vectors.
        gains = re.compile(r'blocks\..*\.(gain|bias)\.weight')
        tensors = {name: x.T if gains.fullmatch(name) else x for name, x in tensors.items()}
    shapes = _shapes(net, image_size)
    return _variables(tensors, net, shapes, place, lambda name: _big_name(name, net), 'linear')


def _shapes(net: nn.Module, image_size: int) -> dict:
    label = jnp.zeros(1, jnp.int32)
    if _is_generator(net):
        given = jnp.zeros((1, net.latent_dim))
    else:
        given = jnp.zeros((1, image_size, image_size, 3))
    return jax.eval_shape(lambda: net.init(jax.random.key(0), given, label, train=False))


def _variables(
    tensors: dict, net: nn.Module, shapes: dict, place, rename: Callable, first: str
) -> dict:
    """`first`: the name of the generator's layer that makes [c, h, w] of z, and here [h, w, c]."""
    for part in ('weight', 'bias', 'weight_u'):
        name = f'{first}.{part}'
        if _is_generator(net) and name in tensors:
            x, side = tensors[name], net.base_size
            if len(x) % side**2:
                raise UserError(
                    f'{place} has {len(x)} values in {name}, expected a multiple of {side}x{side}: '
                    'these are the weights of a network of other images'
                )
            x = x.reshape(-1, side, side, *x.shape[1:])  # [c, h, w, ...]
            tensors[name] = np.moveaxis(x, 0, 2).reshape(tensors[name].shape)
    for name, x in tensors.items():
        if name.endswith(('.sigma', '.gamma')):
            tensors[name] = x.reshape(())
    ignore = r'.*\.(num_batches_tracked|accumulation_counter|sv0)'
    return to_variables(tensors, shapes, place, rename, ignore)


def _is_generator(net: nn.Module) -> bool:
    return isinstance(net, resnet.Generator | deep_conv.Generator)


def _vectors(name: str) -> str:
    """'block_0.conv1.u' -> 'block_0.conv1.weight_u'."""
    return re.sub(r'\.([uv])$', r'.weight_\1', name)


def _studio_name(name: str, net: nn.Module, attended: list[int]) -> str:
    """'block_1.conv1.weight' -> 'blocks.1.0.conv2d1.weight'; attentions are blocks there too."""
    module, *layers = _vectors(name).split('.')
    if match := re.fullmatch(r'(block|attention)_(\d+)', module):
        i = int(match[2])
        before = sum(other < i for other in attended)
        place = f'blocks.{i + before + (match[1] == "attention")}.0'
        if module == 'block_0' and layers[0] == 'norm2' and isinstance(net, resnet.Discriminator):
            layers[0] = 'norm1'  # Its first is ours before the second convolution.
    elif module == 'dense':
        place = 'linear0' if isinstance(net, resnet.Generator) else 'linear1'
    else:
        place = STUDIO.get(module, module)
    if layers[-2:-1] == ['bn'] and not _is_told(net, module):
        del layers[-2]
    return '.'.join([place, *(STUDIO_LAYERS.get(layer, layer) for layer in layers)])


def _deep_name(name: str, net: nn.Module) -> str:
    """'conv_1_0.kernel' of the discriminator, as torch says it -> 'blocks.1.0.conv0.weight'."""
    name = _vectors(name)
    for ours, theirs in DEEP if _is_generator(net) else DEEP_JUDGE:
        name = re.sub(ours, theirs, name)
    return name


def _is_told(net: nn.Module, module: str) -> bool:
    """Whether the norms of a module are conditional ones."""
    told = isinstance(net, resnet.Generator) and module != 'norm_out'
    return told and bool(net.num_classes or getattr(net, 'hierarchical', False))


def _big_name(name: str, net: nn.Module) -> str:
    """'block_1_0.conv1.weight' -> 'blocks.1.0.conv1.weight'; attention follows a stage's blocks."""
    module, *layers = _vectors(name).split('.')
    if match := re.fullmatch(r'(block|attention)_(\d+)_?(\d?)', module):
        stage, block, attends = int(match[2]), int(match[3] or 0), match[1] == 'attention'
        if isinstance(net, biggan.DeepGenerator):  # Where each block is a stage.
            place = f'blocks.{2 * stage + (1 if attends else block)}.{int(attends)}'
        else:
            last = 2 if isinstance(net, biggan.DeepDiscriminator) else 1
            place = f'blocks.{stage}.{last if attends else block}'
    else:
        place = BIG.get(module, module)
    if layers[-2:-1] == ['bn']:
        own = {'weight': 'gain', 'running_mean': 'stored_mean', 'running_var': 'stored_var'}
        layers[-2:] = [own.get(layers[-1], layers[-1])]
    return '.'.join([place, *(BIG_LAYERS.get(layer, layer) for layer in layers)])
