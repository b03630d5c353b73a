"""The study of disentanglement, on runs of a few steps."""

import functools
import json
import math
import os
import subprocess
import sys
import types

import disentanglement
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from disentanglement import MEASURES, SETTINGS, SIZES, configured, every_image, report, trained

from gen_jax.config import create
from gen_jax.data import sprites
from gen_jax.data.pipeline import to_float
from gen_jax.errors import UserError

STEPS = 3
FEW = (3, 2, 2, 2, 2)
EVERY = sprites.factors(np.arange(math.prod(SIZES)), SIZES)


@pytest.fixture
def small(monkeypatch):
    """Few images, encoded in parts that do not divide them."""
    monkeypatch.setattr(disentanglement, 'SIZES', FEW)
    monkeypatch.setattr(disentanglement, 'BATCH', 4)
    monkeypatch.setattr(disentanglement, 'TOGETHER', 20)


def config(name='vae', **changes):
    told = configured(SETTINGS[name], 8, STEPS)
    told.model.widths = (8,)
    told.update_from_flattened_dict(changes)
    return told


@pytest.mark.slow
def test_every_combination_has_one_image():
    images = every_image(32)
    assert images.shape == (11_520, 32, 32, 1)
    some = np.random.default_rng(0).integers(len(images), size=5)
    whole = sprites.values(sprites.factors(some, SIZES), SIZES)
    np.testing.assert_array_equal(images[some, ..., 0], sprites.render(whole, 32))


def test_strengths_weigh_the_total_correlation_alike():
    weights = {}
    for name in SETTINGS:
        vae = configured(SETTINGS[name], 8, STEPS).vae
        family, _, strength = name.rpartition('_')
        if family:
            weights.setdefault(family, []).append(1 + vae.gamma if 'gamma' in vae else vae.beta)
            assert float(strength) == (vae.gamma if 'gamma' in vae else vae.beta)
    families = 'beta_vae', 'beta_tcvae', 'factor_vae'
    assert weights == {family: [2, 4, 8] for family in families}
    assert config('vae').vae.beta == 1
    assert config('beta_tcvae_4').vae.data_size == 11_520


def test_rows_depend_on_different_settings(monkeypatch):
    before = disentanglement.settings_of(8, STEPS)
    assert len({json.dumps(x) for x in before.values()}) == len(SETTINGS)
    for name in ('BATCH', 'PREDICTED'):
        with monkeypatch.context() as other:
            other.setattr(disentanglement, name, 32)
            after = disentanglement.settings_of(8, STEPS)
        assert all(after[name] != before[name] for name in SETTINGS)


def test_every_model_learns_from_as_many_images():
    halves = {name: configured(SETTINGS[name], 8, STEPS).batch_size for name in SETTINGS}
    assert {n / (2 if 'factor' in name else 1) for name, n in halves.items()} == {64}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vae', 'beta_vae_4', 'beta_tcvae_8', 'factor_vae_3'])
def test_every_setting_takes_a_step(name):
    told = config(name)
    method, key = create(told), jax.random.key(0)
    batch = {'image': jax.ShapeDtypeStruct((told.batch_size, 8, 8, 1), jnp.float32)}
    state = jax.eval_shape(functools.partial(method.init, key), batch)
    after, _ = jax.eval_shape(functools.partial(method.train_step, key), state, batch)
    assert after == state


@pytest.mark.slow
def test_seeds_of_one_program_are_single_runs(small):
    told, images = config('factor_vae_3'), every_image(8)
    run = trained(told, images, STEPS)
    codes, terms = jax.jit(jax.vmap(run))(jnp.arange(2))
    assert codes.shape == (2, 48, 10)
    assert not np.allclose(codes[0], codes[1])
    alone, own = jax.jit(run)(1)
    np.testing.assert_allclose(alone, codes[1], rtol=1e-3, atol=1e-4)
    for name in ('reconstruction', 'kl'):
        np.testing.assert_allclose(own[name], terms[name][1], rtol=1e-4)


class Keeps:
    """Instead of learning, the state is the sum of the batches; codes are two corners."""

    def init(self, key, batch):
        return jnp.zeros(batch['image'].shape[1:])

    def train_step(self, key, state, batch):
        return state + batch['image'].sum(0), {}

    def evaluate_step(self, keys, state, batch):
        value = jnp.abs(state).mean() + batch['image'].mean((1, 2, 3))
        return {'log_likelihood': -value, 'kl': 2 * value}

    def encode(self, state, batch):
        return batch['image'].reshape(len(batch['image']), -1)[:, 18:46]


def test_training_and_judging_see_every_image_once(small, monkeypatch):
    monkeypatch.setattr(disentanglement, 'create', lambda config: Keeps())
    images = every_image(8)
    for steps in (0, 500):
        codes, terms = jax.jit(trained(config(), images, steps))(0)
        flat = to_float(images).reshape(48, -1)
        np.testing.assert_allclose(codes, flat[:, 18:46], atol=1e-6)
        # Batches of 4 are drawn alike from all images.
        seen = 4 * steps * abs(flat.mean(0)).mean()
        value = terms['reconstruction'] - flat.mean()
        assert value == pytest.approx(seen, rel=0.02, abs=1e-5)
        np.testing.assert_allclose(terms['kl'], 2 * terms['reconstruction'], rtol=1e-5)


@pytest.mark.slow
def test_scores_of_what_is_known(monkeypatch):
    monkeypatch.setattr(disentanglement, 'PREDICTED', 500)
    monkeypatch.setattr(disentanglement, 'factor_vae', few(disentanglement.factor_vae, 'votes'))
    monkeypatch.setattr(disentanglement, 'beta_vae', few(disentanglement.beta_vae, 'groups'))
    known = disentanglement.scores(EVERY / np.array(SIZES), 0)
    assert known['mig'] == pytest.approx(1)
    for name in ('factor_vae', 'beta_vae', 'disentanglement', 'completeness', 'informativeness'):
        assert known[name] > 0.95
    assert known['active'] == 5
    noise = disentanglement.scores(np.random.default_rng(0).standard_normal((len(EVERY), 6)), 0)
    assert noise['mig'] < 0.01
    assert noise['disentanglement'] < 0.05
    # A table of noise is still a table: a factor may move the mean of some number a little.
    assert max(noise['factor_vae'], noise['beta_vae']) < 0.5
    assert set(known) | {'reconstruction', 'kl'} == set(MEASURES)


def few(score, name):
    """A score of hundreds of groups."""
    return functools.partial(score, **{name: (400, 200)})


def test_the_table_has_means_and_deviations():
    row = {measure: [0.25, 0.75] for measure in MEASURES}
    row |= {'reconstruction': [20.0, 30.0], 'active': [4, 6], 'seconds': 3.6, 'judged': 2.8}
    lines = report({'vae': row}).splitlines()
    assert [x.strip() for x in lines[0].split('|')][2:5] == [
        'reconstruction, nats',
        'KL, nats',
        'MIG',
    ]
    assert lines[2].startswith('| vae | 25.0 ± 7.1 | 0.5 ± 0.4 | 0.50 ± 0.35 |')
    assert lines[2].endswith('| 5.0 ± 1.4 | 6 |')
    assert len({line.count('|') for line in lines}) == 1
    assert '| 0.25 |' in report({'vae': row | {'mig': [0.25]}})


def test_the_figure_has_a_point_for_each_seed():
    pytest.importorskip('matplotlib')
    rows = {
        name: {x: [0.1 * i, 0.2] for x in MEASURES}
        for i, name in enumerate(('untrained', 'vae', 'factor_vae_1', 'factor_vae_3'))
    }
    for ax in disentanglement.plotted(rows).axes:
        drawn = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
        assert len(drawn['factor vae']) == 2  # of means
        assert {'untrained', 'vae'} <= set(drawn)
        dots = [line for line in ax.get_lines() if line.get_marker() == '.']
        assert [len(line.get_xydata()) for line in dots] == [2, 4]
        assert [text.get_text() for text in ax.texts] == ['', '1', '3']


@pytest.fixture
def command(xla_cache, tmp_path):
    """Runs the study in a process of its own: command(*args) -> CompletedProcess."""

    def start(*args):
        words = [sys.executable, disentanglement.__file__, f'--out={tmp_path}', *args]
        where = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(xla_cache)}
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=where)

    return start


@pytest.mark.slow
def test_rows_table_and_figure_are_left_and_it_goes_on(monkeypatch, small, tmp_path, capsys):
    """In this process, without judging, which has a test of its own."""
    pytest.importorskip('matplotlib')
    judged = {x: 0.5 for x in MEASURES if x not in ('reconstruction', 'kl')}
    monkeypatch.setattr(disentanglement, 'scores', lambda codes, seed: judged)

    def run(rows, **changes):
        asked = {'steps': 2, 'seeds': 2, 'image_size': 8, 'out': str(tmp_path), **changes}
        flags = types.SimpleNamespace(rows=rows, plot=True, **asked)
        monkeypatch.setattr(disentanglement, 'FLAGS', flags)
        disentanglement.main()
        return capsys.readouterr().out

    for rows, new in ((['untrained'], 1), (['untrained', 'beta_vae_2'], 1), (['beta_vae_2'], 0)):
        assert run(rows).count(': reconstruction') == new
    path = tmp_path / 'disentanglement.json'
    found = json.loads(path.read_text())['rows']
    assert list(found) == ['untrained', 'beta_vae_2']
    assert all(len(found['beta_vae_2'][measure]) == 2 for measure in MEASURES)
    assert '| beta_vae_2 |' in path.with_suffix('.md').read_text()
    assert path.with_suffix('.png').stat().st_size > 1000
    with pytest.raises(UserError, match='holds rows of other settings'):
        run(['vae'], steps=3)


@pytest.mark.slow
def test_bad_input_ends_in_one_line(command):
    for asked, told in (
        ('--rows=beta_tcva_4', "no row 'beta_tcva_4', did you mean 'beta_tcvae_4'?"),
        ('--seeds=0', '--seeds=0'),
        ('--image_size=30', 'sprites of 30 pixels: expected 64'),
        ('--out=' + disentanglement.__file__, 'expected a folder'),
    ):
        done = command('--noplot', asked)
        assert done.returncode == 2
        assert done.stderr.startswith('disentanglement.py: ')
        assert done.stderr.count('\n') == 1
        assert told in done.stderr
