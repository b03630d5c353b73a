"""NCSN's ladder of noise levels (Song and Ermon 2019 and 2020), as a process in continuous time.

x_t = x_0 + sigma_t eps, and t is the level's index: a `Process` like any other, of which training
sees only whole times. Denoising score matching with the papers' weight sigma^2 is prediction
'score', told the level, with weighting 'simple' or 'eps', which are then the same.
"""

import jax.numpy as jnp

from gen_jax.diffusion.processes import Process
from gen_jax.errors import UserError


def ladder(levels: int = 232, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Geometric levels, of which level t has time t, from 0 (least noise) to levels - 1.

    The papers count from the most noise down: their level i is levels - 1 - t. Between two levels
    sigma goes on geometrically, for samplers that visit fewer; a `Path` with spacing 'linear' and
    as many steps as there are levels visits each.

    Args:
      levels: at least 2; 10 in NCSN, 232 in NCSNv2 for CIFAR-10, which are the defaults.
      sigma_min, sigma_max: of the first and the last; 0.01 and 1 in NCSN.

    Raises:
      UserError: fewer than 2 levels, or sigmas that do not rise.
    """
    if levels < 2 or not 0 < sigma_min < sigma_max:
        raise UserError(
            f'a ladder of {levels} levels from {sigma_min} to {sigma_max}: expected at least 2 '
            'levels and 0 < sigma_min < sigma_max'
        )
    growth = jnp.log(sigma_max / sigma_min) / (levels - 1)
    return Process(
        jnp.ones_like,
        lambda t: sigma_min * jnp.exp(t * growth),
        lambda ratio: jnp.log(ratio / sigma_min) / growth,
        0.0,
        levels - 1.0,
        sigma_max,
    )
