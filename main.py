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
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gen_jax.errors import UserError

MODES = ('train', 'sample', 'evaluate', 'inspect')
HERE = Path(__file__).resolve().parent
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: defining `config` reads the command line, and may refuse it."""
    config = str(HERE / 'configs/ddpm_digits.py')
    config_flags.DEFINE_config_file('config', config, 'FILE[:variant]; its fields: --config.a.b=1')
    flags.DEFINE_enum('mode', 'train', MODES, 'what to do')
    flags.DEFINE_string('workdir', None, 'where the run lives (default: runs/NAME_OF_THE_CONFIG)')
    flags.DEFINE_integer('step', None, 'the checkpoint to take (default: the newest)', 0)
    flags.DEFINE_string('coordinator', None, 'several processes: host:port of the first, or auto')
    flags.DEFINE_integer('processes', None, 'several processes: how many')
    flags.DEFINE_integer('process', None, 'several processes: which one this is, from 0')


def run(argv: list[str]) -> None:
    """Reads the flags and runs the mode."""
    try:
        define_flags()
        if {'-h', '--help'} & set(argv):
            print(__doc__ + FLAGS.module_help(sys.modules[__name__]))
            return
        extra = FLAGS(argv)[1:]
        config = FLAGS.config
        assert config.method  # a config file that failed to load says so only here
    # What absl and ml_collections raise for a bad flag, file, field or value.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_in_one_line(error)) from None
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


def _in_one_line(error: Exception) -> str:
    if isinstance(error, KeyError | AttributeError):
        # The message is the repr of a message.
        text = str(error.args[0]).replace('\\n', ' ').replace("\\'", '').strip('\'"')
        return ' '.join(f'the config has no field {text}'.split())
    text = ' '.join(str(error).split())
    return text.removeprefix(
        'Configuration is not available because of an earlier failure to load: '
    )


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
