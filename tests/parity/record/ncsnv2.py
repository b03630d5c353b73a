"""Writes golden/ncsnv2.npz: `python tests/parity/record/ncsnv2.py --source=CHECKOUT`.

CHECKOUT is github.com/ermongroup/ncsnv2 at 1bcea03 (MIT). Needs torch (recorded with 2.13).
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

SHAPE = (5, 4, 3, 2)  # [b, h, w, c]
LEVELS = np.array([0, 1, 100, 230, 231])  # counted from the most noise, as theirs do
CIFAR = {'sigma_dist': 'geometric', 'sigma_begin': 50, 'sigma_end': 0.01, 'num_classes': 232}
# For each: their class, its width, shape of x, and levels.
CASES = {
    'four': ('NCSNv2', 16, (3, 12, 10, 3), (231, 0, 100)),
    'five': ('NCSNv2Deeper', 8, (1, 12, 20, 1), (17,)),
    'six': ('NCSNv2Deepest', 6, (2, 16, 24, 3), (200, 3)),
}
# Of 'four': a short ladder, and steps as long as theirs of CIFAR-10 are, for the noise.
WALK = {'sigma_begin': 1.0, 'sigma_end': 0.1, 'num_classes': 4}
STEPS, STEP_LR, WALKED = 3, 6.2e-4, (2, 8, 6, 3)


def told(channels: int, ngf: int, **changes):
    """What their functions want of a config: CIFAR-10's, but for the sizes."""
    model = {'normalization': 'InstanceNorm++', 'nonlinearity': 'elu', 'ngf': ngf}
    data = {'logit_transform': False, 'rescaled': False, 'channels': channels, 'image_size': 32}
    return SimpleNamespace(
        model=SimpleNamespace(**CIFAR | model | changes),
        data=SimpleNamespace(**data),
        device='cpu',
    )


def channels_first(x: np.ndarray) -> torch.Tensor:
    """[..., h, w, c] -> [..., c, h, w]."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, -3)))


def build(make, channels: int, ngf: int, **changes):
    """A network of theirs with `filled` weights, and the shapes of these."""
    net = make(told(channels, ngf, **changes)).eval()
    shapes = {name: x.shape for name, x in net.named_parameters()}
    weights = {name: torch.tensor(x) for name, x in filled(shapes).items()}
    net.load_state_dict(weights | {'sigmas': net.sigmas})
    return net, shapes


def run(make, ngf: int, shape: tuple, levels: tuple) -> dict:
    """All that the test is told of one network. Theirs see images in [0, 1]."""
    net, shapes = build(make, shape[3], ngf)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    with torch.no_grad():
        y = net(channels_first((x + 1) / 2), torch.tensor(levels))
    case = {'case': json.dumps({'channels': ngf, 'shapes': shapes}), 'levels': np.array(levels)}
    return case | {'x': x, 'result': y.permute(0, 2, 3, 1).numpy()}


def walk(make, anneal) -> dict:
    """Their annealed Langevin dynamics from uniform noise, denoised at the end."""
    rng = np.random.default_rng(1)
    x = rng.random(WALKED, np.float32)
    noise = rng.standard_normal((WALK['num_classes'], STEPS, *WALKED), np.float32)
    net, _ = build(make, WALKED[3], CASES['four'][1], **WALK)
    each = iter(channels_first(noise.reshape(-1, *WALKED)))
    torch.randn_like = lambda x: next(each)
    (y,) = anneal(channels_first(x), net, net.sigmas.numpy(), STEPS, STEP_LR, final_only=True)
    return {'x': x, 'noise': noise, 'result': y.permute(0, 2, 3, 1).numpy(), 'step_lr': STEP_LR}


def losses(sigmas, dsm) -> dict:
    """The ladder of CIFAR-10, and the loss of each image at one level."""
    rng = np.random.default_rng(0)
    x_0, eps, said = (rng.standard_normal(SHAPE, np.float32) for _ in range(3))
    torch.randn_like = lambda x: torch.tensor(eps)
    each = []

    def network(x, labels):
        """What it says, over sigma, as their networks do; and a part of what it sees."""
        sigma = sigmas[labels][:, None, None, None]
        return torch.tensor(said) / sigma - 0.5 * x / sigma**2

    dsm(network, torch.tensor(x_0), sigmas, torch.tensor(LEVELS), hook=lambda x, _: each.append(x))
    found = {'sigmas': sigmas.numpy(), 'levels': LEVELS, 'loss': each[0]}
    return found | {'x_0': x_0, 'eps': eps, 'said': said}


def main() -> None:
    """Records losses, networks, a trajectory, and the sizes of the published networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    import models
    from losses.dsm import anneal_dsm_score_estimation
    from models import ncsnv2

    arrays = losses(models.get_sigmas(told(3, 128)), anneal_dsm_score_estimation)
    counts = {}
    for name, (kind, *case) in CASES.items():
        make = getattr(ncsnv2, kind)
        arrays |= {f'{name}.{key}': value for key, value in run(make, *case).items()}
        counts[name] = sum(x.numel() for x in make(told(3, 128)).parameters())
    walked = walk(ncsnv2.NCSNv2, models.anneal_Langevin_dynamics)
    arrays |= {f'walk.{key}': value for key, value in walked.items()}
    save('ncsnv2', counts=json.dumps(counts), **arrays)


if __name__ == '__main__':
    main()
