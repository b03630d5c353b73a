"""What the registry says of each sampler is so: its calls, its knobs and options, its times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import default
from gen_jax.diffusion import processes, solvers
from gen_jax.diffusion.processes import Path
from gen_jax.diffusion.schedules import DiscreteProcess, Trajectory, linear_betas
from gen_jax.errors import UserError

SHAPE, N, STEPS = (2, 2, 1), 2, 7
DDPM = DiscreteProcess.from_betas(linear_betas(30, 1e-3, 0.3))
NEEDED = {
    'predictor_corrector': {'sample.knobs.snr': 0.16},
    'annealed_langevin': {'sample.knobs.snr': 0.16, 'sampler.corrections': 2},
    'adaptive': {'sample.knobs.tolerance': 1e-3, 'sample.knobs.steps': 0},
}
BELOW = {'sampler.name': 'adaptive', 'sample.knobs.tolerance': 1e-8}
DISCRETE = [name for name, sampler in solvers.SAMPLERS.items() if not sampler.continuous]


def config(name, **changes):
    config = default('diffusion.continuous')
    config.update_from_flattened_dict(
        {'sampler.name': name, 'sampler.spacing': 'linear', 'sample.knobs.steps': STEPS}
        | NEEDED.get(name, {})
        | {field.replace('__', '.'): value for field, value in changes.items()}
    )
    return config


def drawer(chosen, kind='vp'):
    """draw(steps [N], **knobs) -> samples of N(0.3, 0.5^2), and the times the network is called at.

    What is not given is the config's; all that is given goes into one program.
    """
    process, keys, seen = processes.vp_linear(), jax.random.split(jax.random.key(0), N), []
    alpha_bar = jnp.float32(DDPM.alpha_bar)

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t, ordered=True)
        alpha = jnp.sqrt(alpha_bar[t]) if kind == 'ddpm' else process.alpha(t)
        alpha = alpha[:, None, None, None]
        return 0.3 + alpha * 0.25 / (1 - 0.75 * alpha**2) * (x - 0.3 * alpha)

    @jax.jit
    def run(steps, knobs):
        path = Path(process, steps, chosen.sampler.spacing)
        if kind == 'ddpm':
            path = Trajectory.create(DDPM, steps, 'linear')
        return solvers.run(chosen, denoise, path, keys, SHAPE, lambda name: knobs[name])

    def draw(steps=None, **knobs):
        seen.clear()
        steps = chosen.sample.knobs.steps if steps is None else steps
        knobs = {name: chosen.sample.knobs[name] for name in solvers.KNOBS} | knobs
        knobs = {name: jnp.full(N, value, jnp.float32) for name, value in knobs.items()}
        x = run(jnp.broadcast_to(jnp.int32(steps), N), knobs)
        jax.effects_barrier()
        return np.asarray(x)

    return draw, seen


@pytest.mark.parametrize('name', DISCRETE)
@pytest.mark.parametrize('kind', ['vp', 'ddpm'])
def test_calls_the_network_as_often_as_it_says_at_times_there_are(name, kind):
    chosen = config(name)
    draw, seen = drawer(chosen, kind)
    for steps in (STEPS, 1):
        chosen.sample.knobs.steps = steps
        solvers.check(chosen, continuous=True)
        assert np.isfinite(draw()).all()
        assert len(seen) == solvers.calls(chosen, steps)
        times = np.array(seen)
        if kind == 'ddpm':
            assert times.dtype == np.int32
            assert (times.min(), times.max()) == ((0, 6 * 30 // 7) if steps > 1 else (29, 29))
        else:
            assert times.max() == 1
            assert times.min() == pytest.approx(1e-3 if steps > 1 else 1, rel=1e-3)


def test_pndm_warms_up_for_those_alone_that_have_begun():
    draw, seen = drawer(config('pndm'))
    draw(steps=(2, 12))
    assert len(seen) == 12 + 3 * 3 + 3  # the last for the first step of the other sample


def of_all(kind):
    return [(name, x) for name, one in solvers.SAMPLERS.items() for x in getattr(one, kind)]


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'knob'), of_all('knobs'))
def test_every_knob_changes_what_is_drawn_by_the_same_program(name, knob):
    draw, _ = drawer(config(name))
    value = {'eta': 0.7, 'churn': 3.0, 'snr': 0.3, 'tolerance': 1e-2}[knob]
    assert np.abs(draw(**{knob: value}) - draw()).max() > 1e-4


CHANGES = {
    'variance': 'fixed_large',
    'share': 0.1,
    'order': 3,
    'corrections': 4,
    'churn_range': (0.5, 1.0),
    'churn_noise': 1.5,
    'solver': 'dopri5',
}


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'option'), of_all('options'))
def test_every_option_changes_what_is_drawn(name, option):
    found = []
    for change in ({}, {option: CHANGES[option]}):
        chosen = config(name)
        if option == 'share':
            chosen.sampler.variance = 'between'
        chosen.sampler.update(change)
        solvers.check(chosen, continuous=True)
        knobs = {'churn': 2.0} if name == 'heun' else {}
        found.append(drawer(chosen)[0](**knobs))
    assert np.abs(found[0] - found[1]).max() > 1e-5


def test_every_option_is_some_samplers():
    known, discrete = (
        {
            *solvers.defaults('heun', 'linear', 'fixed_small', clip=False, continuous=yes),
            *solvers.knobs(5, continuous=yes),
        }
        for yes in (True, False)
    )
    taken = {x for _, x in of_all('options') + of_all('knobs')}
    assert known == taken | {'name', 'spacing', 'rho', 'clip', 'steps'}
    assert known - discrete == set(solvers.CONTINUOUS)


def test_a_model_of_whole_times_needs_less():
    chosen = config('heun')
    chosen.sampler = solvers.defaults('heun', 'linear', 'fixed_large', clip=True, continuous=False)
    chosen.sample.knobs = solvers.knobs(7, continuous=False)
    solvers.check(chosen, continuous=False, most=30)


@pytest.mark.parametrize(
    ('changes', 'needs', 'says'),
    [
        ({'sampler.name': 'unipcc'}, {}, "did you mean 'unipc'"),
        ({'sampler.name': 'lms'}, {'finite': False}, 'sigma / alpha is infinite'),
        (NEEDED['adaptive'] | {'sampler.name': 'adaptive'}, {'continuous': False}, 'whole times'),
        ({'sample.knobs.steps': 0}, {}, '1 to 10000'),
        ({'sample.knobs.steps': 31}, {'most': 30}, '1 to 30'),
        ({'sampler.name': 'adaptive', 'sample.knobs.tolerance': 0.1}, {}, 'chooses its steps'),
        ({'sampler.name': 'adaptive', 'sample.knobs.steps': 0}, {}, 'needs it'),
        (NEEDED['adaptive'] | BELOW, {}, '1e-07 or more: less is beyond the digits of float32'),
        ({'sampler.name': 'annealed_langevin'}, {}, 'needs it'),
        ({'sample.knobs.snr': 0.1}, {}, 'snr is for predictor_corrector and annealed_langevin'),
        ({'sample.knobs.tolerance': 0.1}, {}, 'tolerance is for adaptive'),
        ({'sampler.name': 'ddim', 'sample.knobs.eta': 1.5}, {}, '0 to 1'),
        ({'sample.knobs.churn': -1.0}, {}, '0 or more'),
        (
            {'sampler.name': 'predictor_corrector', 'sample.knobs.snr': float('inf')},
            {},
            'a finite number',
        ),
        ({'sampler.order': 4}, {}, '1, 2 or 3'),
        ({'sampler.rho': 0.5}, {}, '1 (even steps of sigma / alpha) to 100'),
        ({'sampler.rho': float('inf')}, {}, "what more comes to is spacing='log_snr'"),
        ({'sampler.rho': float('nan')}, {}, '1 (even steps of sigma / alpha) to 100'),
        ({'sampler.solver': 'euler'}, {}, 'known are: dopri5, tsit5'),
        ({'sampler.corrections': 0}, {}, 'at least 1'),
        ({'sampler.churn_range': (1.0,)}, {}, '0 <= low < high'),
        ({'sampler.churn_range': ('a', 'b')}, {}, '0 <= low < high'),
        ({'sampler.churn_range': (0.0, float('inf'))}, {}, 'two finite numbers'),
        ({'sampler.churn_noise': 0.0}, {}, 'above 0'),
        ({'sampler.churn_noise': float('inf')}, {}, 'above 0'),
    ],
)
def test_what_cannot_be_is_told_in_one_line(changes, needs, says):
    chosen = config('heun')
    chosen.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        solvers.check(chosen, **{'continuous': True} | needs)
    assert says in str(error.value)
    assert '\n' not in str(error.value)
