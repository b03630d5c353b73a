"""Writes golden/song_edm.npz: `python tests/parity/record/song_edm.py --source=CHECKOUT`.

CHECKOUT is github.com/NVlabs/edm at 008a4e53 (CC BY-NC-SA 4.0). Needs torch (recorded with 2.13).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

# What their constructor takes.
SHARED = {'in_channels': 3, 'out_channels': 3}
VP = SHARED | {
    'embedding_type': 'positional',
    'encoder_type': 'standard',
    'resample_filter': [1, 1],
}
VE = SHARED | {
    'embedding_type': 'fourier',
    'channel_mult_noise': 2,
    'encoder_type': 'residual',
    'resample_filter': [1, 3, 3, 1],
}

SMALL = {
    'img_resolution': 8,
    'model_channels': 16,
    'channel_mult': [2, 1],
    'num_blocks': 1,
    'attn_resolutions': [8],
}
LABELS = {'label_dim': 5, 'augment_dim': 4}
CASES = {
    # (fields, images, noises as the network is told them)
    'vp_labels': (VP | SMALL | LABELS, 3, (700.5, 0.25, 9)),
    've_labels': (VE | SMALL | LABELS, 3, (-1.5, 0.2, 1.1)),
    # Two that can be built and are not published.
    'skips': (VP | SMALL | {'encoder_type': 'skip', 'decoder_type': 'skip'}, 1, (0.2,)),
    'residual_no_fir': (VP | SMALL | {'encoder_type': 'residual'}, 2, (0.2, 1.1)),
}

CIFAR = {'img_resolution': 32, 'channel_mult': [2, 2, 2], 'augment_dim': 9}
FFHQ = {'img_resolution': 64, 'channel_mult': [1, 2, 2, 2], 'augment_dim': 9}
PUBLISHED = {
    'cifar10_uncond_vp': VP | CIFAR,
    'cifar10_cond_vp': VP | CIFAR | {'label_dim': 10},
    'cifar10_uncond_ve': VE | CIFAR,
    'cifar10_cond_ve': VE | CIFAR | {'label_dim': 10},
    'ffhq_vp': VP | FFHQ,
    'ffhq_ve': VE | FFHQ,
}


def inputs(fields: dict, b: int, t: tuple) -> dict:
    """x [b, h, w, c], t [b], and where there are classes label, one of them none, and augment."""
    size, classes = fields['img_resolution'], fields.get('label_dim', 0)
    rng = np.random.default_rng(0)
    given = {'x': rng.standard_normal((b, size, size, 3), np.float32), 't': np.float32(t)}
    if classes:
        given['label'] = np.int32([classes - 1, classes, 0])
        given['augment'] = rng.standard_normal((b, fields['augment_dim']), np.float32)
    return given


def run(network, fields: dict, b: int, t: tuple) -> dict:
    """All that the test is told of one network."""
    net = network(**fields).eval()
    state = net.state_dict()
    shapes = {k: x.shape for k, x in state.items() if not k.endswith('resample_filter')}
    net.load_state_dict(state | {k: torch.tensor(x) for k, x in filled(shapes).items()})
    given = inputs(fields, b, t)
    x, t, *rest = map(torch.tensor, given.values())
    if rest:
        # Their labels are one-hot; no class is a row of zeros.
        rest[0] = torch.eye(fields['label_dim'] + 1)[rest[0], :-1]
    with torch.no_grad():
        y = net(x.permute(0, 3, 1, 2), t, *(rest or [None])).permute(0, 2, 3, 1)
    told = {'case': json.dumps(fields), 'shapes': json.dumps(shapes)}
    return told | given | {'result': y.numpy()}


def known(network, fields: dict) -> dict:
    """A published network and its parameters; no memory."""
    with torch.device('meta'):
        return {
            'fields': fields,
            'parameters': sum(x.numel() for x in network(**fields).parameters()),
        }


def main() -> None:
    """Records every case, and the sizes of published networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    from training.networks import SongUNet

    arrays = {
        f'{name}.{key}': value
        for name, case in CASES.items()
        for key, value in run(SongUNet, *case).items()
    }
    published = {name: known(SongUNet, fields) for name, fields in PUBLISHED.items()}
    save('song_edm', published=json.dumps(published), **arrays)


if __name__ == '__main__':
    main()
