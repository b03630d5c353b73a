"""Where a run's numbers go: the terminal, metrics.jsonl, TensorBoard.

Writers speak the interface of `clu.metric_writers`. clu's own need TensorFlow, so they are taken
where it is installed; ours do not.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gen_jax.runtime.workdir import finite


class JsonlWriter:
    """One JSON object a line, appended: {"step": 100, "loss": 0.1, ...}."""

    def __init__(self, path: Path, resume_step: int):
        """Opens `path`; lines after `resume_step`, which the run will write again, are dropped."""
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _up_to(line, resume_step)]
            partial = path.with_suffix('.partial')
            partial.write_text(''.join(f'{line}\n' for line in kept))
            os.replace(partial, path)
        # Line by line: importing TensorFlow for the next writer takes seconds.
        self._file = path.open('a', buffering=1)

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Appends a line. NaN and infinity become null."""
        line = {'step': step, **{name: float(value) for name, value in scalars.items()}}
        self._file.write(json.dumps(finite(line), allow_nan=False) + '\n')

    def write_images(self, step: int, images: dict) -> None:
        """Pictures are PNG files already."""

    def flush(self) -> None:
        """Lines are flushed as they are written."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _up_to(line: str, step: int) -> bool:
    try:
        return json.loads(line)['step'] <= step
    except (ValueError, KeyError, TypeError):
        return False  # the line a killed run left half-written


class Progress:
    """A bar with step, loss, images/s and time left; plain lines where there is no terminal."""

    def __init__(self, start: int, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start, unit='step', dynamic_ncols=True)

    def count_step(self) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update()

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Shows the numbers; `steps_per_second`, if any, becomes images/s and the time left."""
        shown = dict(scalars)
        rate = shown.pop('steps_per_second', None)
        shown = '  '.join(f'{name} {value:.4g}' for name, value in shown.items())
        if rate is not None:
            speed = f'{rate * self._batch_size:.0f} images/s'
            left = math.ceil((self._steps - step) / rate)
            shown = f'{shown}  {speed}  left {left // 60}:{left % 60:02d}'
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        else:
            print(f'step {step}/{self._steps}  {shown}', flush=True)

    def write_images(self, step: int, images: dict) -> None:
        """A terminal shows none."""

    def flush(self) -> None:
        """Lines are flushed as they are printed."""

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: list):
        self._writers = writers

    def count_step(self) -> None:
        """Tells those that show progress."""
        for writer in self._writers:
            if isinstance(writer, Progress):
                writer.count_step()

    def write_scalars(self, step: int, scalars: dict) -> None:
        """{name: number} at a step."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """{name: uint8 [n, h, w, c]} at a step."""
        for writer in self._writers:
            writer.write_images(step, images)

    def flush(self) -> None:
        """Flushes all."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


class TensorBoardWriter:
    """clu's, made when there is something to write: importing TensorFlow takes seconds."""

    def __init__(self, workdir: Path):
        self._workdir = workdir

    @functools.cached_property
    def _writer(self):
        with _silent():
            from clu import metric_writers

            return metric_writers.SummaryWriter(str(self._workdir))

    def write_scalars(self, step: int, scalars: dict) -> None:
        """Writes an event for each."""
        self._writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: dict) -> None:
        """Writes an event for each."""
        self._writer.write_images(step, images)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        if '_writer' in vars(self):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file, if there is one."""
        if '_writer' in vars(self):
            self._writer.close()


def tensorboard_writer(workdir: Path) -> list[TensorBoardWriter]:
    """[a writer], or [] with a line that says how to have it."""
    if importlib.util.find_spec('tensorflow') is None:
        logging.info("no TensorBoard events: they need pip install -e '.[tf]'")
        return []
    return [TensorBoardWriter(workdir)]


@contextlib.contextmanager
def _silent():
    """Nothing on standard error: TensorFlow's C++ chats there before anyone can ask it not to."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
