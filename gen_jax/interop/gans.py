"""Published GANs as the state of a run: StyleGAN2's, StudioGAN's and BigGAN-PyTorch's files.

A file is a generator's, whose samples are meant. A folder has what training goes on from, under
the names that its authors give. StudioGAN's are model=G-best-weights-step=N.pth, model=G_ema-...
and model=D-..., of which the best are meant where it has the current ones too. Else they are G.pth,
G_ema.pth and D.pth, as BigGAN-PyTorch writes the newest; older and better ones of its folders
(G_best0.pth and so on) count where they are moved to a folder of their own.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.gans import adversarial
from gen_jax.interop import gan_resnets, stylegan2
from gen_jax.interop.tensors import read_tensors

NETWORKS = ('deep_conv', 'resnet', 'biggan', 'stylegan2')
NAMES = re.compile(r'(?:model=)?(G_ema|G|D)(-.*|_best\d*|_copy\d*|)\.(?:pth|pt|safetensors)')


def state_of(config, key: jax.Array) -> adversarial.State:
    """The state of a config of `gans.adversarial` with the weights of `config.init_from`.

    The trained generator is G's, the averaged one G_ema's; where one of them is missing, the other
    is both. Where the config keeps no average, samples are G's. Without D the discriminator begins
    afresh.

    Args:
      config: valid, with `init_from` a file or a folder.
      key: of a discriminator that begins afresh.

    Raises:
      UserError: the config's network has no such files, it is not clear which are meant, or they
        are another network's.
    """
    if config.network not in NETWORKS:
        raise UserError(
            f'config.init_from={config.init_from!r} is for GANs of {", ".join(NETWORKS)}: '
            f"config.network={config.network!r} starts from ''"
        )
    game, files = adversarial.game_of(config), players(Path(config.init_from))
    first = dict(zip('GD', adversarial.first_calls(config, game), strict=True))
    shapes = {player: jax.eval_shape(call, key) for player, call in first.items()}
    found = {
        name: _variables(config, game, name[0], path, shapes[name[0]])
        for name, path in files.items()
    }
    # Traced whole, of which nothing but the parameters is run.
    discriminator = found['D'] if 'D' in found else jax.jit(first['D'])(key)
    own = found.get('G', found.get('G_ema'))
    averaged = found.get('G_ema', own)
    state = adversarial.first_state(config, game, own, discriminator)
    net = state.generator
    # Else the average is a copy already: a training step gives the old state's memory away once.
    if net.ema is not None and averaged is not own:
        kept = {k: x for k, x in averaged.items() if k == 'batch_stats'}
        net = net.replace(ema=averaged['params'], extra=net.extra | kept)
    return state.replace(generator=net)


def players(path: Path) -> dict[str, Path]:
    """{'G', 'G_ema', 'D': its file}; of a single file, a generator's.

    Raises:
      UserError: there is nothing; or a folder has no generator, or several and nothing that says
        which is meant.
    """
    if not path.exists():
        raise UserError(
            f"config.init_from='{path}' is not there: expected a generator's file, or a folder of "
            'G_ema.pth, G.pth and D.pth'
        )
    if not path.is_dir():
        return {'G_ema': path}
    sets = {}  # {what stands behind a player's name: {player: file}}
    for file in sorted(path.iterdir()):
        if match := NAMES.fullmatch(file.name):
            sets.setdefault(match[2], {})[match[1]] = file
    sets = {name: files for name, files in sets.items() if files.keys() & {'G', 'G_ema'}}
    best = [name for name in sets if name.startswith('-best-')]
    chosen = best or [name for name in sets if not name] or [*sets]
    if not chosen:
        raise UserError(
            f'{path} has no generator: expected G_ema.pth or G.pth (and D.pth, to train), or '
            "StudioGAN's model=G_ema-best-weights-step=N.pth"
        )
    if len(chosen) > 1:
        names = ', '.join(file.name for name in chosen for file in sets[name].values())
        raise UserError(
            f'{path} has several sets of weights ({names}): leave the one that is meant'
        )
    return sets[chosen[0]]


def _variables(config, game, player: str, path: Path, shapes: dict) -> dict:
    """Variables of the player 'G' or 'D', shaped like `shapes`."""
    tensors, size = read_tensors(path), config.data.image_size
    try:
        variables = _read(config.network, game, player, tensors, size, path)
    except UserError as error:
        if player == 'G':
            raise
        hint = "name the generator's file alone to sample from it"
        raise UserError(f'{error}; {hint}') from None
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(lambda x: x.shape, shapes):
        raise UserError(
            f'{path} is of other images than config.data.image_size={size}, '
            f'config.data.channels={config.data.channels}: set these to what it is of'
        )
    return jax.tree.map(jnp.asarray, variables)


def _read(network: str, game, player: str, tensors: dict, size: int, path: Path) -> dict:
    net = game.generator if player == 'G' else game.discriminator
    if network == 'stylegan2':
        if player == 'G':
            return stylegan2.generator_from_reference(tensors, net, path)
        return stylegan2.discriminator_from_reference(tensors, net, path)
    is_studios = network == 'deep_conv' or any('conv2d' in name for name in tensors)
    read = gan_resnets.from_studiogan if is_studios else gan_resnets.from_biggan
    return read(tensors, net, size, path)
