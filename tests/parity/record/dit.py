"""Writes golden/dit.npz: `python tests/parity/record/dit.py --source=CHECKOUT`.

CHECKOUT is github.com/willisma/SiT at 947f95bd (MIT), whose network is that of
github.com/facebookresearch/DiT at ed81ce22 (CC BY-NC; a checkout of it gives the same numbers), but
that it drops the half of the channels which are for the variance; here they are kept. Needs torch
and timm (recorded with 2.13 and 1.0.31).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

# What the constructor takes, all that the test reads; a null class may come on top of num_classes.
SMALL = {
    'input_size': 8,
    'patch_size': 2,
    'in_channels': 4,
    'hidden_size': 24,
    'depth': 2,
    'num_heads': 3,
    'class_dropout_prob': 0.1,
    'num_classes': 5,
    'learn_sigma': True,
}
CASES = {
    'latents': SMALL,
    'odd': SMALL
    | {'input_size': 15, 'patch_size': 3, 'in_channels': 3, 'learn_sigma': False, 'depth': 1},
    'one_patch': SMALL | {'patch_size': 8, 'in_channels': 1, 'num_heads': 6},
    'no_null': SMALL | {'patch_size': 4, 'class_dropout_prob': 0.0},
}
BATCH = {'latents': 3, 'odd': 1, 'one_patch': 2, 'no_null': 2}


def inputs(fields: dict, b: int) -> dict:
    """x [b, h, w, c], times of which one is no whole number, and labels, the last class first."""
    shape = b, fields['input_size'], fields['input_size'], fields['in_channels']
    last = fields['num_classes'] - (fields['class_dropout_prob'] == 0)
    return {
        'x': np.random.default_rng(0).standard_normal(shape, np.float32),
        't': np.float32([999, 1.25, 0])[:b],
        'label': np.int32([last, 0, 2])[:b],
    }


def run(network, fields: dict, b: int) -> dict:
    """All that the test is told of one network."""
    net = network(**fields).eval()
    net.learn_sigma = False  # keeps the channels of the variance
    shapes = {name: x.shape for name, x in net.named_parameters() if name != 'pos_embed'}
    weights = {name: torch.tensor(x) for name, x in filled(shapes).items()}
    net.load_state_dict(weights | {'pos_embed': net.pos_embed.detach()})
    given = inputs(fields, b)
    x, t, label = map(torch.tensor, given.values())
    with torch.no_grad():
        y = net(x.permute(0, 3, 1, 2), t, label).permute(0, 2, 3, 1)
    told = {'fields': json.dumps(fields), 'shapes': json.dumps(shapes)}
    return told | given | {'pos_embed': net.pos_embed.detach().numpy(), 'result': y.numpy()}


def count(make) -> int:
    """Parameters of a network of published size, the positions counted; no memory."""
    with torch.device('meta'):
        return sum(x.numel() for x in make().parameters())


def main() -> None:
    """Records every case, and the sizes of the twelve networks of the paper."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    import models

    network = getattr(models, 'SiT', None) or models.DiT
    known = getattr(models, 'SiT_models', None) or models.DiT_models
    arrays = {
        f'{name}.{key}': value
        for name, fields in CASES.items()
        for key, value in run(network, fields, BATCH[name]).items()
    }
    counts = {name.split('-')[1]: count(make) for name, make in known.items()}
    save('dit', counts=json.dumps(counts), **arrays)


if __name__ == '__main__':
    main()
