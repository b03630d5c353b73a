"""The encoders and decoders of this room, by name: `config.network` says which.

An encoder is called with (images [b, h, w, c], told [b, k] or None) and gives float32 [b, given]; a
decoder with (z [b, latent_dim], told) and gives float32 [b, h, w, made].
"""

import flax.linen as nn

from gen_jax.autoencoders import conv, mlp, strided
from gen_jax.config import nearest, require

NETWORKS = {'conv': conv, 'mlp': mlp, 'strided': strided}
DTYPES = 'float32', 'bfloat16'


def defaults(network: str) -> dict:
    """The `network` and `model` parts of a config.

    Raises:
      UserError: where there is no such network.
    """
    known = f'a known name{nearest(network, NETWORKS)}'
    require(network in NETWORKS, 'network', network, known)
    return {'network': network, 'model': NETWORKS[network].defaults()}


def build(config, given: int, made: int) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of a config.

    Args:
      config: with `network`, `model` and `data`.
      given: how many numbers the encoder gives for an image.
      made: how many the decoder gives for a pixel.

    Raises:
      UserError: numbers that do not fit.
    """
    model = config.model
    require(
        model.latent_dim >= 1,
        'model.latent_dim',
        model.latent_dim,
        'a whole number of at least 1',
    )
    require(model.dtype in DTYPES, 'model.dtype', model.dtype, "'float32' or 'bfloat16'")
    return NETWORKS[config.network].from_config(config, given, made)
