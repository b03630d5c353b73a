"""What the scripts of experiments/ share."""

import json
import math
import sys

import pytest
import samplers
import scripts

from gen_jax.errors import UserError


def test_rows_are_made_once_and_belong_to_their_settings(tmp_path):
    path, made = tmp_path / 'rows.json', []

    def make():
        made.append(1)
        return {'value': len(made)}

    for _ in range(2):
        rows = scripts.Rows(path, {'n': 8})
        assert rows('a', {'widths': (4, 4)}, make) == {'value': 1}
    assert rows('b', {}, make) == {'value': 2}
    assert scripts.Rows(path, {'n': 8})('a', {'widths': (4, 5)}, make) == {'value': 3}
    rows = scripts.Rows(path, {'n': 8})
    assert not rows.has('a', {'widths': (4, 4)})
    assert rows.of({'b': {}, 'a': {'widths': (4, 4)}, 'c': {}}) == {'b': {'value': 2}}
    with pytest.raises(UserError, match='n was 8, is 9'):
        scripts.Rows(path, {'n': 9})


def test_a_row_reads_the_same_when_it_is_made_and_later(tmp_path):
    path, row = tmp_path / 'rows.json', {'error': math.inf, 'points': (1, math.nan)}
    made = scripts.Rows(path, {})('a', {}, lambda: row)
    assert made == scripts.Rows(path, {}).found['a'] == {'error': None, 'points': [1, None]}


def test_rows_that_do_not_say_their_settings_are_made_again(tmp_path):
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps({'asked': {}, 'rows': {'a': {'value': 1}}}))
    rows = scripts.Rows(path, {})
    assert rows.found == {}
    assert rows('a', {}, lambda: {'value': 2}) == {'value': 2}


@pytest.mark.parametrize('holds', [{'a': 1}, {'asked': {}, 'rows': []}])
def test_a_file_of_something_else_is_told(tmp_path, holds):
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps(holds))
    with pytest.raises(UserError, match=r'rows\.json holds no rows of a study: move it away'):
        scripts.Rows(path, {})


def test_where_results_cannot_lie_is_told(tmp_path):
    (tmp_path / 'file').touch()
    for path in ('file', 'file/inside'):
        with pytest.raises(UserError, match='expected a folder'):
            scripts.folder(str(tmp_path / path))
    for path in ('.', 'none/file'):
        with pytest.raises(UserError, match='expected a file in a folder that is there'):
            scripts.file(str(tmp_path / path))
    assert scripts.file(str(tmp_path / 'file')) == tmp_path / 'file'


def test_unknown_rows_are_named():
    assert scripts.chosen(('a', 'b', 'c'), ['c', 'a']) == ['a', 'c']
    assert scripts.chosen(('a', 'b'), []) == ['a', 'b']
    with pytest.raises(UserError, match="no row 'ddmi', did you mean 'ddim'"):
        scripts.chosen(samplers.SETTINGS, ['ddmi'])


def test_a_missing_matplotlib_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(UserError, match='--noplot'):
        scripts.figure(2)
