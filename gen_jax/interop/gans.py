"""Published GANs as the state of a run: StyleGAN2's, StudioGAN's and BigGAN-PyTorch's files.

A file is a generator's, whose samples are meant. A folder has what training goes on from, under
the names that its authors give: StudioGAN's model=G-best-weights-step=N.pth, model=G_ema-... and
model=D-..., of which the best are taken where it has the current ones too; else, as
BigGAN-PyTorch's, G.pth, G_ema.pth and D.pth, perhaps with _best0 or _copy0 behind the name.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp

from gen_jax.errors import UserError
from gen_jax.gans import adversarial
from gen_jax.interop import gan_resnets, stylegan2
from gen_jax.interop.tensors import read_tensors

NETWORKS = ('resnet', 'biggan', 'stylegan2')
NAMES = re.compile(r'(?:model=)?(G_ema|G|D)(?:-.*|_best\d*|_copy\d*)?\.(?:pth|pt|safetensors)')


def state_of(config, key: jax.Array) -> adversarial.State:
    """The state of a config of `gans.adversarial` with the weights of `config.init_from`.

    The trained generator is G's, the averaged one G_ema's; where one of them is missing, the other
    is both. Without D the discriminator begins afresh.

    Args:
      config: valid, with `init_from` a file or a folder.
      key: of a discriminator that begins afresh.

    Raises:
      UserError: the config's network has no such files, a folder has none or several of a player,
        or they are another network's.
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
    if net.ema is not None:
        kept = {k: x for k, x in averaged.items() if k == 'batch_stats'}
        net = net.replace(ema=averaged['params'], extra=net.extra | kept)
    return state.replace(generator=net)


def players(path: Path) -> dict[str, Path]:
    """{'G', 'G_ema', 'D': its file}; of a single file, a generator's.

    Raises:
      UserError: a folder has no generator, or several files of one player.
    """
    if not path.is_dir():
        return {'G_ema': path}
    found = {}
    for file in sorted(path.iterdir()):
        if match := NAMES.fullmatch(file.name):
            found.setdefault(match[1], []).append(file)
    if not found.keys() & {'G', 'G_ema'}:
        raise UserError(
            f'{path} has no generator: expected G_ema.pth or G.pth (and D.pth, to train), or '
            "StudioGAN's model=G_ema-best-weights-step=N.pth"
        )
    for player, files in found.items():
        best = [file for file in files if '-best-' in file.name] if len(files) > 1 else files
        if len(best) != 1:
            names = ', '.join(file.name for file in best or files)
            raise UserError(
                f'{path} has several files of {player} ({names}): leave the one that is meant'
            )
        found[player] = best[0]
    return found


def _variables(config, game, player: str, path: Path, shapes: dict) -> dict:
    """Variables of the player 'G' or 'D', shaped like `shapes`."""
    net = game.generator if player == 'G' else game.discriminator
    tensors, size = read_tensors(path), config.data.image_size
    if config.network == 'stylegan2':
        read = {
            'G': stylegan2.generator_from_reference,
            'D': stylegan2.discriminator_from_reference,
        }
        variables = read[player](tensors, net, path)
    elif any('conv2d' in name for name in tensors):
        variables = gan_resnets.from_studiogan(tensors, net, size, path)
    else:
        variables = gan_resnets.from_biggan(tensors, net, size, path)
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(lambda x: x.shape, shapes):
        raise UserError(
            f'{path} is of other images than config.data.image_size={size}, '
            f'config.data.channels={config.data.channels}: expected the weights of its config'
        )
    return jax.tree.map(jnp.asarray, variables)
