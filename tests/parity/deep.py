"""VDVAE's weights and noise, which both sides make by a rule."""

import math

import numpy as np
from golden import filled

OUT = 'decoder.out_net.out_conv.weight'


def filled_vdvae(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """`golden.filled` by the authors' names; gains near 1 and the first maps as biases.

    The likelihood's numbers are small: far from a mean, where a mass is below 1e-5, theirs is not
    exact.
    """
    flat = {k: (math.prod(s),) if s[0] == 1 else tuple(s) for k, s in shapes.items()}
    weights = {name: x.reshape(shapes[name]) for name, x in filled(flat).items()}
    weights[OUT] *= 0.1
    return weights


def noise_of(seed: int, layer: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Standard normal [b, h, w, c] of a layer of latents."""
    return np.random.default_rng([seed, layer]).standard_normal(shape, np.float32)
