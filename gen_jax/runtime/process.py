"""How our processes log, agree and look for garbage, their memory, a function in one of its own."""

import gc
import json
import logging
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from gen_jax.errors import UserError
from gen_jax.runtime.compilation import return_memory

FAULTS = (signal.SIGSEGV, signal.SIGABRT)  # a compiler's own; others come from outside


def log_plainly(level: int) -> None:
    """Has our own lines of this level and above told as they are, and nobody else's."""
    # Forced, as a line that an import logs sets up logging too.
    logging.basicConfig(level=level, format='%(message)s', force=True)
    logging.getLogger().handlers[0].addFilter(lambda record: record.name == 'root')
    absl_logging.set_verbosity(absl_logging.FATAL)


def collect_rarely() -> None:
    """Has Python look for garbage less; call once all is imported, before anything is traced.

    What imports made stays: looking through it takes an eighth of tracing's time. Looking as often
    as Python does through what tracing makes, nearly all of which is in use, takes a tenth.
    """
    gc.freeze()
    gc.set_threshold(10_000)


def resident(name: str) -> int | None:
    """Bytes of this process: VmRSS is now, VmHWM the most so far; None where Linux does not count.

    What `resource.getrusage` calls the most may be of the process that started this one.
    """
    status = Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def as_first_sees(value):
    """A value that JSON keeps, as process 0 has it; every process has to ask.

    For what is read from a disk of the network, where a file may show later on other hosts, and
    which decides what all do together.
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.pad(text[:length], (0, max(length - len(text), 0)))
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


def apart(function: Callable, *args):
    """function(*args) in a process of its own, which libtpu may end.

    Args:
      function, args: such as can be pickled, as what is returned.

    Raises:
      UserError: the function's, or that libtpu ended the process, or that it was killed.
      ChildProcessError: something else did; an error of the function has left its traceback.
    """
    # Not forked: JAX has threads.
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    level = logging.getLogger().level
    child = context.Process(target=_send, args=(sender, level, function, args))
    child.start()
    sender.close()  # the child's is the only one, so that its end is heard
    try:
        found, error = receiver.recv()
    except EOFError:
        child.join()
        if -child.exitcode in FAULTS:
            end = signal.Signals(-child.exitcode).name
            raise UserError(f'libtpu ends in {end}') from None
        if -child.exitcode == signal.SIGKILL:
            raise UserError(f'{function.__name__} was killed, as where memory runs out') from None
        told = f'{function.__name__} ended with exit code {child.exitcode}'
        raise ChildProcessError(told) from None
    child.join()
    if error:
        raise error
    return found


def _send(sender: Connection, level: int, function: Callable, args: tuple) -> None:
    log_plainly(level)
    return_memory()
    # Programs for TPUs that are not there can be kept on disk, but not be read back.
    jax.config.update('jax_enable_compilation_cache', False)
    try:
        sender.send((function(*args), None))
    except UserError as error:
        sender.send((None, error))
