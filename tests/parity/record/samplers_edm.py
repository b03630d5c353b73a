"""Writes golden/samplers_edm.npz: `python tests/parity/record/samplers_edm.py --source=CHECKOUT`.

CHECKOUT is github.com/NVlabs/edm at 008a4e53 (CC BY-NC-SA 4.0). Needs torch (recorded with 2.13).
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from sampled import CHURN, STEPS, draws, network


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    # What the file imports, but this function does not use.
    for name in ('click', 'tqdm', 'PIL', 'PIL.Image', 'dnnlib', 'torch_utils'):
        sys.modules[name] = ModuleType(name)
    sys.modules['torch_utils'].distributed = None
    source = Path(parser.parse_args().source, 'generate.py').read_text()
    scope = {'__name__': 'generate'}
    exec(source[: source.index('# Generalized ablation sampler')], scope)

    class Net:
        sigma_min, sigma_max = 0.0, float('inf')
        round_sigma = staticmethod(torch.as_tensor)
        denoise = staticmethod(network(torch))

        def __call__(self, x, sigma, class_labels):
            return self.denoise(x, sigma)

    noise = torch.tensor(draws())

    def run(churn):
        falling = iter(noise[1:].flip(0))
        x = scope['edm_sampler'](
            Net(),
            noise[0],
            randn_like=lambda x: next(falling),
            num_steps=STEPS,
            S_churn=churn,
            S_min=CHURN['low'],
            S_max=CHURN['high'],
            S_noise=CHURN['noise'],
        )
        return np.asarray(x)

    save('samplers_edm', plain=run(0.0), churn=run(CHURN['churn']))


if __name__ == '__main__':
    main()
