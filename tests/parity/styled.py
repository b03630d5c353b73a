"""Weights for networks with equalized learning rates: `golden.filled` would make them too small."""

import numpy as np
from golden import filled

RATE = 0.01  # of mapping networks


def equalized(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Standard normal weights and biases near their first values, by the authors' names."""
    return {name: _scaled(name, x) for name, x in filled(shapes).items()}


def _scaled(name, x):
    if x.ndim > 1:
        x = x * np.sqrt(np.prod(x.shape[1:]), dtype=np.float32)
    if name.startswith('mapping.fc'):
        x = x / np.float32(RATE)
    return x + np.float32(name.endswith('affine.bias'))
