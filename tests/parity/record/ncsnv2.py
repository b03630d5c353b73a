"""Writes golden/ncsnv2.npz: `python tests/parity/record/ncsnv2.py --source=CHECKOUT`.

CHECKOUT is github.com/ermongroup/ncsnv2 at 1bcea03 (MIT). Needs torch (recorded with 2.13).
"""

import argparse
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save

SHAPE = (5, 4, 3, 2)  # [b, h, w, c]
LEVELS = np.array([0, 1, 100, 230, 231])  # counted from the most noise, as theirs do


def loaded(path: Path):
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Records the ladder of CIFAR-10, and the loss of each image at one level."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    folder = Path(parser.parse_args().source)
    told = {'sigma_dist': 'geometric', 'sigma_begin': 50, 'sigma_end': 0.01, 'num_classes': 232}
    config = SimpleNamespace(model=SimpleNamespace(**told), device='cpu')
    sigmas = loaded(folder / 'models' / '__init__.py').get_sigmas(config)
    dsm = loaded(folder / 'losses' / 'dsm.py')

    rng = np.random.default_rng(0)
    x_0, eps, said = (rng.standard_normal(SHAPE, np.float32) for _ in range(3))
    torch.randn_like = lambda x: torch.tensor(eps)
    each = []

    def network(x, labels):
        """What it says, over sigma, as their networks do; and a part of what it sees."""
        sigma = sigmas[labels][:, None, None, None]
        return torch.tensor(said) / sigma - 0.5 * x / sigma**2

    dsm.anneal_dsm_score_estimation(
        network, torch.tensor(x_0), sigmas, torch.tensor(LEVELS), hook=lambda x, _: each.append(x)
    )
    save('ncsnv2', sigmas=sigmas.numpy(), x_0=x_0, eps=eps, said=said, levels=LEVELS, loss=each[0])


if __name__ == '__main__':
    main()
