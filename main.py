"""Trains, samples, edits, evaluates, explores, benchmarks, plans deep generative image models.

  python main.py                                              digits, into runs/ddpm_digits
  python main.py --config=configs/ddpm_cifar10.py --workdir=runs/ddpm_cifar10
  python main.py --config=configs/ddpm_digits.py:tiny         a variant; every config has `tiny`
  python main.py --config.batch_size=32 --config.sample.n=8   any field of the config
  python main.py --mode=sample                                from the newest checkpoint

A run goes on by itself from the checkpoints of its workdir.
"""

import gc
import importlib
import logging
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gen_jax.errors import UserError, in_one_line, is_users, out_of_memory
from gen_jax.runtime import workdir
from gen_jax.runtime.compilation import keep_compiled, return_memory, spare_threads
from gen_jax.runtime.config_file import define_config
from gen_jax.runtime.process import log_plainly
from gen_jax.runtime.sharding import join_processes

# Each mode's own flag.
MODES = {'train': 'stopped', 'sample': 'step', 'evaluate': 'step', 'inspect': 'step'}
MODES |= {'edit': 'step', 'explore': 'step', 'benchmark': '', 'plan': 'topology'}
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: defining `config` reads the command line, and may refuse it."""
    config = str(Path(__file__).resolve().parent / 'configs/ddpm_digits.py')
    define_config(config, 'FILE[:variant]; its fields: --config.a.b=1')
    flags.DEFINE_enum('mode', 'train', list(MODES), 'what to do')
    flags.DEFINE_string('workdir', None, 'where the run lives (default: runs/CONFIG_VARIANT)')
    flags.DEFINE_string('step', None, 'the checkpoint to take: a number, or best (default: newest)')
    flags.DEFINE_string('topology', None, 'TPUs to plan for: v5e:4x4,v4:2x2x1 (default: several)')
    flags.DEFINE_integer(
        'stopped', 0, 'exit code of a training that a signal stops', lower_bound=0, upper_bound=255
    )
    flags.DEFINE_string('coordinator', None, 'several processes: host:port of the first, or auto')
    flags.DEFINE_integer('processes', None, 'several processes: how many')
    flags.DEFINE_integer('process', None, 'several processes: which one this is, from 0')


def run(argv: list[str]) -> int | None:
    """Reads the flags and runs the mode; returns the exit code, None for 0."""
    try:
        define_flags()
        if {'-h', '--help'} & set(argv):
            print(__doc__ + FLAGS.module_help(sys.modules[__name__]))
            return None
        extra = FLAGS(argv)[1:]
        config = FLAGS.config
        if extra:
            raise UserError(f'unexpected argument {extra[0]!r}: flags are written --name=value')
        own = MODES[FLAGS.mode]
        if other := {x for x in ('step', 'topology', 'stopped') if FLAGS[x].value} - {own}:
            raise UserError(f'--{other.pop()} is not for --mode={FLAGS.mode}: leave it out')
        keep_compiled()
        return_memory()
        spare_threads()
        join_processes(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    except UserError:
        raise
    except Exception as error:  # flags can be wrong in many a way
        raise UserError(in_one_line(error)) from None
    file = config_flags.get_config_filename(FLAGS['config'])
    folder = Path(FLAGS.workdir or workdir.usual(file)).absolute()
    options = {own: FLAGS[own].value} if own else {}
    mode = importlib.import_module(f'gen_jax.{FLAGS.mode}')
    # What imports made stays: looking through it takes an eighth of tracing's time. So does looking
    # as often as Python does through what tracing makes, nearly all of which is in use.
    gc.freeze()
    gc.set_threshold(10_000)
    try:
        return mode.run(config, folder, **options)
    except (RuntimeError, ValueError, MemoryError) as error:
        if not (told := out_of_memory(error, FLAGS.mode, config)):
            raise
        raise UserError(told) from None


def main() -> None:
    """Runs; a user's mistake ends in one line and exit code 2."""
    log_plainly(logging.INFO)
    try:
        sys.exit(run(sys.argv))
    except (UserError, OSError) as error:
        if not is_users(error):
            raise
        print(f'main.py: {error}', file=sys.stderr, flush=True)
        if FLAGS.is_parsed() and FLAGS.coordinator:
            os._exit(2)  # the other processes wait for this one, and it must not wait for them
        sys.exit(2)


if __name__ == '__main__':
    main()
