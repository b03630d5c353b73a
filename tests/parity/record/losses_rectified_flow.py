"""Writes golden/losses_rectified_flow.npz: `python .../losses_rectified_flow.py --source=CHECKOUT`.

CHECKOUT is github.com/gnobitab/RectifiedFlow at 5a1fd4d3 (losses.py: Apache 2.0). Their
`get_rectified_flow_loss_fn`, of the network of trained.py, for each image. Needs torch (recorded
with 2.13).
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from trained import inputs, network, shares


class Model(torch.nn.Module):
    """The network by their time, which is 0 at the noise and 1 at the image, times 999."""

    def forward(self, x, told):
        return -network(torch)(x, 1 - told / 999)


def run(losses, sde_lib, mean: bool) -> np.ndarray:
    """The loss of each image, [N]; theirs is that of the batch."""
    sde = sde_lib.RectifiedFlow()
    each, found = losses.get_rectified_flow_loss_fn(sde, train=True, reduce_mean=mean), []
    for image, noise, share in zip(*map(torch.tensor, (*inputs(), shares())), strict=True):
        torch.randn = lambda shape, noise=noise: noise[None]
        torch.rand = lambda n, device, share=share: share[None]
        found.append(each(Model(), image[None]).numpy())
    return np.stack(found)


def main() -> None:
    """Records it by means and by sums."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, str(Path(parser.parse_args().source, 'ImageGeneration')))
    # What the folder's __init__.py imports are networks, which it does not use.
    sys.modules['models'] = ModuleType('models')
    sys.modules['models'].__path__ = [str(Path(sys.path[0], 'models'))]
    import losses
    import sde_lib

    save(
        'losses_rectified_flow',
        flow=run(losses, sde_lib, True),
        flow_sum=run(losses, sde_lib, False),
    )


if __name__ == '__main__':
    main()
