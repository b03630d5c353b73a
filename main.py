"""Trains, samples, edits, evaluates, explores, benchmarks, plans deep generative image models.

  python main.py                                              digits, into runs/ddpm_digits
  python main.py --config=configs/ddpm_cifar10.py --workdir=runs/ddpm_cifar10
  python main.py --config=configs/ddpm_digits.py:tiny         a variant; every config has `tiny`
  python main.py --config.batch_size=32 --config.sample.n=8   any field of the config
  python main.py --mode=sample                                from the newest checkpoint

A run goes on by itself from the checkpoints of its workdir.
"""

import importlib
import logging
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gen_jax import idle
from gen_jax.errors import UserError, in_one_line, is_users, out_of_memory
from gen_jax.runtime import command_line, config_file, workdir
from gen_jax.runtime.compilation import prepare
from gen_jax.runtime.process import collect_rarely, log_plainly
from gen_jax.runtime.sharding import join_processes

FLAGS = flags.FLAGS


def run(argv: list[str]) -> int | None:
    """Reads the flags and runs the mode; returns the exit code, None for 0."""
    try:
        command_line.define(str(Path(__file__).resolve().parent / 'configs/ddpm_digits.py'))
        if {'-h', '--help'} & set(argv):
            print(__doc__, *map(FLAGS.module_help, (config_file, command_line)), sep='\n')
            return None
        options = command_line.read(argv)
        config = FLAGS.config
        prepare()
        join_processes(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    except UserError:
        raise
    except Exception as error:  # flags can be wrong in many a way
        raise UserError(in_one_line(error)) from None
    file = config_flags.get_config_filename(FLAGS['config'])
    folder = Path(os.path.expanduser(FLAGS.workdir or workdir.usual(file))).absolute()
    idle.require_none(config, config_flags.get_override_values(FLAGS['config']), folder)
    mode = importlib.import_module(f'gen_jax.{FLAGS.mode}')
    collect_rarely()
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
