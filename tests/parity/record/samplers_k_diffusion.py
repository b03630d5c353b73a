"""Writes golden/samplers_k_diffusion.npz: `python FILE --source=CHECKOUT`.

CHECKOUT is github.com/crowsonkb/k-diffusion at 4601bf08 (MIT). Needs torch (recorded with 2.13).
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from sampled import CHURN, STEPS, draws, karras, network


def imported(source: Path) -> ModuleType:
    """Their sampling.py, without the packages that only other files or functions of theirs need."""
    package, utils = ModuleType('k_diffusion'), ModuleType('k_diffusion.utils')
    package.__path__ = [str(source / 'k_diffusion')]
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *[1] * (ndim - x.ndim))
    for name, members in {'torchdiffeq': ['odeint'], 'torchsde': [], 'tqdm.auto': []}.items():
        sys.modules[name] = ModuleType(name)
        for member in members:
            setattr(sys.modules[name], member, None)
    sys.modules['tqdm.auto'].trange = lambda n, disable=None: range(n)
    sys.modules['tqdm.auto'].tqdm = None
    sys.modules |= {'k_diffusion': package, 'k_diffusion.utils': utils}
    package.utils = utils
    return importlib.import_module('k_diffusion.sampling')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', type=Path, required=True)
    theirs = imported(parser.parse_args().source)
    noise, sigmas = torch.tensor(draws()), torch.tensor(karras())

    def run(sampler, last=STEPS - 1, **options):
        falling = iter(noise[1 : last + 1].flip(0))
        drawn = {'noise_sampler': lambda *levels: next(falling)} if 'eta' in options else {}
        torch.randn_like = lambda x: next(falling)
        x = getattr(theirs, f'sample_{sampler}')(
            network(torch), sigmas[0] * noise[0], sigmas, disable=True, **drawn, **options
        )
        return np.asarray(x)

    churn = {
        's_churn': CHURN['churn'],
        's_tmin': CHURN['low'],
        's_tmax': CHURN['high'],
        's_noise': CHURN['noise'],
    }
    save(
        'samplers_k_diffusion',
        lms=run('lms'),
        dpmpp_2m=run('dpmpp_2m'),
        dpmpp_2m_sde=run('dpmpp_2m_sde', eta=1.0),
        dpmpp_2m_sde_half=run('dpmpp_2m_sde', eta=0.5),
        euler=run('euler', STEPS),
        euler_ancestral=run('euler_ancestral', eta=1.0),
        euler_ancestral_part=run('euler_ancestral', eta=0.6),
        heun_churn=run('heun', STEPS, **churn),
    )


if __name__ == '__main__':
    main()
