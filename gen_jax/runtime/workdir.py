"""A run's folder: one config, and nobody else's files."""

import contextlib
import fcntl
import functools
import json
import logging
import math
import os
import subprocess
from pathlib import Path

import jax
import ml_collections

from gen_jax import __version__
from gen_jax.config import defaults_of
from gen_jax.errors import UserError

# What may differ between a run and its continuation without changing what was computed so far.
FREE = (
    'steps',
    'log_every',
    'sample_every',
    'checkpoint_every',
    'keep',
    'tensorboard',
    'sample',
    'sampler',
    'eval',
    'edit',
    'explore',
    'guide',
    'latent.workdir',  # the first stage is in the state once it has begun
    'likelihood',
    'vae.weighed',  # of evaluations alone
    'mesh',
    'data.eval_split',
    'data.tfds_dir',
    'data.threads',
    'data.prefetch',
)
# What may differ, besides, once training is over.
FREE_AFTER_TRAINING = (
    *FREE,
    'seed',
    'batch_size',
    'accumulate',
    'data.split',
    'data.flip',
    'data.crop',
)


def usual(config_file: str) -> str:
    """Where a run lives if nobody says so: of 'configs/NAME.py:VARIANT', 'runs/NAME_VARIANT'."""
    file, _, variant = config_file.partition(':')
    return f'runs/{Path(file).stem}{variant and "_"}{variant}'


def plain(config) -> dict:
    """A config, or a part of it, with the types that JSON keeps."""
    return json.loads(ml_collections.ConfigDict(config).to_json_best_effort())


def flat(config: ml_collections.ConfigDict) -> dict:
    """{dotted field: value}, with the types that JSON keeps."""

    def walk(part, prefix):
        for name, value in part.items():
            if isinstance(value, dict):
                yield from walk(value, f'{prefix}{name}.')
            else:
                yield f'{prefix}{name}', value

    return dict(walk(plain(config), ''))


@functools.cache
def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout of its own."""
    root = Path(__file__).resolve().parents[2]
    # Installed inside somebody else's repository, its commit would say nothing of this code.
    if Path(_git(root, 'rev-parse', '--show-toplevel') or '/').resolve() != root:
        return __version__
    commit = _git(root, 'describe', '--always', '--dirty')
    return f'{__version__}+{commit}' if commit else __version__


def _git(folder: Path, *command: str) -> str:
    """What git answers; '' where it cannot."""
    try:
        git = ['git', '-C', str(folder), *command]
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return found.stdout.strip() if found.returncode == 0 else ''


def write_json(path: Path, value) -> None:
    """Writes in one stroke: a killed run leaves no half file. NaN and infinity become null."""
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + '\n')
    os.replace(partial, path)


def finite(value):
    """A value for JSON, which has no NaN and no infinity: None in their place."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """What `write_json` left of a dict; UserError where the file holds none."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f'{path} is no JSON object: restore it, or move its folder away')
    return found


def check(config: ml_collections.ConfigDict, workdir: Path, after_training: bool = False) -> None:
    """Raises UserError where `workdir` belongs to another config, or cannot be.

    Fields that a run's config.json lacks came after it: it counts as having their defaults.
    """
    path = workdir / 'config.json'
    with _writable(workdir):
        if not path.exists():
            return
    free = FREE_AFTER_TRAINING if after_training else FREE
    if after_training and not config.init_from:  # what training began with is in the state
        free = (*free, 'init_from')
    have, want = flat(defaults_of(config)) | read_json(path), flat(config)
    different = [
        f'{name} was {have.get(name, "not there")!r}, is {want.get(name, "not there")!r}'
        for name in dict.fromkeys([*have, *want])
        if have.get(name) != want.get(name)
        and not any(name == field or name.startswith(f'{field}.') for field in free)
    ]
    if different:
        more = f' (and {len(different) - 3} more)' if len(different) > 3 else ''
        raise UserError(
            f'{workdir} belongs to another config: config.{"; config.".join(different[:3])}{more}: '
            'choose another --workdir, or set these back'
        )


def make(folder: Path) -> None:
    """Makes a folder; raises UserError where that cannot be."""
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)


def claim(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes the folder and leaves config.json in it; raises UserError where that cannot be."""
    make(workdir)
    if jax.process_index() == 0:
        with _writable(workdir):
            write_json(workdir / 'config.json', flat(config))


@contextlib.contextmanager
def claimed(config: ml_collections.ConfigDict, workdir: Path):
    """`claim`, until the block ends; raises UserError where another run is writing there.

    Where a disk knows no locks nobody is kept out.
    """
    make(workdir)
    with contextlib.ExitStack() as until:
        if jax.process_index() == 0:
            folder = os.open(workdir, os.O_RDONLY)
            until.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f'another run is writing to {workdir}: wait for its end, stop it, or choose '
                    'another --workdir'
                ) from None
            except OSError:
                logging.warning('%s cannot be locked: start no second run there', workdir)
        claim(config, workdir)
        yield


@contextlib.contextmanager
def _writable(folder: Path):
    try:
        yield
    except OSError as error:
        raise UserError(
            f'cannot write to {folder} ({error.strerror}): choose a --workdir that can be written'
        ) from None
