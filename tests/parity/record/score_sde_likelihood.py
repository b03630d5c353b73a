"""Writes golden/score_sde_likelihood.npz: `python .../score_sde_likelihood.py --source=CHECKOUT`.

CHECKOUT is github.com/yang-song/score_sde at 0acb9e0e (Apache 2.0). Their likelihood.py, sde_lib.py
and models/utils.py run as they are; what these import and do not use here is left out: TensorFlow,
old flax's optimisers and a classifier. Recorded with JAX 0.10.2 and SciPy 1.17.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import filled, save

SHAPE = (4, 4, 3)
HIDDEN = 24
SHAPES = {
    'bias': (HIDDEN,),
    'inner': (48, HIDDEN),
    'outer': (HIDDEN, 48),
    'time': (HIDDEN,),
    'skip.scale': (48,),
}
CASES = {
    # (SDE, Hutchinson's noise, examples)
    'vp': ('VPSDE', 'Rademacher', 3),
    'vp_gaussian': ('VPSDE', 'Gaussian', 1),
    'subvp': ('subVPSDE', 'Rademacher', 1),
    've': ('VESDE', 'Rademacher', 1),
}


def network(weights: dict, x, told):
    """Noise that a made-up network sees in x [b, h, w, c], told a number near 1 [b]."""
    flat = x.reshape(len(x), -1)
    hidden = flat @ weights['inner'] + told[:, None] * weights['time'] + weights['bias']
    y = jnp.tanh(hidden) @ weights['outer'] + 0.2 * weights['skip.scale'] * flat
    return y.reshape(x.shape)


class Model:
    """The network as their code calls it. For VE it gives the score itself, told sigma."""

    def __init__(self, ve: bool):
        self._ve = ve

    def apply(self, variables, x, labels, train, mutable):
        """What their `get_model_fn` asks of a flax module."""
        if not self._ve:
            return network(variables['params'], x, labels / 999)
        scaled = x / jnp.sqrt(1 + labels**2)[:, None, None, None]
        noise = network(variables['params'], scaled, jnp.log(labels) / 4)
        return -noise / labels[:, None, None, None]


def import_theirs(source: str) -> tuple:
    """The checkout's likelihood and sde_lib modules."""
    sys.path.insert(0, source)
    importlib.import_module('flax.training.checkpoints')  # which looks for the real TensorFlow
    for name in ('tensorflow', 'models.wideresnet_noise_conditional'):
        sys.modules[name] = ModuleType(name)
    flax.optim = SimpleNamespace(Optimizer=object)
    return importlib.import_module('likelihood'), importlib.import_module('sde_lib')


def run(likelihood, sde_lib, name: str, hutchinson: str, b: int) -> dict:
    """All that the test is told of one case: their inputs, and what came out."""
    levels = np.random.default_rng(0).integers(0, 256, (b, *SHAPE))
    u = np.random.default_rng(1).random((b, *SHAPE))
    x = np.float32((levels + u) / 128 - 1)  # their dequantisation and scaler
    weights = {name: jnp.asarray(w) for name, w in filled(SHAPES, outputs_first=False).items()}
    key = jax.random.PRNGKey(0)
    state = SimpleState(params_ema=weights, model_state={})
    compute = likelihood.get_likelihood_fn(
        getattr(sde_lib, name)(), Model(name == 'VESDE'), lambda x: (x + 1) / 2, hutchinson
    )
    bpd, z, nfe = compute(key[None], jax_utils.replicate(state), x[None])
    # As they draw it from the same key.
    _, key = jax.random.split(key)
    if hutchinson == 'Gaussian':
        probe = jax.random.normal(key, (1, *x.shape))
    else:
        probe = jax.random.randint(key, (1, *x.shape), 0, 2) * 2.0 - 1
    return {'x': x, 'probe': probe[0], 'bpd': bpd[0], 'z': z[0], 'nfe': nfe}


@flax.struct.dataclass
class SimpleState:
    """The fields of their State that the likelihood reads."""

    params_ema: dict
    model_state: dict


def main() -> None:
    """Records every case."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--source', required=True)
    theirs = import_theirs(parser.parse_args().source)
    arrays = {
        f'{name}.{key}': np.asarray(value)
        for name, case in CASES.items()
        for key, value in run(*theirs, *case).items()
    }
    save('score_sde_likelihood', **arrays)


if __name__ == '__main__':
    main()
