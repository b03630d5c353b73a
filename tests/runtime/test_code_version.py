import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gen_jax
from gen_jax import __version__

PACKAGE = Path(gen_jax.__file__).parent
ASK = 'from gen_jax.runtime.workdir import code_version; print(code_version())'


def asked(folder):
    """What a copy of the package in that folder says."""
    argv = [sys.executable, '-c', ASK]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True).stdout


def git(folder, *command):
    who = ['-c', 'user.name=x', '-c', 'user.email=x@example.org']
    argv = ['git', '-C', str(folder), *who, *command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_only_a_checkout_of_its_own_counts(tmp_path):
    ignore = shutil.ignore_patterns('__pycache__', '*.safetensors')
    shutil.copytree(PACKAGE, tmp_path / 'inner/gen_jax', ignore=ignore)
    git(tmp_path, 'init')
    git(tmp_path, 'commit', '--allow-empty', '-m', 'of somebody else')
    assert asked(tmp_path / 'inner').strip() == __version__
    git(tmp_path / 'inner', 'init')
    assert asked(tmp_path / 'inner').strip() == __version__  # no commit yet
    git(tmp_path / 'inner', 'add', 'gen_jax/errors.py')
    git(tmp_path / 'inner', 'commit', '-m', 'ours')
    commit = git(tmp_path / 'inner', 'rev-parse', '--short', 'HEAD')
    assert asked(tmp_path / 'inner').strip() == f'{__version__}+{commit}'
    (tmp_path / 'inner/gen_jax/errors.py').write_text('# changed\nUserError = None\n')
    assert asked(tmp_path / 'inner').strip() == f'{__version__}+{commit}-dirty'
