"""The process in continuous time of a config: what models and classifiers that guide them share."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.config import are_ends, nearest, require
from gen_jax.diffusion import ladder, losses, processes
from gen_jax.diffusion.processes import Process

# Of `config.diffusion`, what x_t is, at which times networks are trained, and what they are told.
FIELDS = {
    # vp_linear, vp_cosine, vp_angle, sub_vp, ve, ladder (NCSN's), edm, flow
    'process': 'edm',
    # Least and most beta (vp_linear, sub_vp), sigma (ve, ladder, edm) or sigma / alpha (vp_angle);
    # (): the usual ones
    'range': (),
    'levels': 232,  # of ladder
    # time (999 t), log_ratio (log(sigma/alpha) / 4, as EDM's networks), or log_sigma
    # (log(sigma/alpha / 2): score_sde's NCSN++, which count images in [0, 1]), or level (t:
    # ladder's)
    'told': 'log_ratio',
    'times': 'lognormal',  # uniform, lognormal, logit_normal, levels (ladder's)
    'times_mean': -1.2,  # of the normal
    'times_std': 1.2,
}
PROCESSES = {
    'vp_linear': processes.vp_linear,
    'vp_cosine': processes.vp_cosine,
    'vp_angle': processes.vp_angle,
    'sub_vp': processes.sub_vp,
    've': processes.ve,
    'ladder': ladder.ladder,
    'edm': processes.edm,
    'flow': processes.flow,
}
# What each takes as `config.diffusion.range`.
BETAS, SIGMAS = ('beta_min', 'beta_max'), ('sigma_min', 'sigma_max')
RANGED = {'vp_linear': BETAS, 'sub_vp': BETAS, 've': SIGMAS, 'edm': SIGMAS, 'ladder': SIGMAS}
RANGED |= {'vp_angle': ('ratio_min', 'ratio_max')}
# See gen_jax.idle.
SERVES = (
    ('diffusion.levels', lambda c: c.diffusion.process == 'ladder', "diffusion.process='ladder'"),
    (
        'diffusion.times_mean diffusion.times_std',
        lambda c: c.diffusion.times in ('lognormal', 'logit_normal'),
        "diffusion.times='lognormal' or 'logit_normal'",
    ),
)
TOLD = ('time', 'log_ratio', 'log_sigma', 'level')
IN_FLOWS = "with process='flow', which starts where sigma / alpha is infinite"


def process(diffusion) -> Process:
    """What samplers go through, as `config.diffusion` describes it."""
    levels = (diffusion.levels,) if diffusion.process == 'ladder' else ()
    return PROCESSES[diffusion.process](*levels, *diffusion.range)


def seen(diffusion) -> dict:
    """The fields of `config.diffusion` that say what x_t is, with the usual `range` where it is ().

    Guides have the same.
    """
    name, found = diffusion.process, {'process': diffusion.process}
    if name in RANGED:
        usual = inspect.signature(PROCESSES[name]).parameters
        ends = diffusion.range or (usual[end].default for end in RANGED[name])
        found['range'] = tuple(ends)
    if name == 'ladder':
        found['levels'] = diffusion.levels
    return found


def time(told: str, process: Process, t: jax.Array) -> jax.Array:
    """What a network is told of t [n], by one of TOLD."""
    if told in ('time', 'level'):
        return 999 * t if told == 'time' else t
    ratio = process.sigma(t) / process.alpha(t)
    return jnp.log(ratio) / 4 if told == 'log_ratio' else jnp.log(ratio / 2)


def draw_times(diffusion, process: Process, key: jax.Array, n: int) -> jax.Array:
    """The times of n training examples, float32 [n], as `config.diffusion` draws them."""
    mean, std = diffusion.times_mean, diffusion.times_std
    return losses.draw_times(diffusion.times, process, key, n, mean, std)


def check(diffusion) -> None:
    """Raises UserError where FIELDS cannot be obeyed."""
    for field, known in (('process', PROCESSES), ('told', TOLD), ('times', losses.TIMES)):
        value = diffusion[field]
        require(value in known, f'diffusion.{field}', value, f'a known name{nearest(value, known)}')
    _check_range(diffusion)
    _check_flow(diffusion)
    _check_ladder(diffusion)
    mean, std = diffusion.times_mean, diffusion.times_std
    require(math.isfinite(mean), 'diffusion.times_mean', mean, 'a finite number')
    require(0 < std < math.inf, 'diffusion.times_std', std, 'a number, more than 0')


def _check_range(diffusion) -> None:
    name, ends = diffusion.process, tuple(diffusion.range)
    if not ends:
        return
    require(name in RANGED, 'diffusion.range', ends, f'(), as process={name!r} has none')
    ok = are_ends(ends) and ends[0] > 0
    require(ok, 'diffusion.range', ends, 'two finite numbers, 0 < least < most')
    # alpha at t_max is exp(-sum / 4).
    some = RANGED[name] != BETAS or sum(ends) < -4 * math.log(np.finfo(np.float32).tiny)
    expected = 'less beta: so much leaves nothing of the image in float32'
    require(some, 'diffusion.range', ends, expected)


def _check_flow(diffusion) -> None:
    """What a flow, which ends where no signal is left, cannot do."""
    told, times = diffusion.told, diffusion.times
    if diffusion.process != 'flow':
        expected = "'uniform' or 'lognormal': 'logit_normal' is for process='flow'"
        require(times != 'logit_normal', 'diffusion.times', times, expected)
        return
    require(told == 'time', 'diffusion.told', told, f"'time' {IN_FLOWS}")
    expected = f"'uniform' or 'logit_normal' {IN_FLOWS}"
    require(times != 'lognormal', 'diffusion.times', times, expected)


def _check_ladder(diffusion) -> None:
    process = diffusion.process
    for field, name in (('told', 'level'), ('times', 'levels')):
        value = diffusion[field]
        expected = f"another with process={process!r}: {name!r} is for process='ladder'"
        if process == 'ladder':
            expected = f"{name!r} with process='ladder'"
        fits = (value == name) == (process == 'ladder')
        require(fits, f'diffusion.{field}', value, expected)
    require(diffusion.levels >= 2, 'diffusion.levels', diffusion.levels, 'at least 2')
