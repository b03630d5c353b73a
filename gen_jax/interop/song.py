"""Weights of DDPM++ and NCSN++ to and from the authors' and EDM's names, without torch.

The authors' (github.com/yang-song/score_sde_pytorch) number the modules in the order in which they
run; EDM's (github.com/NVlabs/edm, SongUNet) name them by size. EDM's published files are pickles of
programs, which are refused: `torch.save(network.state_dict(), FILE)`, run once beside EDM's code,
makes a file of `tensors.read_tensors`.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from gen_jax.config import require
from gen_jax.diffusion.song import SongUNet
from gen_jax.errors import UserError
from gen_jax.interop import tensors as torch_tensors
from gen_jax.interop.noise import require_linear, require_sigmas

FREQUENCIES = 'embedding.frequencies'
# Layers within a module: ours, the authors', EDM's.
LAYERS = (
    ('norm_1', 'GroupNorm_0', 'norm0'),
    ('conv_1', 'Conv_0', 'conv0'),
    ('embedding', 'Dense_0', 'affine'),
    ('norm_2', 'GroupNorm_1', 'norm1'),
    ('conv_2', 'Conv_1', 'conv1'),
    ('shortcut', 'Conv_2', 'skip'),
    ('norm', 'GroupNorm_0', 'norm2'),
    ('to_q', 'NIN_0', 'qkv'),
    ('to_k', 'NIN_1', 'qkv'),
    ('to_v', 'NIN_2', 'qkv'),
    ('to_out', 'NIN_3', 'proj'),
)
SCORE_SDE = {ours: theirs for ours, theirs, _ in LAYERS}
EDM = {ours: theirs for ours, _, theirs in LAYERS}
# Of networks whose weights are offered: `config.diffusion`'s prediction and told.
MEANS = {'positional': ('eps', 'time'), 'fourier': ('score', 'log_sigma')}  # the authors'
EDM_MEANS = ('edm', 'log_ratio')
# EDM's outputs of one convolution: q, k, v of the first channel, of the second, and so on.
THIRDS = {'to_q': '[0::3]', 'to_k': '[1::3]', 'to_v': '[2::3]'}


def variables_of(config, net: SongUNet) -> dict:
    """The variables of a config's network from the file `config.init_from`.

    Args:
      config: of a diffusion model.
      net: the network that it makes.

    Returns:
      As `from_score_sde`.

    Raises:
      UserError: the file is of another network, or the config tells and asks it something else.
    """
    path, size, diffusion = config.init_from, config.data.image_size, config.diffusion
    tree = torch_tensors.read(path)
    checkpoint = isinstance(tree, dict) and {'model', 'ema'} <= tree.keys()
    tensors = read_score_sde(path) if checkpoint else torch_tensors.read_tensors(path)
    edm = any(name.removeprefix('model.').startswith('enc.') for name in tensors)
    meant = EDM_MEANS if edm else MEANS[net.embedding]
    found = diffusion.prediction, diffusion.told
    expected = f'{meant}, which the weights in {path} are trained for'
    require(found == meant, 'diffusion.prediction, config.diffusion.told', found, expected)
    if not edm:  # EDM's tell by their filters
        fir = net.encoder != 'standard'
        require(net.fir == fir, 'model.fir', net.fir, f'{fir}, as the network in {path} resizes')
    if not edm and net.embedding == 'positional':
        require_linear(diffusion, path, ('vp_linear', 'sub_vp'))
    elif not edm:
        require_sigmas(diffusion, tensors, 've', path)
    return (from_edm if edm else from_score_sde)(tensors, net, size, path)


def read_score_sde(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of one of the authors' checkpoints, parameters replaced by their averages.

    Args:
      path: a .pth with `model`, named tensors, and `ema`, whose `shadow_params` are the averages of
        what is trained, in the order of `model`.

    Raises:
      UserError: as `tensors.read` does, and where the file holds something else.
    """
    tree = torch_tensors.read(path)
    try:
        tensors = {name.removeprefix('module.'): x for name, x in tree['model'].items()}
        averages = tree['ema']['shadow_params']
    except (TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path} is no checkpoint of score_sde: expected 'model' and 'ema' in it; read a file "
            'of tensors alone with gen_jax.interop.tensors.read_tensors'
        ) from None
    trained = [name for name, x in tensors.items() if not _is_fixed(name, x)]
    if [tensors[name].shape for name in trained] != [x.shape for x in averages]:
        raise UserError(
            f'{path} has {len(averages)} averages for {len(trained)} parameters, or of other '
            'shapes: download it again'
        )
    return tensors | dict(zip(trained, averages, strict=True))


def from_score_sde(
    tensors: dict[str, np.ndarray], net: SongUNet, image_size: int, place='the tensors'
) -> dict:
    """Variables of `net` from the authors' state dict.

    Args:
      tensors: {'all_modules.3.Conv_0.weight': array, ...}, with or without 'module.' before it.
      net: the module that they are meant for.
      image_size: pixels, which say which levels have attention.
      place: where the tensors come from, for errors.

    Returns:
      {'params': ..., 'constants': ...} as `net.init` gives, of float32 numpy arrays.

    Raises:
      UserError: tensors are missing, superfluous or of another shape.
    """
    shapes = _shapes(net, image_size)
    tensors = {name.removeprefix('module.'): x for name, x in tensors.items()}
    tensors = {name: x.T if name.endswith('.W') else x for name, x in tensors.items()}
    rename = _score_sde_names(net, image_size, shapes)
    return torch_tensors.to_variables(tensors, shapes, place, rename, ignore='sigmas')


def to_score_sde(variables: dict, net: SongUNet, image_size: int) -> dict[str, np.ndarray]:
    """The inverse of `from_score_sde`, but for `sigmas`: `load_state_dict(..., strict=False)`."""
    rename = _score_sde_names(net, image_size, variables)
    tensors = _to_torch(variables, rename)
    return {
        name: x[:, :, 0, 0].T.copy() if name.endswith('.W') and x.ndim == 4 else x
        for name, x in tensors.items()
    }


def from_edm(
    tensors: dict[str, np.ndarray], net: SongUNet, image_size: int, place='the tensors'
) -> dict:
    """Variables of `net` from the state dict of EDM's SongUNet, or of what preconditions it.

    Args, result and errors as of `from_score_sde`; the names are such as
    'enc.32x32_block0.conv0.weight', with or without 'model.' before them.

    Raises:
      UserError: also where the filters are those of another `net.fir`.
    """
    tensors = {name.removeprefix('model.'): x for name, x in tensors.items()}
    taps = {x.shape[-1] for name, x in tensors.items() if name.endswith('resample_filter')}
    if taps - {4 if net.fir else 2}:
        raise UserError(f'{place} resizes by {max(taps)} taps: expected fir={not net.fir}')
    for name in [name for name in tensors if '.qkv.' in name]:
        x = tensors.pop(name)
        tensors |= {name + third: x[i::3] for i, third in enumerate(THIRDS.values())}
    return torch_tensors.to_variables(
        tensors,
        _shapes(net, image_size),
        place,
        _edm_names(net, image_size),
        ignore=r'.*\.resample_filter',
    )


def to_edm(variables: dict, net: SongUNet, image_size: int) -> dict[str, np.ndarray]:
    """The inverse of `from_edm`, but for filters: `load_state_dict(..., strict=False)`."""
    tensors = _to_torch(variables, _edm_names(net, image_size))
    first = THIRDS['to_q']
    for name in [name.removesuffix(first) for name in tensors if name.endswith(first)]:
        parts = [tensors.pop(name + third) for third in THIRDS.values()]
        tensors[name] = np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])  # [3c, ...]
    return tensors


def _is_fixed(name: str, x: np.ndarray) -> bool:
    """Whether the authors do not train this: noise levels, and frequencies of the embedding."""
    return name == 'sigmas' or (name.endswith('.W') and x.ndim == 1)


def _modules(net: SongUNet, image_size: int) -> list[tuple[str, str]]:
    """(our name, EDM's) of all modules that there can be, in the order in which they run."""
    sizes = [f'{image_size >> i}x{image_size >> i}' for i in range(len(net.multipliers))]
    pairs = [(FREQUENCIES, 'map_noise.freqs')]
    pairs += [(f'embedding.linear_{i + 1}', f'map_layer{i}') for i in range(2)]
    pairs += [('conv_in', f'enc.{sizes[0]}_conv')]
    for i, size in enumerate(sizes):
        enc = f'enc.{size}'
        pairs += [(f'down_{i}_resize', f'{enc}_down')]
        pairs += [(f'down_{i}_image', f'{enc}_aux_{net.encoder}')]
        for j in range(net.blocks):
            block = f'{enc}_block{j}'
            pairs += [(f'down_{i}_block_{j}', block), (f'down_{i}_attention_{j}', block)]
    first, second = (f'dec.{sizes[-1]}_in{i}' for i in range(2))
    pairs += [('mid_block_0', first), ('mid_attention', first), ('mid_block_1', second)]
    for i, size in reversed([*enumerate(sizes)]):
        dec = f'dec.{size}'
        pairs += [(f'up_{i}_resize', f'{dec}_up')]
        pairs += [(f'up_{i}_block_{j}', f'{dec}_block{j}') for j in range(net.blocks + 1)]
        pairs += [(f'up_{i}_attention', f'{dec}_block{net.blocks}')]
        pairs += [(f'up_{i}_{kind}_out', f'{dec}_aux_{kind}') for kind in ('norm', 'conv')]
    return pairs + [(f'embedding.{kind}', f'map_{kind}') for kind in ('label', 'augment')]


def _score_sde_names(net: SongUNet, image_size: int, variables: dict) -> Callable[[str], str]:
    """Our name of a tensor, with torch's leaf -> the authors'."""
    ours = {_split(torch_tensors.torch_name(path[1:]))[0] for path in flatten_dict(variables)}
    present = [name for name, _ in _modules(net, image_size) if name in ours]
    number = {name: f'all_modules.{i}' for i, name in enumerate(present)}
    image = {'skip': 'Conv_0', 'residual': 'Conv2d_0'}.get(net.encoder)

    def rename(name):
        module, layer, leaf = _split(name)
        theirs = image if module.endswith('_image') else SCORE_SDE.get(layer, '')
        if theirs.startswith('NIN') or module == FREQUENCIES:
            leaf = 'b' if leaf == 'bias' else 'W'
        return '.'.join(filter(None, (number[module], theirs, leaf)))

    return rename


def _edm_names(net: SongUNet, image_size: int) -> Callable[[str], str]:
    """Our name of a tensor, with torch's leaf -> EDM's."""
    modules = dict(_modules(net, image_size))

    def rename(name):
        module, layer, leaf = _split(name)
        theirs = '.'.join(filter(None, (modules[module], EDM.get(layer, ''), leaf)))
        return theirs + THIRDS.get(layer, '')

    return rename


def _split(name: str) -> tuple[str, str, str]:
    """'down_0_block_1.conv_1.weight' -> ('down_0_block_1', 'conv_1', 'weight')."""
    if name == FREQUENCIES:
        return name, '', ''
    *modules, leaf = name.split('.')
    if modules[0] == 'embedding':
        return '.'.join(modules), '', leaf
    return modules[0], '.'.join(modules[1:]), leaf


def _to_torch(variables: dict, rename: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Tensors as torch lays them out; dense layers are convolutions there, but the embedding's."""
    return torch_tensors.to_tensors(variables, rename, lambda path: 2 * ('embedding' not in path))


def _shapes(net: SongUNet, image_size: int) -> dict:
    """Shapes and dtypes of the variables; nothing is computed."""
    x = jnp.zeros((1, image_size, image_size, net.out_channels))
    return jax.eval_shape(net.init, jax.random.key(0), x, jnp.ones(1))
