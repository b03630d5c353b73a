"""The study of a table's VAE."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tabular
from tabular import Code, Table

from gen_jax.errors import UserError

ROOT = Path(__file__).parents[1]
MIXED = 'height,colour,count\n1.5,red,1\n2.5,blue,2\n-3,red,1\n7.25,green,2\n'


def mixed(tmp_path, text=MIXED):
    path = tmp_path / 'rows.csv'
    path.write_text(text)
    return path


def test_a_csv_has_numbers_and_categories(tmp_path):
    table = tabular.read(mixed(tmp_path), few=3)
    assert table.names == ['height', 'colour', 'count']
    assert table.kinds == [None, ('blue', 'green', 'red'), ('1', '2')]
    np.testing.assert_array_equal(table.values[:, 0], [1.5, 2.5, -3, 7.25])
    np.testing.assert_array_equal(table.values[:, 1], [2, 0, 2, 1])
    np.testing.assert_array_equal(table.values[:, 2], [0, 1, 0, 1])
    assert tabular.target_of(table, '') == 2
    assert tabular.target_of(table, 'colour') == 1
    tabular.write(tmp_path / 'again.csv', table, table.values)
    again = tabular.read(tmp_path / 'again.csv', few=3)
    np.testing.assert_array_equal(again.values, table.values)


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('', 'a CSV with a header'),
        ('a,b\n', 'rows below the header'),
        ('a,b\n1,2\n3\n', 'row 2 has 1 cells, the header 2'),
        ('a,b,a\n1,2,3\n4,5,6\n', "several columns are called 'a'"),
        ('a,b\n1,2\n1,3\n', "column 'a' is '1' in every row"),
        ('a,b\n1,2\n2,\n3,4\n', "row 2 of column 'b' is '', most are numbers"),
        ('a,b\n1,2\n2,nan\n3,4\n', "row 2 of column 'b' is 'nan', most are numbers"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        tabular.read(mixed(tmp_path, text), few=3)


def test_the_mark_that_spreadsheets_put_first_is_no_part_of_a_name(tmp_path):
    assert tabular.read(mixed(tmp_path, '\ufeffa,b\n1,2\n3,4\n'), few=1).names == ['a', 'b']


def test_columns_that_are_not_there_are_told(tmp_path):
    with pytest.raises(UserError, match='expected a CSV'):
        tabular.read(tmp_path / 'none.csv', few=3)
    table = tabular.read(mixed(tmp_path), few=3)
    with pytest.raises(UserError, match="did you mean 'colour'"):
        tabular.target_of(table, 'color')
    with pytest.raises(UserError, match='a column of categories'):
        tabular.target_of(Table(['a'], np.zeros((3, 1)), [None]), '')


def test_rows_return_from_images():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.exponential(size=200), rng.integers(3, size=200)]).astype(float)
    code = Code(Table(['a', 'b'], values, [None, ('x', 'y', 'z')]), values)
    images = code.images(values)
    assert (images.shape, images.dtype) == ((200, 1, 1, 4), np.float32)
    assert code.columns == (1, 3)
    assert np.abs(images).max() <= 1
    np.testing.assert_allclose(code.values(images), values, atol=1e-2)
    # Normal scores, but for the ends.
    scores = np.sort(images[:, 0, 0, 0])[1:-1] * tabular.FAR
    want = scipy.stats.norm.ppf(np.arange(1, 199) / 199)
    np.testing.assert_allclose(scores, want, atol=1e-3)


def test_measures_are_scipys_and_numpys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(0.3, 1, size=(70, 3))
    want = scipy.stats.ks_2samp(a[:, 0], b[:, 0]).statistic
    assert tabular.kolmogorov_smirnov(a[:, 0], b[:, 0]) == pytest.approx(want)
    np.testing.assert_allclose(tabular.correlations(a), np.corrcoef(a.T), atol=1e-12)
    assert (tabular.correlations(np.ones((5, 2))) == 0).all()


def test_rows_are_measured_against_others():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=400)
    rows = np.column_stack([kind + 0.1 * rng.normal(size=400), kind]).astype(float)
    kinds = [None, ('no', 'yes')]
    same = tabular.measured(kinds, rows, rows, 1)
    assert same == {'numbers': 0, 'categories': 0, 'correlations': 0, 'accuracy': 1}
    alone = tabular.measured(kinds, rng.permuted(rows, axis=0), rows, 1)
    assert (alone['numbers'], alone['categories']) == (0, 0)
    assert alone['correlations'] > 0.8
    assert alone['accuracy'] < 0.8
    one = np.column_stack([rows[:, 0], np.zeros(400)])  # all of one kind
    found = tabular.measured(kinds, one, rows, 1)
    assert found['categories'] == pytest.approx(kind.mean())
    assert found['accuracy'] == pytest.approx(1 - kind.mean())


@pytest.mark.parametrize('share', [0.02, 0.1, 0.373])
def test_a_copula_keeps_columns_and_what_binds_them(share):
    rng = np.random.default_rng(0)
    kind = rng.choice([0, 1, 2], 20_000, p=[share, 0.6 - share, 0.4])
    rows = np.column_stack([rng.exponential(size=20_000) + 3 * (kind == 2), kind, kind == 0])
    drawn = tabular.gaussian(rows, rng)
    assert {*drawn[:, 1]} == {0, 1, 2}
    for value in (0, 1, 2):
        found, there = (np.mean(x[:, 1] == value) for x in (drawn, rows))
        assert found == pytest.approx(there, abs=4 * np.sqrt(0.25 / 20_000))
    assert scipy.stats.ks_2samp(drawn[:, 0], rows[:, 0]).pvalue > 1e-3
    assert scipy.stats.spearmanr(drawn[:, 0], drawn[:, 1])[0] > 0.3
    assert np.corrcoef(drawn[:, 1:].T)[0, 1] < 0
    normal = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], 20_000)
    again = tabular.gaussian(np.exp(normal), rng)
    assert np.corrcoef(np.log(again).T)[0, 1] == pytest.approx(0.8, abs=0.02)


def test_training_that_fails_is_told(monkeypatch):
    """At a rate without end; nothing is drawn of it."""
    configured = tabular.configured

    def fast(*args):
        config = configured(*args)
        config.optimizer.learning_rate, config.optimizer.clip = 1e30, 0.0
        return config

    monkeypatch.setattr(tabular, 'configured', fast)
    rows = np.random.default_rng(0).normal(size=(20, 2))
    code = Code(Table(['a', 'b'], rows, [None, None]), rows)
    with pytest.raises(FloatingPointError, match='loss is nan after 3 steps'):
        tabular.learned(code, rows, rows, steps=3, latent_dim=2)


@pytest.mark.slow
def test_the_command_draws_rows_like_those_it_learned(tmp_path):
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=500)
    lines = [f'{8 * k + rng.normal():.4f},{"ab"[k]}' for k in kind]
    path = mixed(tmp_path, '\n'.join(['x,kind', *lines]))
    command = [sys.executable, str(ROOT / 'experiments/tabular.py'), f'--table={path}']
    command += ['--steps=600', '--latent_dim=2', f'--out={tmp_path}/out']
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'out/tabular.json').read_text())['rows']
    assert found['VAE']['numbers'] < 0.25
    assert found['VAE']['correlations'] < 0.6 * found['columns alone']['correlations']
    assert '| VAE |' in done.stdout
    drawn = tabular.read(tmp_path / 'out/synthetic.csv', few=10)
    assert drawn.values.shape == (400, 2)
    assert drawn.kinds == [None, ('a', 'b')]
    done = subprocess.run(
        [*command, '--target=kin'], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 2
    assert "did you mean 'kind'" in done.stderr
