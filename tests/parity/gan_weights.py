"""Weights of the networks in golden/gan_resnets.npz, as record/gan_resnets.py fills them."""

import numpy as np
from golden import filled


def gan_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """By the reference's names, of those that have a shape, and the gains of attention."""
    weights = filled({name: tuple(x) for name, x in shapes.items()})
    for name, x in weights.items():
        if name.endswith('_var'):
            weights[name] = np.abs(x) + np.float32(0.5)
    # Numbers without an axis, which the rule leaves out.
    gains = {name.replace('theta.weight', 'gamma') for name in shapes if '.theta.weight' in name}
    return weights | {name: np.float32(0.7) for name in gains - weights.keys()}
