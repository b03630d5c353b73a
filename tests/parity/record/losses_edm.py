"""Writes golden/losses_edm.npz: `python tests/parity/record/losses_edm.py --source=CHECKOUT`.

CHECKOUT is github.com/NVlabs/edm at 008a4e53 (CC BY-NC-SA 4.0). Needs torch (recorded with 2.13).
Their losses, with what they call preconditioning, of the network of trained.py, for each image. In
float64: in float32 theirs have lost digits where there is little noise.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from trained import inputs, network, normals, shares


class Network(torch.nn.Module):
    """The network as their preconditioning calls it, told what `near` makes near 1."""

    def __init__(self, near):
        super().__init__()
        self._near, self._says = near, network(torch)

    def forward(self, x, told, class_labels, augment_labels):
        return self._says(x, self._near(told))


def run(loss, precondition, near=lambda told: told) -> np.ndarray:
    """The loss of each image; theirs is one number for each value."""
    x_0, eps = map(torch.tensor, inputs())
    torch.rand = lambda shape, device: torch.tensor(shares()).reshape(shape)
    torch.randn = lambda shape, device: torch.tensor(normals()).reshape(shape)
    torch.randn_like = lambda x: eps
    net = precondition(img_resolution=4, img_channels=3)
    net.model = Network(near)
    return loss(net, x_0, None).mean((1, 2, 3)).numpy()


def main() -> None:
    """Records all three."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    torch.set_default_dtype(torch.float64)
    from training import loss, networks

    torch.float32 = torch.float64  # to which theirs turn all that comes in
    networks.SongUNet = networks.DhariwalUNet = lambda *args, **kwargs: None  # run puts ours there
    save(
        'losses_edm',
        vp=run(loss.VPLoss(), networks.VPPrecond, lambda told: told / 999),
        ve=run(loss.VELoss(), networks.VEPrecond),
        edm=run(loss.EDMLoss(), networks.EDMPrecond),
    )


if __name__ == '__main__':
    main()
