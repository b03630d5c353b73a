"""The study of mode collapse, on runs of a few steps."""

import functools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mode_collapse
import numpy as np
import pytest
from mode_collapse import MIXTURES, SETTINGS, configured, drawn, report, trained, worth

from gen_jax.config import create
from gen_jax.errors import UserError
from gen_jax.gans.mlp import Discriminator

STEPS = 3
RING, GRID = MIXTURES['ring'], MIXTURES['grid']
MIXED = [pytest.param(mixture, id=name) for name, mixture in MIXTURES.items()]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches and sample counts of tests."""
    monkeypatch.setattr(mode_collapse, 'BATCH', 4)
    monkeypatch.setattr(mode_collapse, 'SAMPLES', 40)


def config(name='non_saturating', **changes):
    narrow = {'model.g_widths': (8,), 'model.d_widths': (8,), 'model.pieces': (1,)}
    return configured({**SETTINGS[name], **narrow, **changes}, STEPS)


def test_mixtures_are_those_of_the_papers():
    np.testing.assert_allclose(np.linalg.norm(RING.centres, axis=1), 1)
    gaps = np.linalg.norm(RING.centres - np.roll(RING.centres, 1, 0), axis=1)
    np.testing.assert_allclose(gaps, 2 * math.sin(math.pi / 8))
    assert sorted({tuple(x) for x in GRID.centres.tolist()}) == [
        (x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)
    ]
    assert (RING.std, GRID.std) == (0.01, 0.05)
    for mixture in MIXTURES.values():  # what is cut off is of no mode
        assert mixture.reach > np.abs(mixture.centres).max() + 3 * mixture.std


@pytest.mark.parametrize('mixture', MIXED)
def test_the_mixtures_own_samples_find_every_mode(mixture):
    rng, k = np.random.default_rng(0), len(mixture.centres)
    which = rng.integers(k, size=(2, 2500))
    samples = mixture.centres[which] + mixture.std * rng.standard_normal((2, 2500, 2))
    found = worth(mixture, samples)
    assert found['modes'] == [k, k]
    # chi^2 of 2 degrees of freedom, and the bias of an estimated KL.
    assert found['high_quality'] == pytest.approx([1 - math.exp(-4.5)] * 2, abs=0.01)
    assert found['reverse_kl'] == pytest.approx([(k - 1) / 5000] * 2, abs=0.004)


@pytest.mark.parametrize('mixture', MIXED)
def test_one_mode_is_one_and_noise_is_of_low_quality(mixture):
    rng, k = np.random.default_rng(0), len(mixture.centres)
    one = mixture.centres[3] + mixture.std * rng.standard_normal((2500, 2))
    noise = rng.uniform(-mixture.reach, mixture.reach, (2500, 2))
    found = worth(mixture, np.stack([one, noise]))
    assert found['modes'][0] == 1
    assert found['reverse_kl'][0] == pytest.approx(math.log(k))
    # The area of k circles in the square.
    share = k * math.pi * (3 * mixture.std) ** 2 / (2 * mixture.reach) ** 2
    assert found['high_quality'][1] == pytest.approx(share, abs=0.007)


def test_runs_that_found_nothing_or_are_not_finite_count():
    samples = np.stack([np.full((9, 2), np.nan), np.zeros((9, 2)), np.tile([1.0, 0.0], (9, 1))])
    samples[2, 0] = np.inf
    found = worth(RING, samples)
    assert found['modes'] == [0, 0, 1]
    assert found['high_quality'] == [0, 0, pytest.approx(8 / 9)]
    assert found['reverse_kl'] == pytest.approx([math.log(8)])  # of the last alone


@pytest.mark.slow
def test_seeds_of_one_program_are_single_runs():
    samples = drawn(config(), STEPS, seeds=2)
    assert samples.shape == (2, 2, 40, 2)
    assert not np.allclose(samples[:, 0], samples[:, 1])
    run = jax.jit(trained(config(), STEPS))
    for mixture, each in zip(MIXTURES.values(), samples, strict=True):
        # The 200 centres of `drawn`, without its arithmetic.
        repeated = np.concatenate([mixture.centres] * (200 // len(mixture.centres)))
        for seed in (0, 1):
            alone = run(jnp.array(repeated / mixture.reach), mixture.std / mixture.reach, seed)
            np.testing.assert_allclose(alone * mixture.reach, each[seed], rtol=1e-4, atol=1e-4)


def test_training_sees_the_mixture(monkeypatch):
    """Instead of learning, the state keeps the last batch, and samples are what it keeps."""

    class Keeps:
        init = staticmethod(lambda key, batch: batch['image'])
        train_step = staticmethod(lambda key, state, batch: (batch['image'], {}))
        sample_step = staticmethod(lambda keys, state, condition: state)

    monkeypatch.setattr(mode_collapse, 'create', lambda config: Keeps)
    monkeypatch.setattr(mode_collapse, 'BATCH', 400)
    monkeypatch.setattr(mode_collapse, 'SAMPLES', 400)
    samples = drawn(config(), STEPS, seeds=1)
    for mixture, each in zip(MIXTURES.values(), samples, strict=True):
        found = worth(mixture, each)
        assert found['modes'] == [len(mixture.centres)]
        assert found['high_quality'][0] == pytest.approx(1 - math.exp(-4.5), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('name', SETTINGS)
def test_every_setting_takes_a_step(name):
    told = config(name)
    batch = {'image': jax.ShapeDtypeStruct((told.batch_size, 1, 1, 2), jnp.float32)}
    method, key = create(told), jax.random.key(0)
    state = jax.eval_shape(functools.partial(method.init, key), batch)
    after, _ = jax.eval_shape(functools.partial(method.train_step, key), state, batch)
    assert after == state


def test_packs_are_judged_as_one():
    x = jax.random.normal(jax.random.key(0), (6, 1, 1, 2))
    options = dict.fromkeys(('dropout', 'num_classes', 'label_width', 'minibatch_kernels'), 0)
    net = functools.partial(Discriminator, (8,), (2,), spectral=False, **options)
    packed, plain = net(packing=3), net(packing=1)
    variables = packed.init(jax.random.key(1), x, train=False)
    logits = packed.apply(variables, x, train=False)
    assert logits.shape == (2,)
    wide = plain.apply(variables, x.reshape(2, 1, 1, 6), train=False)
    np.testing.assert_array_equal(logits, wide)
    torn = config(**{'model.packing': 3})
    torn.batch_size = 4
    with pytest.raises(UserError, match=r'n_critic \* accumulate \* model.packing = 3'):
        create(torn)


@pytest.mark.slow
def test_units_that_are_dead_leave_the_unrolled_gradient_finite():
    told = config('unrolled_5', **{'gan.unroll': 1})
    method, batch = create(told), {'image': jnp.full((4, 1, 1, 2), 0.1)}
    state = method.init(jax.random.key(0), batch)
    bias = state.discriminator.params['dense_0']['bias']
    state.discriminator.params['dense_0']['bias'] = bias.at[0].set(-100)
    state, _ = jax.jit(method.train_step)(jax.random.key(1), state, batch)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.generator.params))


def test_the_table_has_means_deviations_and_the_papers_rows():
    ring = {'modes': [6, 8], 'high_quality': [0.5, 0.7], 'reverse_kl': [0.25, 0.75]}
    grid = {'modes': [0, 0], 'high_quality': [0.0, 0.0], 'reverse_kl': []}
    some = {'modes': [0, 1, 2], 'high_quality': [0.0] * 3, 'reverse_kl': [1.0, 2.0]}
    (cell,) = report({'hinge': {'seconds': 1, 'ring': ring, 'grid': some}}).splitlines()[2:]
    assert '| 1.50 ± 0.71 (2 of 3) | 1 |' in cell
    lines = report({'unrolled_5': {'seconds': 7.2, 'ring': ring, 'grid': grid}}).splitlines()
    assert [x.strip() for x in lines[0].split('|')][2] == 'ring: modes of 8'
    assert lines[2] == (
        '| unrolled_5 | 7.0 ± 1.4 | 60.0 ± 14.1 | 0.50 ± 0.35 | 0.0 ± 0.0 | 0.0 ± 0.0 | - | 7 |'
    )
    assert lines[3].startswith('| *unrolled GAN, Srivastava et al. 2017* | 7.6 | 35.6 |')
    assert len({line.count('|') for line in lines}) == 1


def test_a_row_depends_on_all_that_its_runs_are_told(monkeypatch):
    before = mode_collapse.settings_of(STEPS)
    assert list(before) == list(SETTINGS)
    configs = mode_collapse.configured
    for name, value in (
        ('BATCH', 8),
        ('SAMPLES', 41),
        ('configured', lambda changes, steps: configs({'ema_decay': 0.5, **changes}, steps)),
        ('SETTINGS', {name: {**x, 'gan.augment': ('color',)} for name, x in SETTINGS.items()}),
    ):
        with monkeypatch.context() as other:
            other.setattr(mode_collapse, name, value)
            after = mode_collapse.settings_of(STEPS)
        assert all(after[name] != before[name] for name in SETTINGS)


def test_papers_rows_stand_below_settings_that_exist():
    assert set(mode_collapse.PUBLISHED) <= set(SETTINGS)


@pytest.fixture
def command(xla_cache, tmp_path):
    """Runs the study in a process of its own: command(*args) -> CompletedProcess."""

    def start(*args):
        words = [sys.executable, mode_collapse.__file__, f'--out={tmp_path}', *args]
        where = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(xla_cache)}
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=where)

    return start


@pytest.mark.slow
def test_the_command_leaves_rows_table_and_figure_and_goes_on(command, tmp_path):
    pytest.importorskip('matplotlib')
    few = '--steps=2', '--seeds=2'
    for rows, new in (('minimax', 1), ('minimax,pacgan_2', 1), ('pacgan_2', 0)):
        done = command(*few, f'--rows={rows}')
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('modes of ring') == new
    path = tmp_path / 'mode_collapse.json'
    found = json.loads(path.read_text())['rows']
    assert list(found) == ['minimax', 'pacgan_2']
    assert len(found['minimax']['grid']['modes']) == 2
    assert '| *PacGAN2, Lin et al. 2018* |' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.png').stat().st_size > 1000
    (tmp_path / 'minimax.npy').unlink()
    done = command(*few, '--rows=pacgan_2')  # a row without samples is forgotten, and made again
    assert (done.returncode, done.stdout.count('modes of ring')) == (0, 0), done.stderr
    done = command(*few, '--rows=minimax')
    assert (done.returncode, done.stdout.count('modes of ring')) == (0, 1), done.stderr


@pytest.mark.slow
def test_bad_input_ends_in_one_line(command):
    for asked, told in (
        ('--rows=minmax', "no row 'minmax', did you mean 'minimax'?"),
        ('--steps=0', '--steps=0'),
        ('--out=' + mode_collapse.__file__, 'expected a folder'),
        ('more', "unexpected argument 'more'"),
    ):
        done = command('--noplot', asked)
        assert done.returncode == 2
        assert done.stderr.startswith('mode_collapse.py: ')
        assert done.stderr.count('\n') == 1
        assert told in done.stderr
