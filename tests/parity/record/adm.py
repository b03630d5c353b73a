"""Writes golden/adm.npz: `python tests/parity/record/adm.py --source=CHECKOUT`.

CHECKOUT is a folder with three checkouts: `guided-diffusion`, github.com/openai/guided-diffusion at
22e0df81 (MIT), `improved-diffusion`, github.com/openai/improved-diffusion at 1bc7bbbd (MIT), and
`edm`, github.com/NVlabs/edm at 008a4e53 (CC BY-NC-SA; only the numbers that its network gives are
kept). Needs torch (recorded with 2.13).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

# What the constructors take, but that attention is told by sizes in pixels, as the test reads it.
NET = {
    'image_size': 8,
    'in_channels': 3,
    'model_channels': 32,
    'out_channels': 3,
    'num_res_blocks': 1,
    'attention_resolutions': (4,),
    'channel_mult': (1, 2),
    'use_scale_shift_norm': True,
}
HALF = {'model_channels': 64, 'channel_mult': (0.5, 1), 'num_head_channels': 16}
BLOCKS = {'resblock_updown': True}
NEW = {'use_new_attention_order': True}
ODD = {'image_size': 12, 'in_channels': 6, 'attention_resolutions': (12, 6), 'num_res_blocks': 2}
FEW = {'num_head_channels': 32, 'out_channels': 2}
ADDED = {'use_scale_shift_norm': False}
DHARIWAL = {
    'img_resolution': 8,
    'in_channels': 3,
    'out_channels': 3,
    'model_channels': 128,
    'channel_mult': (1, 1),
    'num_blocks': 1,
    'attn_resolutions': (4,),
}
# For each: whose network, its numbers, how many classes it is told, and [b, h, w] of its input.
CASES = {
    'new_order': ('guided', NET | HALF | BLOCKS | NEW | {'out_channels': 6}, 5, (3, 8, 8)),
    'odd': ('guided', NET | ODD | BLOCKS | {'num_heads': 2}, 0, (1, 12, 6)),
    'improved': ('improved', NET | {'num_heads': 4, 'in_channels': 1}, 3, (2, 8, 8)),
    'added': ('improved', NET | ADDED | {'channel_mult': (1, 1, 2)}, 0, (2, 8, 8)),
    'classifier': ('classifier', NET | HALF | BLOCKS | {'out_channels': 7}, 0, (3, 8, 8)),
    'plain_classifier': ('classifier', NET | FEW | ADDED | NEW, 0, (1, 8, 8)),
    'edm': ('edm', DHARIWAL, 4, (2, 8, 8)),
}


def inputs(channels: int, classes: int, shape: tuple) -> dict:
    """x [b, h, w, c], times of which one is no whole number, and labels, the last class first."""
    given = {
        'x': np.random.default_rng(0).standard_normal((*shape, channels), np.float32),
        't': np.float32([998.75, 2, 0])[: shape[0]],
    }
    return given | {'label': np.int32([classes - 1, 0, 2])[: shape[0]]} if classes else given


def run(make, source: str, net: dict, classes: int, shape: tuple) -> dict:
    """All that the test is told of one network."""
    module = make(net, classes).eval()
    shapes = {name: x.shape for name, x in module.named_parameters()}
    weights = {name: torch.tensor(x) for name, x in filled(shapes).items()}
    lacking, superfluous = module.load_state_dict(weights, strict=False)
    assert not superfluous
    assert all(name.endswith('resample_filter') for name in lacking)
    given = inputs(net['in_channels'], classes, shape)
    x, t, *label = map(torch.tensor, given.values())
    if source == 'edm':
        label = [torch.nn.functional.one_hot(label[0].long(), classes).float()]
    with torch.no_grad():
        y = module(x.permute(0, 3, 1, 2), t, *label)
    y = y.permute(0, 2, 3, 1) if y.ndim == 4 else y
    told = {'source': source, 'net': net, 'classes': classes, 'shapes': shapes}
    return given | {'told': json.dumps(told), 'result': y.numpy()}


def makers() -> dict:
    """For each source, (its numbers, classes) -> module."""
    from guided_diffusion.unet import EncoderUNetModel, UNetModel
    from improved_diffusion.unet import UNetModel as OldUNetModel
    from training.networks import DhariwalUNet

    def halved(net):
        """Theirs count how often the image was halved."""
        sizes = net['attention_resolutions']
        return net | {'attention_resolutions': [net['image_size'] // size for size in sizes]}

    def guided(net, classes):
        return UNetModel(**halved(net), num_classes=classes or None)

    def improved(net, classes):
        net = halved(net)
        del net['image_size']
        return OldUNetModel(**net, num_classes=classes or None)

    def classifier(net, classes):
        return EncoderUNetModel(**halved(net), pool='attention')

    def edm(net, classes):
        return DhariwalUNet(**net, label_dim=classes)

    return {'guided': guided, 'improved': improved, 'classifier': classifier, 'edm': edm}


def main() -> None:
    """Records every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    folder = Path(parser.parse_args().source)
    sys.path[:0] = [
        str(folder / name) for name in ('guided-diffusion', 'improved-diffusion', 'edm')
    ]
    make = makers()
    arrays = {
        f'{name}.{key}': value
        for name, (source, *case) in CASES.items()
        for key, value in run(make[source], source, *case).items()
    }
    save('adm', **arrays)


if __name__ == '__main__':
    main()
