"""Writes golden/song_score_sde.npz: `python .../record/song_score_sde.py --source=CHECKOUT`.

CHECKOUT is github.com/yang-song/score_sde_pytorch at cb1f359f (Apache 2.0). Needs torch (recorded
with 2.13). The checkout compiles its filters for CUDA when it is imported; here that is left out,
as on a CPU it runs its own in torch.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

# `model` of their configs, what all networks share left out.
DDPMPP = {
    'embedding_type': 'positional',
    'progressive': 'none',
    'progressive_input': 'none',
    'fir': False,
    'scale_by_sigma': False,
}
NCSNPP_VP = DDPMPP | {'progressive_input': 'residual', 'fir': True}
NCSNPP = NCSNPP_VP | {'embedding_type': 'fourier', 'scale_by_sigma': True}
NCSNPP_256 = NCSNPP | {'progressive': 'output_skip', 'progressive_input': 'input_skip'}
SHARED = {
    'sigma_min': 0.01,
    'sigma_max': 50,
    'num_scales': 1000,
    'dropout': 0.1,
    'nonlinearity': 'swish',
    'resamp_with_conv': True,
    'conditional': True,
    'fir_kernel': [1, 3, 3, 1],
    'skip_rescale': True,
    'resblock_type': 'biggan',
    'progressive_combine': 'sum',
    'init_scale': 0.0,
    'fourier_scale': 16,
}

TWO = {'nf': 16, 'ch_mult': (1, 2), 'num_res_blocks': 2, 'attn_resolutions': (4,)}
THREE = {'nf': 8, 'ch_mult': (1, 1, 3), 'num_res_blocks': 1, 'attn_resolutions': (12, 5)}
CASES = {
    # (model, shape of x, times or sigmas)
    'ddpmpp': (DDPMPP | TWO, (3, 8, 8, 3), (999, 1.25, 0)),
    'ncsnpp_vp': (NCSNPP_VP | THREE, (1, 12, 12, 1), (999,)),
    'ncsnpp': (NCSNPP | TWO | {'num_res_blocks': 1}, (3, 8, 8, 3), (50, 0.01, 1.3)),
    'ncsnpp_256': (NCSNPP_256 | THREE, (2, 20, 20, 3), (0.3, 348)),
}

CIFAR = {'nf': 128, 'ch_mult': (1, 2, 2, 2), 'num_res_blocks': 4, 'attn_resolutions': (16,)}
DEEP = CIFAR | {'num_res_blocks': 8}
FFHQ = CIFAR | {'ch_mult': (1, 1, 2, 2, 2, 2, 2), 'num_res_blocks': 2}
PUBLISHED = {
    'ddpmpp': (DDPMPP | CIFAR, 32),
    'ddpmpp_deep': (DDPMPP | DEEP, 32),
    'ncsnpp': (NCSNPP | CIFAR, 32),
    'ncsnpp_deep': (NCSNPP | DEEP, 32),
    'ncsnpp_vp': (NCSNPP_VP | CIFAR, 32),
    'ncsnpp_ffhq_256': (NCSNPP_256 | FFHQ, 256),
}

FILTERS = {
    # (function, shape of x, taps, options)
    'same': ('upfirdn2d', (2, 5, 4, 3), (1, 2, 1), {'pad': (1, 1)}),
    'uneven': ('upfirdn2d', (1, 5, 7, 1), (1, -2, 5), {'up': 3, 'down': 2, 'pad': (-1, 4)}),
    'up': ('upsample', (1, 3, 4, 2), (1, 3, 3, 1), {}),
    'down': ('downsample', (1, 6, 4, 2), (1, 3, 3, 1), {}),
    'up_odd': ('upsample', (1, 3, 2, 1), (1, 2, 5), {}),
    'down_odd': ('downsample', (1, 8, 4, 1), (1, 2, 5, 4, 3), {}),
    'up_three': ('upsample', (1, 2, 3, 1), (1, 2, 5, 4, 3), {'factor': 3}),
    'down_three': ('downsample', (1, 6, 3, 1), (1, 2, 5, 4), {'factor': 3}),
}


def import_networks(source: str) -> tuple:
    """The checkout's NCSNpp and its module of filters."""
    sys.path.insert(0, source)
    extension = sys.modules['torch.utils.cpp_extension'] = ModuleType('cpp_extension')
    extension.load = lambda *args, **kwargs: None
    sys.modules['sde_lib'] = ModuleType('sde_lib')
    from models import ncsnpp, up_or_down_sampling

    return ncsnpp.NCSNpp, up_or_down_sampling


def build(network, model: dict, size: int, channels: int = 3):
    """A network of theirs. Those for VE take images in [0, 1]."""
    data = {'image_size': size, 'num_channels': channels, 'centered': not model['scale_by_sigma']}
    return network(
        SimpleNamespace(
            model=SimpleNamespace(**SHARED | model),
            data=SimpleNamespace(**data),
            training=SimpleNamespace(continuous=True),
        )
    ).eval()


def run(network, model: dict, shape: tuple, t: tuple) -> dict:
    """All that the test is told of one network."""
    net = build(network, model, shape[1], shape[3])
    shapes = {name: x.shape for name, x in net.named_parameters()}
    weights = {name: torch.tensor(x) for name, x in filled(shapes).items()}
    net.load_state_dict(weights | {'sigmas': net.sigmas})
    x, t = np.random.default_rng(0).standard_normal(shape, np.float32), np.float32(t)
    theirs = (x + 1) / 2 if model['scale_by_sigma'] else x
    with torch.no_grad():
        y = net(torch.tensor(theirs).permute(0, 3, 1, 2), torch.tensor(t)).permute(0, 2, 3, 1)
    case = json.dumps({'model': model, 'channels': shape[3]})
    return {'case': case, 'shapes': json.dumps(shapes), 'x': x, 't': t, 'result': y.numpy()}


def known(network, model: dict, size: int) -> dict:
    """A published network and its parameters."""
    total = sum(x.numel() for x in build(network, model, size).parameters())
    return {'model': model, 'size': size, 'parameters': total}


def filtered(sampling, name: str, shape: tuple, taps: tuple, options: dict) -> np.ndarray:
    """What their filter makes of an image [b, h, w, c] of seed 0."""
    x = torch.tensor(np.random.default_rng(0).standard_normal(shape, np.float32))
    if name == 'upfirdn2d':
        function, taps = sampling.upfirdn2d, torch.tensor(np.outer(taps, taps).astype(np.float32))
    else:
        function = getattr(sampling, f'{name}_2d')
    return function(x.permute(0, 3, 1, 2), taps, **options).permute(0, 2, 3, 1).numpy()


def main() -> None:
    """Records every case, and the sizes of published networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    network, sampling = import_networks(parser.parse_args().source)
    arrays = {
        f'{name}.{key}': value
        for name, case in CASES.items()
        for key, value in run(network, *case).items()
    }
    arrays |= {f'fir.{name}': filtered(sampling, *case) for name, case in FILTERS.items()}
    published = {name: known(network, *case) for name, case in PUBLISHED.items()}
    arrays |= {'fir.cases': json.dumps(FILTERS), 'published': json.dumps(published)}
    save('song_score_sde', **arrays)


if __name__ == '__main__':
    main()
