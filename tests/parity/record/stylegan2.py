"""Writes golden/stylegan2.npz: `python tests/parity/record/stylegan2.py --source=CHECKOUT`.

CHECKOUT is github.com/NVlabs/stylegan3 at c233a919 (NVIDIA Source Code License; only the numbers
that its networks give are kept), which has StyleGAN2's. Needs torch (recorded with 2.13, on a CPU,
where the authors' operations are those of their 'ref' implementation).
"""

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from styled import equalized

# The constructors' arguments, and how many images.
GENERATORS = {
    'g_skip': ({'z_dim': 7, 'c_dim': 3, 'w_dim': 10, 'img_resolution': 16, 'img_channels': 3}, 3),
    'g_resnet': ({'z_dim': 6, 'c_dim': 0, 'w_dim': 5, 'img_resolution': 16, 'img_channels': 1}, 1),
    'g_orig': ({'z_dim': 4, 'c_dim': 2, 'w_dim': 5, 'img_resolution': 8, 'img_channels': 2}, 2),
}
SYNTHESIS = {
    'g_skip': {'channel_base': 272, 'channel_max': 19, 'architecture': 'skip'},
    'g_resnet': {'channel_base': 112, 'channel_max': 13, 'architecture': 'resnet'},
    'g_orig': {'channel_base': 72, 'channel_max': 11, 'architecture': 'orig'},
}
LAYERS = {'g_skip': 8, 'g_resnet': 2, 'g_orig': 1}  # of the mapping network
ORIG = {'c_dim': 0, 'img_resolution': 16, 'img_channels': 1, 'architecture': 'orig'}
RESNET = {'c_dim': 3, 'img_resolution': 16, 'img_channels': 3, 'architecture': 'resnet'}
DISCRIMINATORS = {  # and how many images are compared with each other
    'd_resnet': (
        {'c_dim': 3, 'img_resolution': 16, 'img_channels': 3, 'architecture': 'resnet'},
        6,
        3,
    ),
    'd_orig': (ORIG, 1, 4),
}
WIDTHS = {
    'd_resnet': {'channel_base': 272, 'channel_max': 19},
    'd_orig': {'channel_base': 80, 'channel_max': 7},
}
PSI, CUTOFF, PL_MEAN = 0.6, 3, 0.5
# upfirdn2d: taps, up, down, padding of both axes, gain, flip.
FIR = (
    ((1.0, 2, -5), 1, 1, (0, 0), 1.0, False),
    ((1.0, 2, -5, 4), 2, 1, (2, 1), 4.0, False),
    ((1.0, 2, -5, 4), 1, 2, (1, 3), 1.0, True),
    ((3.0, 1), 3, 2, (-2, 4), 2.5, False),
    ((3.0, 1, 2, 4, 5), 2, 3, (3, -1), 1.0, True),
)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nhwc(x: torch.Tensor) -> np.ndarray:
    """[b, c, h, w] -> [b, h, w, c]."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def fill(module: torch.nn.Module) -> dict:
    """Sets all weights by their names; returns their shapes."""
    shapes = {
        name: tuple(x.shape) for name, x in module.state_dict().items() if 'filter' not in name
    }
    weights = {name: torch.tensor(x) for name, x in equalized(shapes).items()}
    lacking, superfluous = module.load_state_dict(weights, strict=False)
    assert not superfluous
    assert all(name.endswith('resample_filter') for name in lacking)
    return shapes


def one_hot(label: np.ndarray, classes: int) -> torch.Tensor:
    """[b, classes]."""
    return torch.nn.functional.one_hot(torch.tensor(label).long() % max(classes, 1), classes or 1)


def gradients(loss: torch.Tensor, module: torch.nn.Module) -> dict:
    """{'grad.NAME': gradient} of all parameters, 0 where there is none."""
    names, params = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    given = zip(names, params, grads, strict=True)
    return {f'grad.{n}': (torch.zeros_like(p) if g is None else g).numpy() for n, p, g in given}


def generator(networks, name: str) -> dict:
    """ws, truncated ws, the average of w after a step, images with constant noise."""
    arguments, b = GENERATORS[name]
    net = networks.Generator(
        **arguments, **SYNTHESIS[name], mapping_kwargs={'num_layers': LAYERS[name]}
    )
    told = arguments | SYNTHESIS[name] | {'layers': LAYERS[name], 'shapes': fill(net)}
    z, label = normal(0, b, arguments['z_dim']), np.int32([2, 0, 1])[:b] % max(told['c_dim'], 1)
    c = one_hot(label, told['c_dim'])
    ws = net.mapping(torch.tensor(z), c)
    truncated = net.mapping(torch.tensor(z), c, truncation_psi=PSI, truncation_cutoff=CUTOFF)
    image = net.synthesis(ws, noise_mode='const')
    kept = {'z': z, 'label': label, 'ws': ws.detach().numpy(), 'image': nhwc(image)}
    if name == 'g_skip':  # Karras et al. 2020, equation 4, with the mean length as a constant
        noise = normal(1, *image.shape) / image.shape[-1]
        product = (image * torch.tensor(noise)).sum()
        (by_w,) = torch.autograd.grad(product, ws, create_graph=True)
        lengths = by_w.square().sum(2).mean(1).sqrt()
        penalty = (lengths - PL_MEAN).square().mean()
        kept |= {'noise': nhwc(torch.tensor(noise)), 'lengths': lengths.detach().numpy()}
        kept |= gradients(penalty, net)
    with torch.no_grad():
        net.mapping(torch.tensor(z), c, update_emas=True)
    told |= {'psi': PSI, 'cutoff': CUTOFF, 'pl_mean': PL_MEAN}
    return kept | {
        'told': json.dumps(told),
        'truncated': truncated.detach().numpy(),
        'w_avg': net.mapping.w_avg.numpy(),
    }


def discriminator(networks, name: str) -> dict:
    """Logits, R1 penalties and the gradient of their mean."""
    arguments, b, group = DISCRIMINATORS[name]
    net = networks.Discriminator(
        **arguments, **WIDTHS[name], epilogue_kwargs={'mbstd_group_size': group}
    )
    told = arguments | WIDTHS[name] | {'group': group, 'shapes': fill(net)}
    size, label = told['img_resolution'], np.int32([2, 0, 1, 1, 0, 2])[:b] % max(told['c_dim'], 1)
    image = torch.tensor(normal(2, b, told['img_channels'], size, size), requires_grad=True)
    logits = net(image, one_hot(label, told['c_dim']))[:, 0]
    kept = {'told': json.dumps(told), 'x': nhwc(image), 'label': label}
    kept['logits'] = logits.detach().numpy()
    if name == 'd_resnet':  # Mescheder et al. 2018, equation 9, without gamma / 2
        (by_x,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        penalty = by_x.square().sum([1, 2, 3])
        kept |= {'r1': penalty.detach().numpy(), **gradients(penalty.mean(), net)}
    return kept


def filters(upfirdn2d, conv2d_resample) -> dict:
    """The operations by themselves, with filters that are not symmetric."""
    x = normal(3, 2, 3, 5, 6)
    kept = {'x': nhwc(torch.tensor(x)), 'told': json.dumps(FIR)}
    for i, (taps, up, down, pad, gain, flip) in enumerate(FIR):
        f = upfirdn2d.setup_filter(taps, normalize=False)
        options = {'padding': [*pad, *pad], 'gain': gain, 'flip_filter': flip, 'impl': 'ref'}
        kept[f'fir_{i}'] = nhwc(upfirdn2d.upfirdn2d(torch.tensor(x), f, up, down, **options))
    x, taps = normal(4, 2, 3, 6, 4), np.float32([1, 3, 4, 2])
    kept |= {'conv_x': nhwc(torch.tensor(x)), 'taps': taps}
    f = upfirdn2d.setup_filter(taps)
    for size in (1, 3):
        w = normal(5, 5, 3, size, size)
        kept[f'kernel_{size}'] = w.transpose(2, 3, 1, 0)
        for name, options in {'up': {'up': 2}, 'down': {'down': 2}}.items():
            y = conv2d_resample.conv2d_resample(
                torch.tensor(x), torch.tensor(w), f, **options, padding=size // 2
            )
            kept[f'conv_{name}_{size}'] = nhwc(y)
    return kept


def main() -> None:
    """Records every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    # The reference asks it for versions only; setuptools no longer has it.
    resources = types.ModuleType('pkg_resources')
    resources.parse_version = lambda text: tuple(int(n) for n in text.split('.')[:2] if n.isdigit())
    sys.modules['pkg_resources'] = resources
    from torch_utils.ops import conv2d_resample, upfirdn2d
    from training import networks_stylegan2 as networks

    cases = {name: generator(networks, name) for name in GENERATORS}
    cases |= {name: discriminator(networks, name) for name in DISCRIMINATORS}
    cases['ops'] = filters(upfirdn2d, conv2d_resample)
    arrays = {f'{name}.{key}': x for name, case in cases.items() for key, x in case.items()}
    save('stylegan2', **arrays)


if __name__ == '__main__':
    main()
