"""The samplers by name, for the methods that offer them: what each takes, needs and costs."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from gen_jax.config import are_ends, nearest, require
from gen_jax.diffusion import langevin, multistep, ode, samplers
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import Trajectory

# The knobs of samplers and the most each may be; a sampler that does not know one wants it 0.
KNOBS = {'eta': 1.0, 'churn': math.inf, 'snr': math.inf, 'tolerance': 1.0}
# Knobs, and fields of a config's `sampler`, that only continuous time knows.
CONTINUOUS = ('share', 'churn', 'churn_range', 'churn_noise', 'tolerance', 'solver')
# Knobs by which a sampler adds noise, where they are above 0.
NOISE = ('eta', 'churn')
NO_SCORE = "by the score, which a model of config.diffusion.pairing='optimal' does not tell"


class Sampler(NamedTuple):
    """One entry of `SAMPLERS`.

    Attributes:
      run: (denoise, path, keys, shape, *knobs, *options) -> x_0 [n, h, w, c].
      knobs: those of KNOBS that it takes.
      options: those fields of a config's `sampler` that it takes.
      calls: (steps, a config's `sampler`) -> calls of the network.
      needs: those of its knobs that must be above 0.
      continuous: whether it needs times between the visited ones, which only a `Path` has.
      finite: whether sigma / alpha must be finite where it starts.
      chooses: whether it chooses its times itself.
      noisy: whether it adds noise whatever the knobs are.
    """

    run: Callable
    knobs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    calls: Callable = lambda steps, options: steps
    needs: tuple[str, ...] = ()
    continuous: bool = False
    finite: bool = False
    chooses: bool = False
    noisy: bool = False


def _heun(denoise, path, keys, shape, churn, churn_range, churn_noise):
    if churn is not None:
        churn = samplers.Churn(churn, *churn_range, churn_noise)
    return samplers.heun(denoise, path, keys, shape, churn)


SAMPLERS = {
    'ancestral': Sampler(samplers.ancestral, options=('variance', 'share'), noisy=True),
    'ddim': Sampler(samplers.ddim, ('eta',)),
    'heun': Sampler(
        _heun,
        ('churn',),
        ('churn_range', 'churn_noise'),
        calls=lambda steps, options: 2 * steps - 1,
    ),
    'dpmpp_2m': Sampler(multistep.dpmpp_2m, ('eta',), finite=True),
    'unipc': Sampler(multistep.unipc, options=('order',), finite=True),
    'lms': Sampler(multistep.lms, finite=True),
    'pndm': Sampler(
        multistep.pndm,
        calls=lambda steps, options: steps + 3 * min(3, steps - 1),
        finite=True,
    ),
    'predictor_corrector': Sampler(
        langevin.predictor_corrector,
        ('snr',),
        ('corrections',),
        calls=lambda steps, options: steps * (1 + options.corrections),
        needs=('snr',),
        finite=True,
        noisy=True,
    ),
    'annealed_langevin': Sampler(
        langevin.annealed_langevin,
        ('snr',),
        ('corrections',),
        calls=lambda steps, options: steps * options.corrections + 1,
        needs=('snr',),
        finite=True,
        noisy=True,
    ),
    'adaptive': Sampler(
        lambda *args: ode.sample(*args)[0],
        ('tolerance',),
        ('solver',),
        calls=lambda steps, options: 100,  # a guess, for plans: it depends on the samples
        needs=('tolerance',),
        continuous=True,
        chooses=True,
    ),
}

# See gen_jax.idle. The bound has variances too, and trajectories of every other sampler spacings.
SERVES = (
    ('sampler.rho', lambda c: c.sampler.spacing == 'karras', "sampler.spacing='karras'"),
    (
        'sampler.spacing',
        lambda c: not _named(c).chooses,
        'a sampler that is told its steps',
    ),
    ('sampler.share', lambda c: c.sampler.variance == 'between', "sampler.variance='between'"),
    (
        'sampler.churn_range sampler.churn_noise',
        lambda c: c.sample.knobs.churn,
        'sample.knobs.churn',
    ),
    *(
        (f'sampler.{field}', lambda c, x=field: x in _named(c).options, f'a sampler of {field}')
        for field in ('order', 'corrections', 'solver')
    ),
)


def _named(config) -> Sampler:
    """The one of a config; 'ddim' where there is none of its name, which is told elsewhere."""
    return SAMPLERS.get(config.sampler.name, SAMPLERS['ddim'])


def defaults(name: str, spacing: str, variance: str, clip: bool, continuous: bool) -> dict:
    """The part `sampler` of a method's config.

    Args:
      name, spacing, variance, clip: what methods set as they like.
      continuous: whether the method's time is.
    """
    known = {
        # ancestral, ddim (eta 0: Euler; 1: Euler ancestral), heun, dpmpp_2m (eta 1: its SDE form),
        # unipc, lms, pndm, predictor_corrector, annealed_langevin, adaptive
        'name': name,
        # Each field below is for the samplers that it names. Others leave it alone, so that a flag
        # can set another name and no more.
        # Of the times visited, by all but adaptive: linear, quadratic, trailing, karras, log_snr;
        # in discrete time also linspace
        'spacing': spacing,
        # Of ancestral, and of the bound: fixed_large, fixed_small; learned_range if it is learned;
        # between in continuous time
        'variance': variance,
        'share': 0.5,  # of the way from the smaller to the larger that between goes
        'rho': 7.0,  # of spacing 'karras': the more, the more times have little noise
        'order': 2,  # of unipc: 1, 2, 3
        # Langevin steps at each time of predictor_corrector and annealed_langevin
        'corrections': 1,
        'churn_range': (0.0, 1e6),  # sigma / alpha at which heun adds noise
        'churn_noise': 1.0,  # its standard deviation, in multiples of what the schedule says
        'solver': 'tsit5',  # of adaptive: tsit5, dopri5
        'clip': clip,  # of all: keep the estimate of the image in [-1, 1]
    }
    return _fitting(known, continuous)


def knobs(steps: int, continuous: bool) -> dict:
    """The samplers' share of a method's `sample.knobs`: numbers that are traced.

    Args:
      steps: times visited; 0 for 'adaptive', which chooses them.
      continuous: whether the method's time is.
    """
    known = {
        'steps': steps,  # times visited
        'eta': 0.0,  # noise of ddim and dpmpp_2m: 0 (none) to 1
        'churn': 0.0,  # noise of heun: S_churn, 0 (none) or more
        'snr': 0.0,  # signal-to-noise ratio r of Langevin steps; 0.16 in Song et al. 2021
        'tolerance': 0.0,  # of adaptive's errors; 1e-5 in Song et al. 2021
    }
    return _fitting(known, continuous)


def _fitting(known: dict, continuous: bool) -> dict:
    return {name: x for name, x in known.items() if continuous or name not in CONTINUOUS}


def run(
    config,
    denoise: Callable,
    path: Path | Trajectory,
    keys: jax.Array,
    shape: tuple,
    knob: Callable,
) -> jax.Array:
    """What the sampler of a config draws, float32 [n, h, w, c].

    Args:
      config: with `sampler` as `defaults` gives it.
      denoise, path, keys, shape: see gen_jax.diffusion.samplers.
      knob: name -> one of `knobs`, float32 [n].
    """
    chosen, unknown = SAMPLERS[config.sampler.name], ()
    if isinstance(path, Trajectory):
        unknown = CONTINUOUS
    numbers = (None if name in unknown else knob(name) for name in chosen.knobs)
    options = (None if name in unknown else config.sampler[name] for name in chosen.options)
    return chosen.run(denoise, path, keys, shape, *numbers, *options)


def calls(config, steps: int) -> int:
    """Calls of the network by a config's sampler over `steps` times; for 'adaptive' a guess."""
    return SAMPLERS[config.sampler.name].calls(steps, config.sampler)


def check(
    config, continuous: bool, finite: bool = True, most: int = 10_000, score: bool = True
) -> None:
    """Raises UserError where a sampler, its options or its knobs cannot be obeyed.

    Args:
      config: with `sampler` and `sample.knobs`.
      continuous: whether the method's time is.
      finite: whether sigma / alpha is, where sampling starts.
      most: times that there are to visit.
      score: whether estimates of x_0 tell the score of x_t (Tweedie's formula), by which noise is
        added: whether training draws image and noise independently of each other.
    """
    name, steps = config.sampler.name, config.sample.knobs.steps
    expected = f'a known name{nearest(name, SAMPLERS)}'
    require(name in SAMPLERS, 'sampler.name', name, expected)
    chosen = SAMPLERS[name]

    def misfits(x: Sampler) -> dict[str, bool]:
        return {
            'it needs continuous time, and this model knows whole times only': x.continuous
            and not continuous,
            'sigma / alpha is infinite where this process starts': x.finite and not finite,
            f'it adds noise, {NO_SCORE}': x.noisy and not score,
        }

    fit = ', '.join(x for x in SAMPLERS if not any(misfits(SAMPLERS[x]).values()))
    for why, misfit in misfits(chosen).items():
        require(not misfit, 'sampler.name', name, f'one of {fit}: {why}')
    if chosen.chooses:
        expected = f'0, because sampler.name={name!r} chooses its steps itself'
        require(steps == 0, 'sample.knobs.steps', steps, expected)
    else:
        expected = f'1 to {most}' if continuous else f'1 to timesteps={most}'
        require(1 <= steps <= most, 'sample.knobs.steps', steps, expected)
    for field in KNOBS:
        if field in config.sample.knobs:
            _check_knob(field, value := config.sample.knobs[field], name)
            able = score or field not in NOISE
            expected = f'0: noise is added {NO_SCORE}'
            require(able or value == 0, f'sample.knobs.{field}', value, expected)
    _check_options(config.sampler)


def _check_knob(field: str, value: float, name: str) -> None:
    field_name, most = f'sample.knobs.{field}', KNOBS[field]
    able = [other for other in SAMPLERS if field in SAMPLERS[other].knobs]
    expected = f'0, because sampler.name={name!r}: {field} is for {" and ".join(able)}'
    require(value == 0 or name in able, field_name, value, expected)
    expected = 'a finite number, 0 or more' if most > 1 else '0 to 1'
    require(0 <= value <= most and math.isfinite(value), field_name, value, expected)
    expected = f'more than 0, as sampler.name={name!r} needs it'
    require(value > 0 or field not in SAMPLERS[name].needs, field_name, value, expected)
    expected = f'{ode.LEAST_TOLERANCE:g} or more: less is beyond the digits of float32'
    fits = field != 'tolerance' or value == 0 or value >= ode.LEAST_TOLERANCE
    require(fits, field_name, value, expected)


def _check_options(options) -> None:
    order, corrections = options.order, options.corrections
    require(order in (1, 2, 3), 'sampler.order', order, '1, 2 or 3')
    require(corrections >= 1, 'sampler.corrections', corrections, 'a whole number of at least 1')
    expected = "1 (even steps of sigma / alpha) to 100; what more comes to is spacing='log_snr'"
    require(1 <= options.rho <= 100, 'sampler.rho', options.rho, expected)
    if 'churn_range' not in options:
        return
    share = options.share
    require(0 <= share <= 1, 'sampler.share', share, '0 (fixed_small) to 1 (fixed_large)')
    ends, noise, solver = tuple(options.churn_range), options.churn_noise, options.solver
    require(are_ends(ends), 'sampler.churn_range', ends, 'two finite numbers, 0 <= low < high')
    require(0 < noise < math.inf, 'sampler.churn_noise', noise, 'a number above 0')
    known = ode.SOLVERS
    require(solver in known, 'sampler.solver', solver, f'a known name{nearest(solver, known)}')
