"""--mode=train: one loop for every method."""

import contextlib
import logging
import math
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen_jax import latent, yardsticks
from gen_jax.data import pipeline, sources
from gen_jax.errors import NotFinite, UserError
from gen_jax.evaluate import Trials, print_rows
from gen_jax.runtime import images, workdir, writer
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint
from gen_jax.runtime.process import as_first_sees
from gen_jax.runtime.program import Program
from gen_jax.sample import LatentGrids, imported_state, loaded

# Steps that may wait on the device: enough to hide the host, too few to run away from it.
AHEAD = 2


def run(config, folder: Path, stopped: int = 0) -> int:
    """Trains to `config.steps`, going on from the newest checkpoint of `folder`.

    Leaves checkpoints/, config.json, metrics.jsonl, TensorBoard events and samples/ there, and
    prints the final state's fingerprint. On SIGTERM it saves and returns.

    Args:
      config: of any method.
      folder: the workdir.
      stopped: the exit code of a run that a signal stops. Whoever starts runs anew may take 0 for
        the end of the work.

    Returns:
      The exit code: `stopped` where a signal stopped it, which after the last step leaves numbers
      and pictures to the next start; else 0.

    Raises:
      UserError: bad config, data, workdir or checkpoint; data of another number of examples than
        the checkpoint's; or a metric that is not finite.
    """
    program = Program(config, latent.method(config))
    # Else a misspelt one is told when all is trained.
    yardsticks.check_names(config.eval, config.eval.metrics)
    source = sources.open_source(config.data, config.data.split)
    batches = pipeline.train_iterator(config, source, program.rows)
    workdir.check(config, folder)
    loop = Loop(program, folder, batches)

    def first():
        if config.init_from:
            return imported_state(program, source)
        state = program.init()
        return latent.begun(program, state, source, loaded) if latent.stage_of(config) else state

    # Read before anything is written, so that a mistake in it leaves nothing behind; and not where
    # training goes on, perhaps without the file.
    imported = first() if config.init_from and not has_begun(folder) else None
    with (
        workdir.claimed(config, folder),
        contextlib.closing(Checkpoints(folder / 'checkpoints', config.keep)) as checkpoints,
    ):
        restored = checkpoints.restore(program.state_shape)
        if restored is None:
            loop.trials.require_none()
            start, state = 0, first() if imported is None else imported
        else:
            start, state, position = restored
            batches.set_state(position)
            checkpoints.set_aside_after(start)
            logging.info('going on from step %d of %s', start, folder)
        del imported
        with Interruption() as stop, contextlib.closing(loop.begin(start, checkpoints)):
            done, state, stopping = loop.steps(start, state, stop)
    print_end(program, folder, done, fingerprint(state))
    if jax.process_index() == 0:
        print_rows(loop.trials.recorded(done))
    return stopped if stopping else 0


def has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint in a workdir, whole or not."""
    return as_first_sees(any(x.name.isdigit() for x in (folder / 'checkpoints').glob('*')))


class Loop:
    """The steps, and what happens between them: numbers, pictures, checkpoints."""

    def __init__(self, program: Program, folder: Path, batches):
        self.program, self.folder, self.batches = program, folder, batches
        self.latent_grids = LatentGrids(program)
        self.trials = Trials(program, folder)
        self.pending = []  # metrics of the steps since the last line, still on the device
        self.faults = set()  # what `method.advise` found at the last line
        self.said = set()  # what of it was said

    def begin(self, start: int, checkpoints: Checkpoints) -> writer.Writers:
        """Opens the writers; returns them for the caller to close."""
        config = self.program.config
        self.checkpoints, self.writers = checkpoints, writer.Writers([])
        if jax.process_index() == 0:
            progress = writer.Progress(start, config.steps, config.batch_size)
            lines = writer.JsonlWriter(self.folder / 'metrics.jsonl', start)
            events = writer.tensorboard_writer(self.folder) if config.tensorboard else []
            self.writers = writer.Writers([progress, lines, *events])
        self.since = time.monotonic()
        return self.writers

    def steps(self, start: int, state, stop: 'Interruption'):
        """Steps until the end or an interruption: the steps done, the state, and which it was."""
        config = self.program.config
        # What the last run was stopped before.
        if start and self.draws(start):
            self.draw_if_missing(start, state)
        if not as_first_sees(bool(self.trials.recorded(start))):
            self.evaluate(start, state)
        done, stopping = start, False
        while done < config.steps and not stopping:
            state = self.step(done, state)
            done += 1
            stopping = stop.requested(done)
            last = stopping or done == config.steps
            if last or done % config.log_every == 0:
                self.log(done)
            # Before what may take long or go wrong: pictures, evaluations.
            if last or done % config.checkpoint_every == 0 or self.trials.due(done):
                self.log(done)  # a state whose metrics are not finite is never saved
                self.checkpoints.save(done, state, self.batches.get_state())
            if not stopping and self.draws(done):
                self.draw(done, state)
            if not stopping:
                self.evaluate(done, state)
        if not stopping and config.sample_every:
            self.draw_if_missing(done, state)
        return done, state, stopping

    def step(self, step: int, state):
        """One step; it is under way, not done, when this returns."""
        batch = self.program.to_global(next(self.batches))
        state, metrics = self.program.train_step(step, state, batch)
        del batch
        self.pending.append(metrics)
        jax.block_until_ready(self.pending[-AHEAD:][0])
        self.writers.count_step()
        return state

    def log(self, step: int) -> None:
        """Writes the mean of each metric over the steps since the last line."""
        if not self.pending:
            return
        rows = jax.device_get(self.pending)
        for at, row in enumerate(rows, start=step - len(rows) + 1):
            for name, value in row.items():
                if not math.isfinite(value):
                    raise UserError(
                        f'{name} is {value} at step {at}: the checkpoints before it are kept in '
                        f'{self.folder / "checkpoints"}; lower config.optimizer.learning_rate or '
                        'raise its warmup, in another --workdir'
                    )
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        now = time.monotonic()
        means['steps_per_second'] = len(rows) / (now - self.since)
        self.pending, self.since = [], now
        self.writers.write_scalars(step, means)
        self.writers.flush()
        self.warn(step, means)

    def warn(self, step: int, means: dict) -> None:
        """Says once what goes wrong at two lines in a row: the first images are all alike."""
        if self.program.method.advise is None:
            return
        found = self.program.method.advise(means)
        lasting = found.keys() & self.faults
        for fault in lasting - self.said:
            logging.warning('step %d: %s: %s', step, fault, found[fault])
        self.faults, self.said = set(found), lasting

    def evaluate(self, step: int, state) -> None:
        """The numbers of `config.eval`, where they are due."""
        if self.trials.due(step):
            start, rows = time.monotonic(), {}
            self.checkpoints.wait()  # numbers whose checkpoint is gone end the next start
            with telling_what_is_not_finite(step):
                rows = self.trials(step, state, self.batches.get_state())
            if rows and jax.process_index() == 0:
                # Before it is logged, else a run that is killed in between logs it again.
                self.trials.record(step, rows)
            if rows:
                # Training may have numbers of the same names.
                numbers = {f'eval/{name}': row['value'] for name, row in rows.items()}
                self.writers.write_scalars(step, numbers)
                self.writers.flush()
            self.since += time.monotonic() - start  # judging is no part of a step's time

    def draws(self, step: int) -> bool:
        """Whether the pictures of a step are wanted."""
        every = self.program.config.sample_every
        return bool(every) and step % every == 0

    def draw(self, step: int, state) -> None:
        """Writes the sample grid, and what else this method can show."""
        program = self.program
        jax.block_until_ready(state)
        start = time.monotonic()
        settled, pictures = program.settled(state), {}
        if program.method.sample_step is not None:
            indices = np.arange(program.config.sample.grid)
            pictures['step'], finite = program.sampled(settled, indices)
            with telling_what_is_not_finite(step):
                program.require_finite(finite)
        with telling_what_is_not_finite(step):
            pictures |= self.latent_grids(settled)
        if jax.process_index() == 0:
            for name, made in pictures.items():
                page = images.grid(made, None if name == 'step' else 8)
                images.save_png(self.folder / 'samples' / f'{name}_{step:08d}.png', page)
                self.writers.write_images(step, {name: page[None]})
        self.since += time.monotonic() - start  # drawing is no part of a step's time

    def draw_if_missing(self, step: int, state) -> None:
        """The pictures of a step; also for a run that was stopped after it, before drawing."""
        # The one that is drawn first.
        name = 'reconstruction' if self.program.method.sample_step is None else 'step'
        drawn = (self.folder / 'samples' / f'{name}_{step:08d}.png').exists()
        if not as_first_sees(drawn):
            self.draw(step, state)


@contextlib.contextmanager
def telling_what_is_not_finite(step: int):
    """A warning in place of NotFinite: training goes on without a picture or a number."""
    try:
        yield
    except NotFinite as error:
        logging.warning('step %d: %s', step, error)


class Interruption:
    """SIGTERM asks for a stop after the step at hand, on every process at once.

    So does SIGINT where there is one process. A second signal ends the process there and then; what
    was saved stays.
    """

    def __enter__(self) -> 'Interruption':
        self._signal = threading.Event()
        # With several processes JAX's own notifier catches SIGTERM and agrees on a step.
        self._old = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        while self._old:
            signal.signal(*self._old.popitem())

    def _handle(self, *_) -> None:
        self._signal.set()
        self.__exit__()

    def requested(self, step: int) -> bool:
        """Whether to save and stop now."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal.is_set()


def print_end(program: Program, folder: Path, done: int, digest: str) -> None:
    """The last lines: what was made, where it lies, what to run next."""
    if jax.process_index():
        return
    config, method = program.config, program.method
    print(f'step {done}, state fingerprint {digest}')
    if done < config.steps:
        print(f'stopped and saved before step {config.steps}; the same command goes on from here')
        return
    if (folder / 'samples').exists():
        print(f'pictures:  {folder / "samples"}')
    print(f'log:       {folder / "metrics.jsonl"}')
    if method.sample_step is not None:
        print(f'next:      add --mode=sample to the command for {config.sample.n} images')
    print(f'numbers:   add --mode=evaluate for {", ".join(config.eval.metrics)}')
