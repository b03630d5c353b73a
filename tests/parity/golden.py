"""What reference implementations that no package carries gave, for weights that a rule makes.

Each `golden/NAME.npz` was written by `record/NAME.py --source=CHECKOUT`, which says which
repository and commit, and runs the reference there on `filled` weights. The tests make the same
weights, read them through gen_jax.interop as published files are read, and compare.
"""

import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / 'golden'


def filled(shapes: dict[str, tuple[int, ...]], outputs_first: bool = True) -> dict[str, np.ndarray]:
    """Float32 weights by name and shape only, which keep a network's values near 1.

    No norm's scale is 1 and no bias or last layer 0, which would hide mistakes.

    Args:
      shapes: by the reference's own names.
      outputs_first: whether the axis of outputs is the first, as in torch, or the last, as in JAX.
    """
    weights = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if len(shape) > 1:
            fan_in = np.prod(shape[1:] if outputs_first else shape[:-1])
            x = x / np.sqrt(fan_in)
        else:
            scale = name.endswith(('weight', 'scale', 'gain', 'alpha', 'gamma'))
            x = 0.2 * x + scale
        weights[name] = x.astype(np.float32)
    return weights


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of golden/NAME.npz."""
    with np.load(FOLDER / f'{name}.npz') as arrays:
        return dict(arrays)


def save(name: str, **arrays: np.ndarray) -> None:
    """Writes golden/NAME.npz, small enough for a repository."""
    path = FOLDER / f'{name}.npz'
    np.savez_compressed(path, **arrays)
    assert path.stat().st_size < 300_000, f'{path} is too large to commit: record smaller inputs'


def difference(ours: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, over the standard deviation of what is wanted."""
    ours, want = np.asarray(ours, np.float64), np.asarray(want, np.float64)
    assert ours.shape == want.shape, (ours.shape, want.shape)
    return float(np.abs(ours - want).max() / want.std())
