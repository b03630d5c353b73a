"""--mode=evaluate: every number that `config.eval.metrics` names, with where it comes from."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax import latent
from gen_jax.config import nearest
from gen_jax.errors import UserError
from gen_jax.judge import Judge
from gen_jax.runtime import workdir
from gen_jax.runtime.checkpoint import Checkpoints
from gen_jax.runtime.process import as_first_sees
from gen_jax.runtime.program import Program
from gen_jax.sample import claimed, load, stored


def run(config, folder: Path, step: str | None = None) -> None:
    """Writes metrics.json: {name: value, spread, n, provenance}.

    Other numbers of the same state that are there already stay.
    Samples are drawn into samples/ of `folder`, as --mode=sample draws them; a run that was stopped
    goes on from those that are there.

    Raises:
      UserError: a metric that the method, the data or the network cannot give, missing weights or
        images, or no checkpoint.
    """
    program = Program(config, latent.method(config, guided=True))
    workdir.check(config, folder, after_training=True)
    judge = Judge(program, config.eval.metrics, config.eval.n)
    step, state = load(program, folder, step)
    images = iter(())
    out = claimed(config, folder, step, state) if judge.of_samples else None
    state = program.settled(state)
    if judge.of_samples:
        images = stored(program, state, out, config.eval.n)
    rows = judge(step, state, images)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(folder / 'metrics.json', kept(folder / 'metrics.json', rows) | rows)
        print_rows(rows)


def kept(path: Path, rows: dict[str, dict]) -> dict[str, dict]:
    """The numbers of a metrics.json that tell of the state that `rows` tell of."""

    def state(row):
        return [row.get(name) for name in ('step', 'state', 'seed', 'ema', 'init_from', 'guide')]

    told = state(next(iter(rows.values())))
    old = workdir.read_json(path) if path.exists() else {}
    return {name: row for name, row in old.items() if state(row) == told}


# What two values must share to be compared.
COMPARABLE = ('n', 'reference', 'data', 'settings', 'weights_sha256', 'heads_sha256', 'resize')
COMPARABLE += ('distance', 'sampler', 'knobs', 'label', 'standing')


class Trials:
    """`config.eval.every`: numbers while training goes on, and the best checkpoint by one of them.

    Each leaves evaluations/step_*.json in the workdir; the best state so far lies in best/.
    """

    def __init__(self, program: Program, folder: Path):
        """Opens what the numbers need, so that what is missing is told before the first step."""
        self._program, self._folder, options = program, folder, program.config.eval
        self._judge = (
            Judge(program, options.every_metrics, options.every_n, 'every_metrics')
            if options.every
            else None
        )
        self._sign, self._best = 0, ''
        if options.best:
            which, self._best = options.best.split()
            self._sign = 1 if which == 'lowest' else -1
            if self._best not in self._judge.given():
                raise UserError(
                    f'config.eval.best={options.best!r}: eval.every_metrics does not give it'
                    f'{nearest(self._best, self._judge.given())}'
                )

    def require_none(self) -> None:
        """For a training that begins: numbers and a best state of another would pass for its own.

        Raises:
          UserError: there are some, of a training whose checkpoints were removed.
        """
        for place in (self._path(0).parent, self._folder / 'best.json'):
            if place.exists():
                raise UserError(
                    f'{place} is of a training whose checkpoints are gone: move evaluations/, '
                    'best/ and best.json away, or start anew with another --workdir'
                )

    def due(self, step: int) -> bool:
        """Whether the numbers of a step are wanted."""
        config = self._program.config
        every = config.eval.every
        return bool(every and step) and (step % every == 0 or step == config.steps)

    def __call__(self, step: int, state, data: dict) -> dict[str, dict]:
        """The numbers of a state; saves it, with the position in the data, where it is the best."""
        settled = self._program.settled(state)
        rows = self._judge(step, settled, self._samples(settled))
        if self._best:
            self._keep_best(step, state, data, rows[self._best])
        return rows

    def record(self, step: int, rows: dict[str, dict]) -> None:
        """Leaves the numbers of a step on disk, beside others of the same state."""
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, kept(path, rows) | rows)

    def recorded(self, step: int) -> dict[str, dict]:
        """What was found at a step, {} where not all was that is asked for, or nothing is."""
        if not self._judge or not self._path(step).exists():
            return {}
        rows = workdir.read_json(self._path(step))
        return rows if rows.keys() >= {*self._judge.given()} else {}

    def _path(self, step: int) -> Path:
        return self._folder / 'evaluations' / f'step_{step:08d}.json'

    def _samples(self, settled) -> Iterator[np.ndarray]:
        n, size = self._program.config.eval.every_n, self._program.config.sample.batch_size
        for start in range(0, n, size):
            yield self._program.sample(settled, np.arange(start, min(start + size, n)))

    def _keep_best(self, step: int, state, data: dict, row: dict) -> None:
        path, folder = self._folder / 'best.json', self._folder / 'best'
        have = as_first_sees(workdir.read_json(path) if path.exists() else {})
        value = row['value']
        asked = {'asked': self._program.config.eval.best}
        asked |= {name: row[name] for name in COMPARABLE if name in row}
        same = bool(have) and all(have.get(name) == asked[name] for name in asked)
        # A run that goes on from before its best finds it again, and nothing better on the way.
        if not math.isfinite(value) or (same and self._sign * (value - have['value']) >= 0):
            return
        if jax.process_index() == 0 and (not same or have['step'] > step):
            # Orbax would keep the newest step, whatever it is worth.
            path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        multihost_utils.sync_global_devices('best made room for')
        with contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints:
            checkpoints.save(step, state, data)
        if jax.process_index() == 0:
            workdir.write_json(path, {**asked, 'value': value, 'step': step})


def print_rows(rows: dict[str, dict]) -> None:
    """A line for each number."""
    for name, row in rows.items():
        spread = row.get('standard_error', row.get('standard_deviation'))
        beside = f' +- {spread:.2g}' if spread is not None else ''
        real = next(((row[k], row[f'{k}_n']) for k in ('floor', 'real') if k in row), None)
        told = f'; real images: {_number(real[0])} ({real[1]})' if real else ''
        print(f'{name} {_number(row["value"])}{beside} ({row["n"]} images{told})')


def _number(value: float | None) -> str:
    return 'not finite' if value is None else f'{value:.6g}'  # None: as it comes from JSON
