"""Whether a config's noise is that which published weights were trained with."""

import numpy as np

from gen_jax.diffusion import continuous_time, discrete
from gen_jax.errors import UserError

# Ho et al. 2020, in whole times and in the continuous ones of Song et al. 2021.
STEPS = {
    'timesteps': 1000,
    'betas': 'linear',
    'beta_min': 1e-4,
    'beta_max': 0.02,
    'zero_snr': False,
}
RANGE = (0.1, 20.0)


def require_linear(diffusion, path: str, processes: tuple[str, ...] = ('vp_linear',)) -> None:
    """Raises UserError where it is not that of linear betas.

    Args:
      diffusion: of a config, in discrete or in continuous time.
      path: of the weights, for the error.
      processes: in continuous time, those that there may be.
    """
    if 'timesteps' in diffusion:
        _require_same(path, STEPS, discrete.seen(diffusion))
        return
    found = continuous_time.seen(diffusion)
    process = found['process'] if found['process'] in processes else processes[0]
    _require_same(path, {'process': process, 'range': RANGE}, found)


def require_sigmas(diffusion, tensors: dict[str, np.ndarray], process: str, path: str) -> None:
    """Raises UserError where it is not that of a file's `sigmas`, of images in [0, 1].

    Args:
      diffusion: of a config, in continuous time.
      tensors: the file's; some have lost their `sigmas`, of which nothing is then asked.
      process: that they are of: ladder, which has as many levels, or ve.
      path: of the weights, for the error.
    """
    theirs, found = {'process': process}, continuous_time.seen(diffusion)
    sigmas = tensors.get('sigmas', tensors.get('module.sigmas', np.zeros(0)))
    if len(sigmas):
        ends = tuple(float(f'{2 * x:.4g}') for x in (sigmas.min(), sigmas.max()))
        same = np.allclose(ends, found.get('range', (0, 0)), rtol=1e-3)
        theirs |= {'range': found['range'] if same else ends}
        theirs |= {'levels': len(sigmas)} if process == 'ladder' else {}
    _require_same(path, theirs, found)


def _require_same(path: str, theirs: dict, ours: dict) -> None:
    for name, value in theirs.items():
        if ours.get(name) != value:
            raise UserError(
                f'the weights in {path} are trained for config.diffusion.{name}={value!r}, the '
                f'config has {ours.get(name)!r}: expected the config of that model'
            )
