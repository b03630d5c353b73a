"""The networks of this room, by name: `config.network` says which, `config.model` how large."""

import flax.linen as nn

from gen_jax.config import nearest, require
from gen_jax.gans import biggan, dcgan, deep_conv, mlp, progressive, resnet, stylegan, stylegan2

NETWORKS = {
    'mlp': mlp,
    'dcgan': dcgan,
    'deep_conv': deep_conv,
    'resnet': resnet,
    'biggan': biggan,
    'progressive': progressive,
    'stylegan': stylegan,
    'stylegan2': stylegan2,
}
NORMALISED = ('progressive', 'stylegan', 'stylegan2')  # take only the direction of z
GROWING = ('progressive', 'stylegan')  # can be trained at 4x4 pixels first, then at twice that, ...
BATCH_NORMED = ('dcgan', 'deep_conv', 'resnet', 'biggan')  # whose generators have batch norm
STYLED = ('stylegan', 'stylegan2')  # their generators map z to styles, one for each layer


def defaults(network: str) -> dict:
    """The `network` and `model` parts of a config.

    Raises:
      UserError: where there is no such network.
    """
    known = f'a known name{nearest(network, NETWORKS)}'
    require(network in NETWORKS, 'network', network, known)
    return {'network': network, 'model': NETWORKS[network].defaults()}


def build(config) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator of a config.

    The generator is called with (z [b, latent_dim], label int32 [b] or None, train=, keys=) and
    gives images [b, h, w, c]; keys [b] are for networks that draw noise inside. The discriminator
    is called with (images, label, train=), gives logits [b], and sows what it found last, [b, f],
    as 'features', and what it says of classes, if anything, as 'class_logits'.

    Raises:
      UserError: numbers that do not fit; labels are told that the data has not, or none of those
        that samples would be said to be of.
    """
    condition = config.model.get('condition', 'none')
    require(
        condition == 'none' or config.data.num_classes > 0,
        'model.condition',
        condition,
        "'none', as config.data.num_classes=0: there are no labels to tell",
    )
    classes = config.data.num_classes
    found = NETWORKS[config.network].from_config(config, classes)
    lacking = ', or a model.condition' if 'condition' in config.model else ''
    expected = f'0{lacking}: these networks are told no labels, whatever the images are of'
    require(found[0].num_classes or not classes, 'data.num_classes', classes, expected)
    return found
