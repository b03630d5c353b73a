"""The networks of this room, by name: `config.network` says which, `config.model` how large."""

import flax.linen as nn

from gen_jax.config import nearest, require
from gen_jax.diffusion import adm, dit, refinenet, song, unet

NETWORKS = {'unet': unet, 'song': song, 'adm': adm, 'dit': dit, 'refinenet': refinenet}


def defaults(network: str) -> dict:
    """The `network` and `model` parts of a config.

    Raises:
      UserError: where there is no such network.
    """
    known = f'a known name{nearest(network, NETWORKS)}'
    require(network in NETWORKS, 'network', network, known)
    return {'network': network, 'model': NETWORKS[network].defaults()}


def build(config) -> nn.Module:
    """The network of a config, as (x [n, h, w, c], t [n], label int32 [n] or None, train).

    Where labels are hidden in training, `data.num_classes` as a label is the null class.
    """
    num_classes = config.data.num_classes
    # To SongUNet any label beyond its classes is none.
    if config.diffusion.label_dropout > 0 and config.network != 'song':
        num_classes += 1
    return NETWORKS[config.network].from_config(config, num_classes)
