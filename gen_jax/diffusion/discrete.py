"""The discrete process of a config: what models and the classifiers that guide them share."""

import jax
import numpy as np

from gen_jax.config import nearest, require
from gen_jax.diffusion.schedules import BETAS, DiscreteProcess, make_betas, zero_terminal_snr

# Of `config.diffusion`, what x_t is, and what a network is told of t.
FIELDS = {
    'timesteps': 1000,  # T
    'betas': 'linear',  # variances of the steps' noise: linear, scaled_linear, cosine
    'beta_min': 1e-4,  # the first step's, where it is not cosine
    'beta_max': 0.02,  # the last step's
    # Betas moved so that the last step leaves nothing of the image: of models for prediction v or
    # x_0, and `sampler.spacing` linspace or trailing
    'zero_snr': False,
    'told': 'time',  # time (t), thousandths (1000 t / T)
}
# See gen_jax.idle.
SERVES = (
    (
        'diffusion.beta_min diffusion.beta_max',
        lambda c: c.diffusion.betas != 'cosine',
        "diffusion.betas='linear' or 'scaled_linear'",
    ),
)
TOLD = ('time', 'thousandths')


def process(diffusion) -> DiscreteProcess:
    """The process with all T times that `config.diffusion` describes."""
    ends = diffusion.beta_min, diffusion.beta_max
    betas = make_betas(diffusion.betas, diffusion.timesteps, *ends)
    return DiscreteProcess.from_betas(zero_terminal_snr(betas) if diffusion.zero_snr else betas)


def seen(diffusion) -> dict:
    """The fields of `config.diffusion` that say what x_t is; guides have the same."""
    ends = () if diffusion.betas == 'cosine' else ('beta_min', 'beta_max')
    return {name: diffusion[name] for name in ('timesteps', 'betas', *ends, 'zero_snr')}


def time(told: str, T: int, t: jax.Array) -> jax.Array:
    """What a network is told of t [n] of T times, by one of TOLD."""
    return t if told == 'time' else t * (1000 / T)


def check(diffusion) -> None:
    """Raises UserError where FIELDS cannot be obeyed."""
    T, low, high = diffusion.timesteps, diffusion.beta_min, diffusion.beta_max
    for field, known in (('betas', BETAS), ('told', TOLD)):
        value = diffusion[field]
        require(value in known, f'diffusion.{field}', value, f'a known name{nearest(value, known)}')
    require(2 <= T <= 10_000, 'diffusion.timesteps', T, '2 to 10000')
    require(0 < low <= high, 'diffusion.beta_min', low, f'0 < beta_min <= beta_max={high}')
    require(high < 1, 'diffusion.beta_max', high, 'less than 1')
    with np.errstate(invalid='ignore'):  # of what is refused here
        alpha_bar = process(diffusion).alpha_bar
    left = np.sqrt(alpha_bar[-2 if diffusion.zero_snr else -1])
    expected = f'less, or fewer than timesteps={T}: they leave nothing of the image in float32'
    require(left >= np.finfo(np.float32).tiny, 'diffusion.beta_max', high, expected)
