"""Writes golden/augment_edm.npz: `python tests/parity/record/augment_edm.py --source=CHECKOUT`.

CHECKOUT is github.com/NVlabs/edm at 008a4e53 (CC BY-NC-SA 4.0). Needs torch (recorded with 2.13).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save

USED = ('xflip', 'yflip', 'scale', 'rotate_frac', 'aniso', 'translate_frac')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    from training.augment import AugmentPipe

    drawn, names = [], ('randint', 'rand', 'randn')
    originals = {name: getattr(torch, name) for name in names}

    def spy(name):
        def draw(*args, **kwargs):
            drawn.append(originals[name](*args, **kwargs))
            return drawn[-1]

        return draw

    for name in names:
        setattr(torch, name, spy(name))
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((6, 8, 10, 3)).astype(np.float32)
    pipe = AugmentPipe(p=0.7, **dict.fromkeys(USED, 1))
    images, labels = pipe(torch.tensor(x).permute(0, 3, 1, 2))
    flat = [np.asarray(d, np.float64).reshape(-1, 6) for d in drawn]
    xflip, yflip, scale, rotation, stretch, angle, shift = (
        *(flat[0] * (flat[1] < 0.7), flat[2] * (flat[3] < 0.7), flat[4] * (flat[5] < 0.7)),
        (flat[6] * 2 - 1) * np.pi * (flat[7] < 0.7),
        *(flat[8] * (flat[10] < 0.7), (flat[9] * 2 - 1) * np.pi * (flat[11] < 0.5)),
        flat[12] * (flat[13] < 0.7),
    )
    done = np.concatenate([xflip, yflip, scale, rotation, stretch, angle, shift])
    save(
        'augment_edm',
        x=x,
        done=done.astype(np.float32),
        images=images.permute(0, 2, 3, 1).numpy(),
        labels=labels.numpy(),
    )


if __name__ == '__main__':
    main()
