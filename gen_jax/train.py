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

from gen_jax.config import create
from gen_jax.data import pipeline, sources
from gen_jax.errors import UserError
from gen_jax.runtime import images, sharding, workdir, writer
from gen_jax.runtime.checkpoint import Checkpoints, fingerprint
from gen_jax.runtime.program import Program
from gen_jax.sample import initial_state, latent_grids

# Steps that may wait on the device: enough to hide the host, too few to run away from it.
AHEAD = 2


def run(config, folder: Path) -> None:
    """Trains to `config.steps`, going on from the newest checkpoint of `folder`.

    Leaves checkpoints/, config.json, metrics.jsonl, TensorBoard events and samples/ there, and
    prints the final state's fingerprint. On SIGTERM it saves and returns.

    Raises:
      UserError: bad config, data, workdir or checkpoint; or a metric that is not finite.
    """
    program = Program(config, create(config), pipeline.batch_spec(config))
    source = sources.open_source(config.data, config.data.split)
    batches = pipeline.train_iterator(config, source, jax.process_index(), jax.process_count())
    workdir.check(config, folder)
    workdir.claim(config, folder)
    with contextlib.closing(Checkpoints(folder / 'checkpoints', config.keep)) as checkpoints:
        restored = checkpoints.restore(program.state_shape)
        if restored is None:
            start, state = 0, initial_state(program)
        else:
            start, state, position = restored
            checkpoints.set_aside_after(start)
            batches.set_state(position)
            logging.info('going on from step %d of %s', start, folder)
        loop = Loop(program, folder, checkpoints, batches, start)
        with contextlib.closing(loop.writers), Interruption() as stop:
            done, state = loop.steps(state, stop)
    print_end(config, folder, done, fingerprint(state))


class Loop:
    """The loop's surroundings: what happens besides `train_step`."""

    def __init__(self, program: Program, folder: Path, checkpoints, batches, start: int):
        self.program, self.folder = program, folder
        self.checkpoints, self.batches, self.start = checkpoints, batches, start
        self.pending = []  # metrics of the steps since the last line, still on the device
        self.since = time.monotonic()
        config = program.config
        self.progress = writer.Progress(start, config.steps, config.batch_size)
        self.writers = writer.Writers([])
        if jax.process_index() == 0:
            lines = writer.JsonlWriter(folder / 'metrics.jsonl', start)
            events = writer.tensorboard_writer(folder)
            self.writers = writer.Writers([self.progress, lines, *events])

    def steps(self, state, stop: 'Interruption'):
        """Steps until the end or an interruption; returns the steps done and the state."""
        config, program = self.program.config, self.program
        for step in range(self.start, config.steps):
            batch = sharding.to_global(next(self.batches), program.batch_sharding)
            state, metrics = program.train_step(step, state, batch)
            del batch
            self.pending.append(metrics)
            jax.block_until_ready(self.pending[-AHEAD:][0])
            self.progress.step()
            done = step + 1
            stopping = stop.requested(done)
            last = stopping or done == config.steps
            if last or done % config.log_every == 0:
                self.log(done)
            due = config.sample_every and (done % config.sample_every == 0 or done == config.steps)
            if due and not stopping:
                self.draw(done, state)
            if last or done % config.checkpoint_every == 0:
                self.log(done)  # a state with a bad metric is never saved
                self.checkpoints.save(done, state, self.batches.get_state())
            if last:
                return done, state
        return config.steps, state

    def log(self, step: int) -> None:
        """Writes the mean of each metric over the steps since the last line."""
        if not self.pending:
            return
        rows = jax.device_get(self.pending)
        first = step - len(rows) + 1
        for i, row in enumerate(rows):
            for name, value in row.items():
                if not math.isfinite(value):
                    raise UserError(
                        f'{name} is {value} at step {first + i}: the checkpoints before it are '
                        f'kept in {self.folder / "checkpoints"}; lower '
                        'config.optimizer.learning_rate or raise its warmup, in another --workdir'
                    )
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        now = time.monotonic()
        means['steps_per_second'] = len(rows) / (now - self.since)
        self.pending, self.since = [], now
        self.writers.write_scalars(step, means)
        self.writers.flush()

    def draw(self, step: int, state) -> None:
        """Writes the sample grid, and what else this method can show."""
        program = self.program
        if program.method.sample_step is None:
            return
        pictures = {'step': program.sample(state, np.arange(program.config.sample.grid))}
        pictures |= latent_grids(program, state)
        if jax.process_index() == 0:
            for name, made in pictures.items():
                columns = None if name == 'step' else 8
                page = images.grid(made, columns)
                images.save_png(self.folder / 'samples' / f'{name}_{step:08d}.png', page)
                self.writers.write_images(step, {name: page[None]})
        # Drawing is no part of a step's time.
        self.since = time.monotonic()


class Interruption:
    """SIGTERM and SIGINT ask for a stop after the step at hand, on every process at once."""

    def __enter__(self) -> 'Interruption':
        self._signal = threading.Event()
        # With several processes JAX's own notifier catches SIGTERM and agrees on a step.
        self._old = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, lambda *_: self._signal.set())
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save and stop now."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal.is_set()


def print_end(config, folder: Path, done: int, digest: str) -> None:
    """The last lines: what was made, where it lies, what to run next."""
    if jax.process_index():
        return
    print(f'step {done}, state fingerprint {digest}')
    if done < config.steps:
        print(f'stopped and saved before step {config.steps}; the same command goes on from here')
        return
    print(f'pictures:  {folder / "samples"}')
    print(f'numbers:   {folder / "metrics.jsonl"}')
    print(f'next:      the same command with --mode=sample, or --mode=evaluate --workdir={folder}')
