"""Writes golden/losses_cfm.npz: `python tests/parity/record/losses_cfm.py --source=CHECKOUT`.

CHECKOUT is github.com/atong01/conditional-flow-matching at cacd4dc8 (MIT). Their I-CFM, and the
squared error that examples/images/cifar10/train_cifar10.py takes of it, of the network of
trained.py, for each image. Needs torch (recorded with 2.13); POT, which it does not use, is left
out.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from trained import inputs, network, shares


def main() -> None:
    """Records it. Their time is 0 at the noise, x0, and 1 at the image, x1."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    sys.path.insert(0, parser.parse_args().source)
    sys.modules['ot'] = ModuleType('ot')
    from torchcfm import ConditionalFlowMatcher

    image, noise = map(torch.tensor, inputs())
    given = noise, image, torch.tensor(shares())
    t, x_t, flow = ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(*given)
    # The way from image to noise, and the time on it: those of trained.py's network.
    says = -network(torch)(x_t, 1 - t)
    save('losses_cfm', icfm=((says - flow) ** 2).mean((1, 2, 3)).numpy())


if __name__ == '__main__':
    main()
