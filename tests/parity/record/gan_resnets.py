"""Writes golden/gan_resnets.npz: `python tests/parity/record/gan_resnets.py --source=CHECKOUT`.

CHECKOUT is a folder with two checkouts: `PyTorch-StudioGAN`,
github.com/POSTECH-CVLab/PyTorch-StudioGAN at 947b35e9 (MIT), and `BigGAN-PyTorch`,
github.com/ajbrock/BigGAN-PyTorch at 98459431 (MIT). Needs torch (recorded with 2.13).

StudioGAN's activations work in place, by which a discriminator's block rectifies its shortcut too;
here they do not, as its own blocks with batch norm have it, and the other code.

Of each network three results are kept: of two batches in training, one after the other, and, with
running statistics as they were at first, of one example in evaluation.
"""

import argparse
import contextlib
import functools
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

CLASSES = 5
BATCH = 3
PLAIN = {'z': 6, 'shared': 0, 'channels': 8, 'attention': (), 'size': 32, 'label': 'PD'}
STUDIO = PLAIN | {'backbone': 'resnet', 'g_spectral': False, 'd_spectral': True}
SPECTRAL = {'g_spectral': True, 'attention': (16,)}
# Whose widths are fixed.
DEEP = STUDIO | {'backbone': 'deep_conv', 'z': 128, 'label': 'W/O', 'd_spectral': False}
BIG = PLAIN | {'shared': 6, 'size': 64}
# For each: whose networks, and their numbers; attention by sizes in pixels, as the test reads it.
CASES = {
    'sngan': ('studio', STUDIO),
    'wgan_gp': ('studio', STUDIO | {'d_spectral': False, 'label': 'W/O'}),
    'sagan': ('studio', STUDIO | SPECTRAL),
    'acgan': ('studio', STUDIO | {'size': 64, 'channels': 4, 'label': 'AC'}),
    'studio_biggan': (
        'studio',
        STUDIO | SPECTRAL | {'backbone': 'big_resnet', 'z': 8, 'shared': 6},
    ),
    'dcgan': ('studio', DEEP),
    'dcgan_spectral': ('studio', DEEP | {'d_spectral': True}),
    'biggan_cifar': ('BigGAN', PLAIN),
    'biggan': ('BigGAN', BIG | {'z': 10, 'attention': (32,)}),
    'biggan_deep': ('BigGANdeep', BIG | {'attention': (16,)}),
}


def fill(module: torch.nn.Module) -> None:
    """Weights, spectral vectors and running statistics by name and shape only."""
    shapes = {name: tuple(x.shape) for name, x in module.state_dict().items() if x.ndim}
    for name, x in filled(shapes).items():
        is_variance = name.endswith('_var')
        module.state_dict()[name].copy_(torch.tensor(abs(x) + 0.5 if is_variance else x))
    for name, x in module.state_dict().items():
        if name.endswith('gamma'):
            x.fill_(0.7)


def results(module: torch.nn.Module, call, x: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    """What `call(x, label)` gives for two batches in training and one example in evaluation."""
    fill(module)
    stats = {
        name: x.clone()
        for name, x in module.state_dict().items()
        if name.endswith(('_mean', '_var'))
    }
    x, label = torch.tensor(x), torch.tensor(label)
    with torch.no_grad():
        found = [call(x, label), call(x.flip(0) / 2, label)]
        module.load_state_dict(stats, strict=False)
        module.eval()
        return [y.numpy() for y in (*found, call(x[:1], label[:1]))]


def modules(net: dict) -> types.SimpleNamespace:
    """The layers that StudioGAN's config would choose."""
    import utils.ops as ops

    made = types.SimpleNamespace(d_bn=ops.batchnorm_2d)
    told = net['label'] != 'W/O' or net['backbone'] == 'big_resnet'
    made.g_bn = ops.ConditionalBatchNorm2d if told else ops.batchnorm_2d
    made.g_act_fn = made.d_act_fn = torch.nn.ReLU(inplace=False)
    for side in 'gd':
        spectral = net['g_spectral' if side == 'g' else 'd_spectral']
        for kind, name in (('conv2d', 'snconv2d'), ('linear', 'snlinear')):
            setattr(made, f'{side}_{kind}', getattr(ops, name if spectral else kind))
        embedding = ops.sn_embedding if spectral else ops.embedding
        setattr(made, f'{side}_embedding', embedding)
    made.g_deconv2d = ops.deconv2d
    return made


def studio(net: dict):
    """Generator and discriminator, and how to call them."""
    code = __import__(f'models.{net["backbone"]}', fromlist=['_'])
    model = types.SimpleNamespace(info_type='N/A', g_info_injection='N/A')
    size, channels, attend = net['size'], net['channels'], bool(net['attention'])
    # Blocks are counted from 1: the generator's end at 8, 16, ..., the discriminator's at size / 2.
    g_place = [side.bit_length() - 3 for side in net['attention']]
    d_place = [(size // side).bit_length() - 1 for side in net['attention']]
    condition = 'W/O' if net['label'] == 'W/O' else 'cBN'
    end = ('N02', 1, False, modules(net), model)
    shape = (net['z'], net['shared'], size, channels, attend, g_place)
    generator = code.Generator(*shape, condition, CLASSES, *end)
    shape = (size, channels, net['d_spectral'], attend, d_place, net['label'], 'W/O', 0, False)
    discriminator = code.Discriminator(*shape, CLASSES, *end)

    def judge(x, label):
        # Theirs drops the axis of a single example.
        told = discriminator(x, label)
        logits = told['adv_output'].reshape(len(x), 1)
        return torch.cat([logits, told['cls_output']], 1) if net['label'] == 'AC' else logits

    return generator, generator, discriminator, judge


def big(name: str, net: dict):
    """Generator and discriminator, and how to call them."""
    code = __import__(name)
    places = '_'.join(map(str, net['attention'] or (0,)))
    common = {'resolution': net['size'], 'n_classes': CLASSES, 'skip_init': True, 'no_optim': True}
    generator = code.Generator(
        G_ch=net['channels'],
        dim_z=net['z'],
        G_attn=places,
        G_shared=net['shared'] > 0,
        shared_dim=net['shared'],
        hier=net['shared'] > 0,
        **common,
    )
    discriminator = code.Discriminator(D_ch=net['channels'], D_attn=places, **common)
    return generator, lambda z, y: generator(z, generator.shared(y)), discriminator, discriminator


def run(make, net: dict) -> dict:
    """All that the test is told of one pair of networks."""
    generator, generate, discriminator, judge = make(net)
    shapes = {
        side: {name: tuple(x.shape) for name, x in module.state_dict().items() if x.ndim}
        for side, module in (('g', generator), ('d', discriminator))
    }
    rng = np.random.default_rng(0)
    z = rng.standard_normal((BATCH, net['z']), np.float32)
    x = rng.uniform(-1, 1, (BATCH, net['size'], net['size'], 3)).astype(np.float32)
    label = np.int64([CLASSES - 1, 0, 2])
    images = results(generator, generate, z, label)
    logits = results(discriminator, judge, x.transpose(0, 3, 1, 2), label)
    # Every third pixel: of all places within what blocks double.
    images = [y.transpose(0, 2, 3, 1)[:, ::3, ::3] for y in images]
    told = {'net': net, 'shapes': shapes, 'classes': CLASSES}
    told['counts'] = [sum(x.numel() for x in m.parameters()) for m in (generator, discriminator)]
    kept = {
        f'{side}{i}': y for side, ys in (('g', images), ('d', logits)) for i, y in enumerate(ys)
    }
    return kept | {'told': json.dumps(told), 'z': z, 'label': label}


def main() -> None:
    """Records every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    folder = Path(parser.parse_args().source)
    sys.path[:0] = [str(folder / 'BigGAN-PyTorch')]
    makers = {name: functools.partial(big, name) for name in ('BigGAN', 'BigGANdeep')}
    for name in makers.values():
        __import__(name.args[0])
    # Both have a module `utils`; StudioGAN's imports much that the networks do not need.
    sys.path[:1] = [str(folder / 'PyTorch-StudioGAN' / 'src')]
    sys.modules['utils.misc'] = misc = types.ModuleType('utils.misc')
    misc.dummy_context_mgr = contextlib.nullcontext
    import utils

    utils.misc = misc
    makers['studio'] = studio
    arrays = {
        f'{name}.{key}': value
        for name, (source, net) in CASES.items()
        for key, value in run(makers[source], net).items()
    }
    save('gan_resnets', **arrays)


if __name__ == '__main__':
    main()
