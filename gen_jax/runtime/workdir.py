"""A run's folder: one config, and nobody else's files."""

import json
import os
from pathlib import Path

import jax
import ml_collections

from gen_jax.errors import UserError

# What may differ between a run and its continuation without changing what was computed so far.
FREE = (
    'steps',
    'log_every',
    'sample_every',
    'checkpoint_every',
    'keep',
    'init_from',
    'sample',
    'sampler',
    'mesh',
    'data.eval_split',
    'data.tfds_dir',
    'data.threads',
    'data.prefetch',
)


def flat(config: ml_collections.ConfigDict) -> dict:
    """{dotted field: value}, with the types that JSON keeps."""
    plain = json.loads(config.to_json_best_effort())

    def walk(part, prefix):
        for name, value in part.items():
            if isinstance(value, dict):
                yield from walk(value, f'{prefix}{name}.')
            else:
                yield f'{prefix}{name}', value

    return dict(walk(plain, ''))


def check(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raises UserError where `workdir` belongs to another config."""
    path = workdir / 'config.json'
    if not path.exists():
        return
    try:
        have = json.loads(path.read_text())
    except ValueError:
        raise UserError(f'{path} is not JSON: restore it, or choose another --workdir') from None
    want = flat(config)
    different = [
        f'{name} was {have.get(name, "not there")!r}, is {want.get(name, "not there")!r}'
        for name in dict.fromkeys([*have, *want])
        if have.get(name) != want.get(name)
        and not any(name == free or name.startswith(f'{free}.') for free in FREE)
    ]
    if different:
        more = f' (and {len(different) - 3} more)' if len(different) > 3 else ''
        raise UserError(
            f'{workdir} belongs to another config: config.{"; config.".join(different[:3])}{more}: '
            'choose another --workdir, or set these back'
        )


def claim(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Makes the folder and leaves config.json in it; raises UserError where that cannot be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            partial = workdir / '.config.json.partial'
            partial.write_text(json.dumps(flat(config), indent=1) + '\n')
            os.replace(partial, workdir / 'config.json')
    except OSError as error:
        raise UserError(
            f'cannot write to {workdir} ({error.strerror}): choose a --workdir that can be written'
        ) from None
