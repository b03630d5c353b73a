"""The studies of one trained model: experiments/samplers.py and experiments/guidance.py."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import guidance
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import samplers
import scripts
import studies

from gen_jax.config import create, default
from gen_jax.data import sources
from gen_jax.diffusion import solvers
from gen_jax.errors import UserError
from gen_jax.metrics.features.extract import open_extractor
from gen_jax.metrics.fid import Moments, fid
from gen_jax.metrics.prdc import prdc
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.program import Program

ROOT = Path(__file__).parents[1]
N = 20


def small(method='diffusion.continuous', **changes):
    """A network of a few thousand parameters for the digits."""
    config = default(method)
    config.update_from_flattened_dict(
        {
            'batch_size': 8,
            'data.num_classes': 10,
            'model.channels': 4,
            'model.multipliers': (1,),
            'model.blocks': 1,
            'model.attention': (),
            'model.groups': 2,
            'diffusion.label_dropout': 0.1,
            'sample.batch_size': N,
            'eval.network': 'digits',
            **changes,
        }
    )
    return config


FLOW = {
    'diffusion.process': 'flow',
    'diffusion.prediction': 'velocity',
    'diffusion.told': 'time',
    'diffusion.times': 'uniform',
    'sampler.name': 'ddim',
    'sampler.spacing': 'trailing',
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run whose weights are random, all of them: at first the last layer's are 0."""
    folder, rng = tmp_path_factory.mktemp('run'), np.random.default_rng(0)
    config = small()
    shapes = Program(config, create(config)).state_shape
    state = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), shapes)
    with contextlib.closing(Checkpoints(folder / 'checkpoints', keep=1)) as checkpoints:
        checkpoints.save(1, state, {})
    return folder


@pytest.fixture
def study(trained, monkeypatch, request):
    monkeypatch.setattr(studies.Study, 'announce', lambda self, calls: None)  # it compiles
    return studies.Study(small(), trained, request.node.name[:40], N)


class Planned:
    """As much of a `Study` as planning needs."""

    def __init__(self, config):
        self.config = config

    varied, method, misfit, passes = (
        getattr(studies.Study, name) for name in ('varied', 'method', 'misfit', 'passes')
    )


def by_hand(config, trained, n=N):
    """Samples without the study: those of the config as it stands."""
    program = Program(config, create(config))
    state = studies.load(program, trained)[1]
    return program.sample(state, np.arange(n))


@pytest.mark.parametrize('name', [name for name in solvers.SAMPLERS if name != 'adaptive'])
def test_steps_are_the_most_that_so_many_calls_allow(name):
    config = small(**{'sampler.name': name, 'sampler.corrections': 2})
    for calls in range(1, 14):
        steps = samplers.steps_within(config, calls)
        assert solvers.calls(config, steps + 1) > calls
        assert steps == 0 or solvers.calls(config, steps) <= calls


def test_a_discrete_model_takes_no_more_steps_than_it_has_times():
    config = small('diffusion.gaussian', **{'diffusion.timesteps': 20, 'diffusion.beta_max': 0.5})
    (draw,) = samplers.planned(Planned(config), 'reference', (1000,))
    assert draw.changes['sample.knobs.steps'] == draw.calls == 20
    assert len(samplers.noiseless(Planned(config), 'ddim', (10, 20, 40))) == 2


def test_every_sampler_is_planned_within_its_calls():
    for name in samplers.SETTINGS:
        draws = samplers.planned(Planned(small()), name, (8, 21))
        assert len({draw.name for draw in draws}) == len(draws)
        if samplers.SETTINGS[name].calls:
            few, more = (draw.calls for draw in draws)
            assert 5 <= few <= 8
            assert 19 <= more <= 21


def test_a_sampler_that_does_not_fit_is_left_out_with_a_reason(capsys):
    flow = Planned(small(**FLOW))
    fitting = [name for name in samplers.SETTINGS if samplers.fits(flow, name)]
    out = capsys.readouterr().out
    assert {'reference', 'ddim', 'heun', 'adaptive_1e-3'} <= {*fitting}
    assert not {'dpmpp_2m', 'unipc_2', 'lms'} & {*fitting}
    assert 'left out: dpmpp_2m (' in out
    assert 'infinite where this process starts' in out
    discrete = Planned(small('diffusion.gaussian'))
    assert not samplers.fits(discrete, 'heun_churn')
    assert 'churn' in capsys.readouterr().out
    assert samplers.fits(discrete, 'unipc_3')


def test_the_order_is_fitted_where_rounding_leaves_errors_alone():
    points = [(10, 9.0), (20, 0.03), (40, 0.0075), (80, 0.001875), (160, 2e-6)]
    assert samplers.fitted_order(points) == pytest.approx(2)
    assert samplers.fitted_order([(10, 0.1), (20, None), (40, 0.025)]) == pytest.approx(1)
    assert samplers.fitted_order([(10, 0.1), (20, 1e-7)]) is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=(studies.GROUPS, 1))
    without = studies.leaving_out(lambda x: float(x.mean()), values)
    expected = values.std(ddof=1) / np.sqrt(len(values))
    assert studies.jackknife(without) == pytest.approx(expected)


def test_each_part_left_out_holds_all_classes():
    labels = np.arange(1000)[:, None] % 10
    for kept in studies.leaving_out(lambda x: np.bincount(x[:, 0]), labels):
        assert np.array_equal(kept, np.full(10, 95))


def test_a_distance_is_reached_within_the_error_of_the_difference():
    noise = np.random.default_rng(1).normal(size=20)
    reference = {'fid': 5.0, 'without': list(5 + noise)}
    # Their difference has hardly an error, though each of them has a large one.
    beside = {'fid': 5.1, 'without': list(5.1 + noise)}
    assert not samplers.reaches(beside, reference, 'fid')
    assert samplers.reaches(reference, beside, 'fid')
    other = {'fid': 5.1, 'without': list(5.1 - noise)}
    assert samplers.reaches(other, reference, 'fid')


def test_another_number_of_steps_needs_no_other_program(study):
    drawers = [
        study.drawer(samplers.changes(study, samplers.SETTINGS[name], steps))
        for name, steps in (('ddim', 5), ('ddim', 9), ('ddim_eta_1', 5), ('heun', 5))
    ]
    assert drawers[0] is drawers[1] is drawers[2]
    assert drawers[3] is not drawers[0]


def test_a_negative_label_is_studied_also_where_nothing_is_guided(trained):
    config = small(**{'sample.knobs.negative_label': 3, 'seed': 1})
    drawer = studies.Study(config, trained, 'negative', N).drawer({})
    assert drawer.condition(np.arange(2))['negative_label'].tolist() == [3, 3]
    config.sample.knobs.negative_label = 10
    with pytest.raises(UserError, match=r'a class below data\.num_classes=10'):
        studies.Study(config, trained, 'negative', N)


def test_a_row_of_one_class_is_scored_by_that_class(study):
    config = small(**{'sample.label': 3})
    worth = studies.Worth(config, study.drawer({}).mesh, N)
    source = sources.open_source(config.data, 'test')
    threes = np.flatnonzero(sources.labels_of(source) == 3)[:N]
    found = worth(np.stack([source[int(i)]['image'] for i in threes]))
    assert found['accuracy_digits'] > 0.9


def test_guided_calls_count_twice():
    study, announced = Planned(small(**{'sampler.name': 'ddim', 'sample.knobs.steps': 5})), []

    def announce(calls):
        announced.append(calls)
        raise StopIteration

    study.n, study.rows, study.announce = 10, scripts.Rows(Path('none.json'), {}), announce
    draws = guidance.planned(['plain'], (0.0, 1.0, 2.0), (), 0.7)
    with pytest.raises(StopIteration):
        guidance.run(study, draws)
    study.config.sample.knobs.guidance = 3.0
    with pytest.raises(StopIteration):
        samplers.run(study, samplers.planned(study, 'ddim', (4,)), [], 0)
    assert announced == [10 * (2 + 1 + 2) * 5, 10 * 2 * 4]


def test_real_images_are_measured_again_where_their_split_is_another(trained, monkeypatch):
    monkeypatch.setattr(studies.Worth, 'real', lambda worth: {'n': len(worth._reference.held_out)})
    for split, n in (('test', 296), ('all', 1797), ('test', 296)):
        config = small(**{'data.eval_split': split})
        assert studies.Study(config, trained, 'real', N).real() == {'n': n}


def test_a_row_of_other_settings_is_drawn_and_measured_again(study, monkeypatch):
    """By images that are as bright as their number of steps; nothing is drawn twice."""
    drawn = []

    def sample(drawer, state, indices):
        drawn.append(steps := drawer.config.sample.knobs.steps)
        return np.full((len(indices), 8, 8, 1), steps, np.uint8)

    def worth(worth, images):
        return {worth.distance: float(images.mean())}

    monkeypatch.setattr(studies.Drawer, 'sample', sample)
    monkeypatch.setattr(studies.Worth, '__call__', worth)
    for steps in (3, 5, 3):
        row = study.row('a', {'sample.knobs.steps': steps}, dict)
        assert row == {'fid_digits': steps}
    assert drawn == [3, 5]
    assert len(study.rows.found) == 1


def test_values_that_are_not_finite_are_black_and_told(study, monkeypatch, capsys):
    images = np.zeros((3, 8, 8, 1))
    images[0, 0, 0], images[0, 0, 1], images[2, 1, 1] = np.nan, -np.inf, np.inf
    monkeypatch.setattr(studies.Drawer, 'floats', lambda drawer, state, indices: images)
    found = study.drawer({}).sample(None, np.arange(3))
    assert '2 of 3 samples hold values that are not finite' in capsys.readouterr().out
    assert [found[0, 0, 0, 0], found[0, 0, 1, 0], found[2, 1, 1, 0]] == [0, 0, 0]
    assert found[1].min() > 100


def test_calls_of_the_adaptive_sampler_depend_on_no_batch_size(trained, study, monkeypatch):
    """Where a sample's steps are its own: of the first 13 samples the most, whatever a batch is."""

    def solved(denoise, path, keys, *rest):
        return None, jax.random.key_data(keys)[:, 0] % 97

    monkeypatch.setattr(samplers.ode, 'sample', solved)
    keys = samplers.random.sample_keys(0, 'sample', jnp.arange(13))
    want = 6 * int((np.asarray(jax.random.key_data(keys))[:, 0] % 97).max()) + 2
    asked = samplers.changes(study, samplers.SETTINGS['adaptive_1e-2'], 0)
    for size in (2, 5, 13, 20):
        study.config.sample.batch_size = size
        study._drawers.clear()
        assert samplers.calls_taken(study, asked, 13) == want


def test_the_flag_of_guidance_rules_and_says_so(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(scripts, 'numbers', lambda name: ())
    monkeypatch.setattr(
        studies, 'opened', lambda name, config, **told: seen.append(config) or 1 / 0
    )
    for asked in (2.5, 1.0):
        config = small(**{'sample.knobs.guidance': asked})
        told = types.SimpleNamespace(config=config, guidance=1.0, rows=[], plot=False, near=4)
        monkeypatch.setattr(samplers, 'FLAGS', told)
        with pytest.raises(ZeroDivisionError):
            samplers.main()
        out = capsys.readouterr().out
        assert seen[-1].sample.knobs.guidance == 1
        assert ("guidance is 1, by --guidance, and not the config's 2.5" in out) == (asked == 2.5)


@functools.cache
def extractor():
    return open_extractor('digits', roles=('pool', 'logits'))


@functools.cache
def features(split):
    source = sources.open_source(small().data, split)
    return extractor()(np.stack([source[i]['image'] for i in range(len(source))]))


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_a_row_holds_the_samples_of_its_config_and_their_worth(study, trained, scale):
    changes = {'sampler.name': 'ddim', 'sample.knobs.steps': 3, 'sample.knobs.guidance': scale}
    row = study.row(f'ddim_{scale}', changes, lambda: {'calls': 3})
    expected = by_hand(small(**changes), trained).astype(int)
    parts = [np.load(path) for path in study.images.glob(f'ddim_{scale}_*/part_*.npy')]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    real, seen = features('train')['pool'], extractor()(np.concatenate(parts))
    assert row['calls'] == 3
    assert row['fid_digits'] == pytest.approx(fid(Moments.of(real), Moments.of(seen['pool'])))
    some = prdc(real[np.linspace(0, len(real) - 1, N).astype(int)], seen['pool'])
    assert row['precision_digits'] == some['precision']
    assert row['recall_digits'] == some['recall']
    right = seen['logits'].argmax(1) == np.arange(N) % 10
    assert row['accuracy_digits'] == pytest.approx(right.mean())


@pytest.mark.slow
def test_a_stopped_study_goes_on_with_the_samples_it_has(study, trained, monkeypatch):
    changes = {'sampler.name': 'ddim', 'sample.knobs.steps': 2}
    row = study.row('a', changes, dict)

    def refuse(*args):
        raise AssertionError('drawn again')

    monkeypatch.setattr(studies.Drawer, 'sample', refuse)
    again = studies.Study(small(), trained, study.folder.name, N)
    assert again.row('a', changes, dict) == row
    (study.folder / f'{study.folder.name}.json').unlink()
    again = studies.Study(small(), trained, study.folder.name, N)
    assert again.row('a', changes, dict) == row


@pytest.mark.slow
def test_real_images_are_worth_more_than_an_untrained_network(study):
    real = study.worth.real()
    row = study.row('a', {'sampler.name': 'ddim', 'sample.knobs.steps': 2}, dict)
    assert real['fid_digits'] < row['fid_digits'] / 3
    assert 'accuracy_digits' not in real
    some = (features(split)['pool'] for split in ('train', 'test'))
    expected = prdc(*(x[np.linspace(0, len(x) - 1, N).astype(int)] for x in some))
    assert expected['precision'] > 0.5
    assert real['precision_digits'] == expected['precision']
    assert real['recall_digits'] == expected['recall']


@pytest.mark.slow
def test_a_sampler_converges_to_the_exact_solution_with_its_order(study):
    draws = samplers.planned(study, 'adaptive_1e-2')
    samplers.run(study, draws, samplers.noiseless(study, 'ddim', (40, 80, 160)), 4)
    each = {x.name: x for x in samplers.found(study)}
    assert samplers.fitted_order(each['ddim'].points) == pytest.approx(1, abs=0.2)
    (row,) = each['adaptive_1e-2'].draws
    # A step has six calls; one begins and one ends it all.
    assert row['calls'] % 6 == 2
    assert 8 <= row['calls'] < 300
    text = samplers.report(study)
    assert '| ddim | 1 / 1.' in text or '| ddim | 1 / 0.' in text
    assert '| real images |' in text


def test_guidance_has_rows_only_where_modes_differ():
    draws = guidance.planned(['plain', 'interval', 'rescale'], (0.0, 1.0, 2.5), (0.2, 3.0), 0.7)
    names = ['plain_0', 'plain_1', 'plain_2.5', 'interval_0.2_to_3_2.5', 'rescale_0.7_2.5']
    assert [draw.name for draw in draws] == names
    changed = [small(**draw.changes) for draw in draws]
    assert [config.sample.knobs.guidance for config in changed] == [0, 1, 2.5, 2.5, 2.5]
    assert [tuple(config.sampler.guidance_interval) for config in changed[2:]] == [(), (0.2, 3), ()]
    assert [config.sample.knobs.guidance_rescale for config in changed[2:]] == [0, 0, 0.7]


def test_what_cannot_be_guided_is_told():
    draw, other = (
        guidance.planned([name], (2.0,), (3.0, 1.0), 0.7)[0] for name in ('plain', 'interval')
    )
    assert Planned(small()).misfit(draw.changes) == ''
    assert 'cannot be guided' in Planned(small(**{'diffusion.label_dropout': 0.0})).misfit(
        draw.changes
    )
    assert 'guidance_interval=(3.0, 1.0)' in Planned(small()).misfit(other.changes)


@pytest.mark.slow
def test_guidance_is_measured_and_told(study):
    study.config.sampler.name, study.config.sample.knobs.steps = 'ddim', 2
    draws = guidance.planned(['plain', 'rescale'], (1.0, 3.0), (0.2, 3.0), 0.7)
    guidance.run(study, draws)
    assert [len(rows) for rows in guidance.found(study).values()] == [2, 1]
    distances = {row['fid_digits'] for row in study.rows.found.values()}
    assert len(distances) == 4  # three rows and the real images
    assert guidance.report(study).count('\n') == 2 + 4


def test_figures_are_drawn(study):
    pytest.importorskip('matplotlib')
    worth = {'fid_digits': 2.0, 'precision_digits': 0.5, 'recall_digits': 0.25}
    worth |= {'accuracy_digits': 0.9, 'without': [2.0, 2.1]}
    study.rows.found |= {
        'real': {'fid_digits': 1.0, 'precision_digits': 0.9, 'recall_digits': 0.9},
        'reference_9': {'setting': 'reference', 'calls': 9, **worth},
        'ddim_5': {'setting': 'ddim', 'calls': 5, **worth},
        'ddim_error_5': {'setting': 'ddim', 'calls': 5, 'steps': 5, 'error': 0.1},
        'plain_2': {'mode': 'plain', 'scale': 2.0, **worth},
    }
    for part in (samplers, guidance):
        study.write('text', part.plotted(study, *scripts.figure(2)))
        path = study.folder / f'{study.folder.name}.png'
        assert path.stat().st_size > 10_000
        path.unlink()


def test_what_cannot_be_studied_is_told(trained, tmp_path):
    with pytest.raises(UserError, match='no checkpoint'):
        studies.Study(small(), tmp_path, 'samplers', N)
    with pytest.raises(UserError, match='expected a diffusion model of images'):
        studies.Study(default('autoencoders.vae'), tmp_path, 'samplers', N)
    with pytest.raises(UserError, match='these are 8x8'):
        studies.Study(small(**{'eval.network': 'fashion_mnist'}), trained, 'samplers', N)


TINY = f'--config={ROOT}/configs/edm_fashion_mnist.py:tiny'


@pytest.fixture
def command(xla_cache):
    """Runs a study in a process of its own: command(name, args...) -> CompletedProcess."""

    def start(name, *args):
        words = [sys.executable, str(ROOT / 'experiments' / name), *map(str, args)]
        where = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(xla_cache)}
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=where)

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('samplers', 'vae_fashion_mnist.py:tiny'),
        ('guidance', 'noised_classifier_digits.py:tiny'),
        ('samplers', 'ldm_fashion_mnist.py:tiny_diffusion'),
    ],
)
def test_what_draws_no_images_by_a_sampler_is_refused(command, name, config):
    done = command(f'{name}.py', f'--config={ROOT}/configs/{config}', '--noplot')
    assert done.returncode == 2
    assert 'expected a diffusion model of images' in done.stderr
    assert done.stderr.count('\n') == 1


@pytest.mark.slow
def test_the_commands_leave_rows_and_tables_and_go_on(main, command, tmp_path):
    done = main(TINY, f'--workdir={tmp_path}', '--config.steps=2')
    assert done.returncode == 0, done.stderr
    few = TINY, f'--workdir={tmp_path}', '--n=8', '--noplot'
    asked = '--rows=reference,ddim', '--calls=3,5', '--orders=', '--reference_calls=6'
    done = command('samplers.py', *few, *asked)
    assert done.returncode == 0, done.stderr
    assert '112 network calls for single samples' in done.stdout  # 8 (6 + 3 + 5)
    path = tmp_path / 'samplers' / 'samplers.json'
    rows = json.loads(path.read_text())['rows']
    assert set(rows) == {'real', 'reference_6', 'ddim_3', 'ddim_5'}
    assert '| ddim | 5 |' in path.with_suffix('.md').read_text()
    left = {name: row for name, row in rows.items() if name != 'ddim_5'}
    path.write_text(json.dumps({**json.loads(path.read_text()), 'rows': left}))
    done = command('samplers.py', *few, *asked)
    assert done.returncode == 0, done.stderr
    assert 'ddim_5: ' in done.stdout
    assert 'ddim_3: ' not in done.stdout
    assert json.loads(path.read_text())['rows'] == rows
    done = command('guidance.py', *few, '--scales=1,2', '--rows=plain')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'guidance' / 'guidance.json').read_text())['rows']
    assert set(found) == {'real', 'plain_1', 'plain_2'}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'args', 'told'),
    [
        ('samplers.py', (), 'no checkpoints in'),
        ('samplers.py', ('--rows=ddmi',), "no row 'ddmi', did you mean 'ddim'?"),
        ('samplers.py', ('--calls=5,x',), '--calls=5,x: expected numbers of at least 1'),
        ('samplers.py', ('--n=2',), '--n=2'),
        ('guidance.py', ('--config.sample.knobs.guidanec=2',), 'guidance'),
        ('guidance.py', ('--scales=-1',), '--scales=-1: expected numbers of at least 0'),
    ],
)
def test_bad_input_ends_in_one_line(command, name, args, told, tmp_path):
    done = command(name, TINY, f'--workdir={tmp_path}', '--noplot', *args)
    assert done.returncode == 2
    assert done.stderr.startswith(f'{name}: ')
    assert done.stderr.count('\n') == 1
    assert told in done.stderr
