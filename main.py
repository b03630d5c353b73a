"""Trains, samples, evaluates and inspects deep generative image models.

  python main.py                                              digits, into runs/ddpm_digits
  python main.py --config=configs/ddpm_cifar10.py --workdir=runs/ddpm_cifar10
  python main.py --config=configs/ddpm_digits.py:tiny         a variant; every config has `tiny`
  python main.py --config.batch_size=32 --config.sample.n=8   any field of the config
  python main.py --mode=sample                                from the newest checkpoint

A run goes on by itself from the checkpoints of its workdir.
"""

import errno
import importlib
import logging
import sys
import warnings
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from gen_jax.errors import UserError

MODES = ('train', 'sample', 'evaluate', 'inspect')
HERE = Path(__file__).resolve().parent
FLAGS = flags.FLAGS

config_flags.DEFINE_config_file('config', str(HERE / 'configs/ddpm_digits.py'), 'FILE[:variant].')
flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
flags.DEFINE_string('workdir', None, 'Where the run lives; runs/NAME_OF_THE_CONFIG if not given.')
flags.DEFINE_integer('step', None, 'The checkpoint to take; the newest if not given.', 0)
flags.DEFINE_string('coordinator', None, "Several processes: the first one's host:port, or auto.")
flags.DEFINE_integer('processes', None, 'Several processes: how many.')
flags.DEFINE_integer('process', None, 'Several processes: which one this is, from 0.')


def run(argv: list[str]) -> None:
    """Reads the flags and runs the mode."""
    try:
        extra = FLAGS(argv)[1:]
        config = FLAGS.config
    # What absl and ml_collections raise for a bad flag, file, field or value.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(' '.join(str(error).split())) from None
    if extra:
        raise UserError(f'unexpected argument {extra[0]!r}: flags are written --name=value')
    if FLAGS.coordinator is not None:
        import jax

        address = None if FLAGS.coordinator == 'auto' else FLAGS.coordinator
        jax.distributed.initialize(address, FLAGS.processes, FLAGS.process)
    name = Path(config_flags.get_config_filename(FLAGS['config'])).stem
    workdir = Path(FLAGS.workdir or f'runs/{name}').absolute()
    mode = importlib.import_module(f'gen_jax.{FLAGS.mode}')
    step = {} if FLAGS.mode == 'train' else {'step': FLAGS.step}
    mode.run(config, workdir, **step)


def main() -> None:
    """Runs; a user's mistake ends in one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger().handlers[0].addFilter(lambda r: r.name == 'root' or r.levelno > 20)
    try:
        run(sys.argv)
    except UserError as error:
        sys.exit(_refuse(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        sys.exit(_refuse(error))


def _refuse(error: Exception) -> int:
    print(f'main.py: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
    main()
