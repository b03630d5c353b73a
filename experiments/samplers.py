"""Every sampler on one trained model: what samples are worth, by calls of the network.

  python experiments/samplers.py --config=configs/edm_fashion_mnist.py

Needs the run, runs/edm_fashion_mnist or --workdir; any config of a diffusion method will do. Leaves
samplers.json, .md and .png in RUN/samplers, and the samples beside them; started again, it goes on
where it was. It prints at the start what it will take: the 28x28 network of that config is called
about 1,200 times a second on 2 CPU cores, and all samplers with 1,000 samples take some 45 minutes,
a third of it for the thousand calls of the reference. Each sampler is compiled once.

All samplers start from the same noise. `reference` is ancestral sampling in 1,000 steps, with the
config's variance; `ddim_eta_1` is the same in fewer steps where that is fixed_small. A sampler
reaches it where its Frechet distance is less than two standard errors above: those of the
difference, by the jackknife over parts of the samples, which both have in common. Samplers without
noise of their own converge to the exact ODE, for which adaptive_1e-3 stands, and which may be
better or worse than the reference.

Its order is the slope of log(error) over log(steps), fitted to the last three numbers of steps that
rounding leaves alone; the error is how far images are from the ODE's (root mean square over pixels
of range 2). lms magnifies rounding in its last step, and its order is seen at fewer steps only; the
whole times of a discrete model are too coarse for orders above 2.
"""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scripts
import studies
from absl import flags
from scripts import Column
from studies import Study

from gen_jax.diffusion import continuous, ode, solvers
from gen_jax.diffusion.processes import Path
from gen_jax.runtime import random

FLAGS = flags.FLAGS
FEW, MANY = (5, 8, 10, 15, 20, 35), (10, 20, 50, 100)  # calls of samplers without and with noise
TOLERANCE = 1e-6  # of the solution that others are compared with
ROUNDING = 1e-5  # errors below this one are float32's
ERRORS = 2.0  # standard errors within which two distances are one


class Setting(NamedTuple):
    """A sampler as the study asks for it.

    Attributes:
      sampler: what `config.sampler` is to be.
      knobs: what `config.sample.knobs` are to be; all others of samplers are 0.
      calls: network calls to try; () where it chooses them itself.
      order: of convergence to the ODE's solution; None where it draws noise.
    """

    sampler: dict
    knobs: dict
    calls: tuple = MANY
    order: int | None = None


# Churn as Karras et al. 2022 have it for ImageNet at 64x64, snr as Song et al. 2021 for VE; that of
# annealed Langevin dynamics is for steps as few as here, its authors' is 0.22 over thousands.
CHURN = {'churn_range': (0.05, 50.0), 'churn_noise': 1.003}
SETTINGS = {
    'reference': Setting({'name': 'ancestral'}, {}),
    'ancestral_large': Setting({'name': 'ancestral', 'variance': 'fixed_large'}, {}),
    'adaptive_1e-2': Setting({'name': 'adaptive'}, {'tolerance': 1e-2}, ()),
    'adaptive_1e-3': Setting({'name': 'adaptive'}, {'tolerance': 1e-3}, ()),
    'ddim': Setting({'name': 'ddim'}, {}, FEW, 1),
    'ddim_eta_1': Setting({'name': 'ddim'}, {'eta': 1.0}),
    'heun': Setting({'name': 'heun'}, {}, FEW, 2),
    'heun_churn': Setting({'name': 'heun', **CHURN}, {'churn': 40.0}),
    'dpmpp_2m': Setting({'name': 'dpmpp_2m'}, {}, FEW, 2),
    'dpmpp_2m_sde': Setting({'name': 'dpmpp_2m'}, {'eta': 1.0}),
    'unipc_2': Setting({'name': 'unipc', 'order': 2}, {}, FEW, 3),
    'unipc_3': Setting({'name': 'unipc', 'order': 3}, {}, FEW, 4),
    'lms': Setting({'name': 'lms'}, {}, FEW, 4),
    'pndm': Setting({'name': 'pndm'}, {}, FEW, 2),
    'predictor_corrector': Setting({'name': 'predictor_corrector'}, {'snr': 0.16}),
    'annealed_langevin': Setting({'name': 'annealed_langevin', 'corrections': 2}, {'snr': 0.5}),
}
EXACT = Setting({'name': 'adaptive', 'clip': False}, {'tolerance': TOLERANCE}, ())
# Where time is discrete: the ODE through all of its times.
EXACT_DISCRETE = Setting({'name': 'heun', 'clip': False}, {})


class Draw(NamedTuple):
    """One row: a sampler, and how many calls of the network it is given.

    For a sampler that chooses its steps itself that is a guess.
    """

    setting: str
    name: str
    changes: dict
    calls: int


def define_flags() -> None:
    """A run, rows, and those of this study alone."""
    scripts.define_run()
    scripts.define_rows()
    text = "Of all samplers, whatever the config's knob is; 1: none, which takes half the time."
    flags.DEFINE_float('guidance', 1.0, text)
    flags.DEFINE_list('calls', [], 'Network calls to try (default: as suits each sampler).')
    flags.DEFINE_integer('reference_calls', 1000, 'Of the reference.', lower_bound=1)
    flags.DEFINE_list('orders', [10, 20, 40, 80, 160], 'Steps at which errors are measured.')
    flags.DEFINE_integer('near', 64, 'Samples that they are measured on.', lower_bound=1)


def main() -> None:
    """Measures, prints, writes."""
    names = scripts.chosen(SETTINGS, FLAGS.rows)
    calls, orders = scripts.numbers('calls'), scripts.numbers('orders')
    page = scripts.figure(2) if FLAGS.plot else None
    config = FLAGS.config
    studies.check_draws_images(config)
    if (other := config.sample.knobs.guidance) != FLAGS.guidance:
        print(f"guidance is {FLAGS.guidance:g}, by --guidance, and not the config's {other:g}")
    config.sample.knobs.guidance = FLAGS.guidance
    study = studies.opened('samplers', config, near=FLAGS.near, solution=TOLERANCE)
    names = [name for name in names if fits(study, name)]
    draws, errors = [], []
    for name in names:
        draws += planned(study, name, (FLAGS.reference_calls,) if name == 'reference' else calls)
        errors += noiseless(study, name, orders)
    run(study, draws, errors, FLAGS.near)
    study.write(report(study), page and plotted(study, *page))


def run(study: Study, draws: list[Draw], errors: list[Draw], near: int) -> None:
    """Makes the rows that are not there."""
    has = study.rows.has
    new = [[x for x in some if not has(x.name, x.changes)] for some in (draws, errors)]
    calls = [sum(draw.calls * study.passes(draw.changes) for draw in some) for some in new]
    study.announce(study.n * calls[0] + near * calls[1])
    study.real()
    for draw in new[0]:
        study.row(draw.name, draw.changes, lambda draw=draw: told(study, draw, near))
    if new[1]:
        exact = solution(study, near)
        for draw in new[1]:
            study.rows(draw.name, draw.changes, lambda draw=draw: error(study, draw, exact))


def fits(study: Study, name: str) -> bool:
    """Whether the model can be sampled so; else a line says why not."""
    setting = SETTINGS[name]
    why = study.misfit(changes(study, setting, 1 if setting.calls else 0))
    if why:
        print(f'left out: {name} ({why})')
    return not why


def changes(study: Study, setting: Setting, steps: int) -> dict:
    """What a setting changes of the study's config."""
    others = (name for name in solvers.KNOBS if name in study.config.sample.knobs)
    knobs = {**dict.fromkeys(others, 0.0), **setting.knobs, 'steps': steps}
    return {
        **{f'sampler.{name}': value for name, value in setting.sampler.items()},
        **{f'sample.knobs.{name}': value for name, value in knobs.items()},
    }


def planned(study: Study, name: str, asked: tuple = ()) -> list[Draw]:
    """The rows of a sampler, which take about `asked` calls each; (): what suits it."""
    setting, draws = SETTINGS[name], {}
    if not setting.calls:
        asked_for = changes(study, setting, 0)
        return [Draw(name, name, asked_for, study.method(asked_for).network_calls)]
    for most in asked or setting.calls:
        if steps := steps_within(study.varied(changes(study, setting, 1)), most):
            asked_for = changes(study, setting, steps)
            calls = study.method(asked_for).network_calls
            draws[calls] = Draw(name, f'{name}_{calls}', asked_for, calls)
    return list(draws.values())


def steps_within(config, calls: int) -> int:
    """The most steps that a config's sampler takes in so many network calls; may be 0."""
    steps = min(calls, config.diffusion.get('timesteps', calls))
    while steps and solvers.calls(config, steps) > calls:
        steps -= 1
    return steps


def told(study: Study, draw: Draw, near: int) -> dict:
    """What a row says of its sampler."""
    calls = draw.calls if SETTINGS[draw.setting].calls else calls_taken(study, draw.changes, near)
    return {'setting': draw.setting, 'calls': calls}


def calls_taken(study: Study, asked_for: dict, near: int) -> int:
    """By the adaptive solver: as many as the slowest of the first `near` samples needs."""
    drawer, config = study.drawer(asked_for), study.varied(asked_for)
    process = continuous.Model.from_config(config).process

    @jax.jit
    def steps(keys, state, condition):
        denoise = partial(drawer.method.denoise, state, condition=condition)
        path = Path(process, condition['steps'], config.sampler.spacing)
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        return ode.sample(
            denoise, path, keys, shape, condition['tolerance'], config.sampler.solver
        )[1]

    most, size = 0, config.sample.batch_size
    for start in range(0, near, size):
        indices = np.resize(np.arange(start, min(start + size, near)), size)  # whole batches
        keys = random.sample_keys(config.seed, 'sample', jnp.asarray(indices))
        most = max(most, int(jnp.max(steps(keys, study.state, drawer.condition(indices)))))
    return ode.calls(most)


def noiseless(study: Study, name: str, orders: tuple) -> list[Draw]:
    """The errors to measure of a sampler, each over so many steps; () of one that draws noise."""
    if SETTINGS[name].order is None:
        return []
    # Clipping would bend the ODE.
    plain = SETTINGS[name]._replace(sampler={**SETTINGS[name].sampler, 'clip': False})
    draws, most = [], study.config.diffusion.get('timesteps', max(orders, default=0))
    for steps in orders:
        if steps <= most:
            asked_for = changes(study, plain, steps)
            calls = study.method(asked_for).network_calls
            draws.append(Draw(name, f'{name}_error_{steps}', asked_for, calls))
    return draws


def solution(study: Study, near: int) -> np.ndarray:
    """The images of the first `near` samples at the end of the ODE, float32 [near, h, w, c]."""
    asked_for = changes(study, EXACT, 0)
    if study.misfit(asked_for):
        asked_for = changes(study, EXACT_DISCRETE, study.config.diffusion.timesteps)
    path = study.place(f'solution_{near}', asked_for).with_suffix('.npy')
    if not path.exists():
        partial_file = path.with_name(f'.partial_{path.name}')
        np.save(partial_file, study.drawer(asked_for).floats(study.state, np.arange(near)))
        partial_file.replace(path)
    return np.load(path)


def error(study: Study, draw: Draw, exact: np.ndarray) -> dict:
    """How far a sampler's images are from the ODE's."""
    made = study.drawer(draw.changes).floats(study.state, np.arange(len(exact)))
    far = float(np.sqrt(np.mean((made - exact) ** 2)))
    steps = draw.changes['sample.knobs.steps']
    print(f'{draw.setting}, {steps} steps: {far:.2e} from the solution', flush=True)
    return {'setting': draw.setting, 'calls': draw.calls, 'steps': steps, 'error': far}


def fitted_order(points: Iterable[tuple[int, float | None]]) -> float | None:
    """The slope of log(error) over log(steps), turned round; None where too little is left of it.

    Args:
      points: (steps, error), None for an error that is not finite.
    """
    known = sorted((steps, far) for steps, far in points if far is not None and far > ROUNDING)
    if len(known) < 2:
        return None
    steps, errors = np.log(np.array(known[-3:], np.float64)).T
    return float(-np.polyfit(steps, errors, 1)[0])


def reaches(row: dict, reference: dict, distance: str) -> bool:
    """Whether a row's distance is that of the reference, or less, as far as one can tell."""
    apart = [a - b for a, b in zip(row['without'], reference['without'], strict=True)]
    return row[distance] - reference[distance] <= ERRORS * studies.jackknife(apart)


class Found(NamedTuple):
    """All rows of one sampler, by rising calls."""

    name: str
    draws: list[dict]
    points: list[tuple]


def found(study: Study) -> list[Found]:
    """The samplers that have rows."""
    rows = sorted(
        (row for row in study.rows.found.values() if 'setting' in row), key=lambda row: row['calls']
    )
    each = []
    for name in SETTINGS:
        own = [row for row in rows if row['setting'] == name]
        draws = [row for row in own if 'without' in row]
        points = [(row['steps'], row['error']) for row in own if 'error' in row]
        if own:
            each.append(Found(name, draws, points))
    return each


def report(study: Study) -> str:
    """Markdown: what each sampler comes to, then every row."""
    distance, each = study.worth.distance, found(study)
    # What to reach, and whose it is.
    goals = {'reaches the reference in calls': 'reference', 'the exact ODE': 'adaptive_1e-3'}
    goals = {
        heading: x.draws[-1]
        for heading, name in goals.items()
        for x in each
        if x.name == name and x.draws
    }

    def best(x, name, form='.3f'):
        row = min(x.draws, key=lambda row: row[distance], default=None)
        return format(row[name], form) if row else ''

    def reached(x, goal):
        calls = (str(row['calls']) for row in x.draws if reaches(row, goal, distance))
        return next(calls, 'never' if x.draws else '')

    def order(x):
        known, fitted = SETTINGS[x.name].order, fitted_order(x.points)
        return '' if known is None else f'{known} / {"" if fitted is None else f"{fitted:.1f}"}'

    summary = [
        Column('sampler', lambda x: x.name),
        Column('order: known / fitted', order),
        Column(f'best {distance}', partial(best, name=distance)),
        Column('at calls', partial(best, name='calls', form='d')),
        *(Column(name, partial(best, name=name)) for name in study.worth.shares),
        *(Column(heading, partial(reached, goal=goal)) for heading, goal in goals.items()),
    ]
    rows = [row for x in each for row in x.draws]
    return f'{scripts.table(summary, each)}\n{study.every_row(rows, ["setting", "calls"])}'


def plotted(study: Study, page, axes):
    """The figure: distance over calls, and error over steps."""
    from matplotlib import colormaps

    distance, colors = (
        study.worth.distance,
        dict(zip(SETTINGS, colormaps['tab20'].colors, strict=False)),
    )
    levels = {'real images': (study.rows.found['real'], ':')}
    for x in found(study):
        look = {'marker': 'o' if SETTINGS[x.name].order else 'x', 'color': colors[x.name]}
        if x.name == 'reference':
            levels |= {f'{row["calls"]} ancestral steps': (row, '--') for row in x.draws}
        elif x.draws:
            values = [(row['calls'], row[distance]) for row in x.draws]
            axes[0].loglog(*zip(*values, strict=True), label=x.name, **look)
        if points := [point for point in x.points if point[1] is not None]:
            axes[1].loglog(*zip(*points, strict=True), label=x.name, **look)
    for name, (row, style) in levels.items():
        if distance in row:
            axes[0].axhline(row[distance], color='black', linestyle=style, label=name)
    axes[0].set(xlabel='network calls', ylabel=f'{distance} of {study.n:,} samples')
    axes[1].set(xlabel='steps', ylabel="distance to the ODE's solution (RMS per pixel)")
    scripts.legends(axes)
    return page


if __name__ == '__main__':
    scripts.start(define_flags, main)
