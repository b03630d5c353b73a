"""Writes golden/losses_score_sde.npz: `python .../losses_score_sde.py --source=CHECKOUT`.

CHECKOUT is github.com/yang-song/score_sde at 0acb9e0e (Apache 2.0). Their `get_sde_loss_fn`, of the
network of trained.py, for each image. Recorded with JAX 0.10.2, in float64: in float32 theirs have
lost digits where there is little noise.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from score_sde_likelihood import import_theirs

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import save
from trained import inputs, network, shares

SDES = {'vp': 'VPSDE', 'sub_vp': 'subVPSDE', 've': 'VESDE'}


class Model:
    """The network as their code calls it. For VE, whose images are in [0, 1], it gives the score.

    As NCSN++ does it then sees them in [-1, 1], is told log(sigma), and divides by sigma.
    """

    def __init__(self, ve: bool):
        self._ve, self._says = ve, network(jnp)

    def apply(self, variables, x, labels, train, mutable, rngs):
        """What their `get_model_fn` asks of a flax module in training."""
        if not self._ve:
            return self._says(x, labels / 999), {}
        return self._says(2 * x - 1, jnp.log(labels)) / labels[:, None, None, None], {}


def run(losses, sde, name: str, likelihood: bool, mean: bool) -> np.ndarray:
    """The loss of each image, [N]; theirs is that of the batch."""
    each = losses.get_sde_loss_fn(
        sde, Model(name == 've'), train=True, reduce_mean=mean, likelihood_weighting=likelihood
    )
    found = []
    for x_0, eps, share in zip(*inputs(), shares(), strict=True):
        losses.random = SimpleNamespace(
            split=lambda key: (key, key),
            uniform=lambda key, shape, minval, maxval, share=share: jnp.full(
                shape, minval + share * (maxval - minval)
            ),
            normal=lambda key, shape, eps=eps: jnp.asarray(eps[None]),
        )
        image = (x_0 + 1) / 2 if name == 've' else x_0
        found.append(each(None, {}, {}, {'image': jnp.asarray(image[None])})[0])
    return np.stack(found)


def main() -> None:
    """Records each SDE, weighted for the likelihood or not, by means and by sums."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    _, sde_lib = import_theirs(parser.parse_args().source)
    jax.config.update('jax_enable_x64', True)
    losses, arrays = importlib.import_module('losses'), {}
    for name, sde in SDES.items():
        for likelihood in (False, True):
            for mean in (False, True):
                case = name + '_likelihood' * likelihood + '_sum' * (not mean)
                arrays[case] = run(losses, getattr(sde_lib, sde)(), name, likelihood, mean)
    save('losses_score_sde', **arrays)


if __name__ == '__main__':
    main()
