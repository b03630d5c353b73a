"""The flags of main.py, and what of them does not go together."""

from absl import flags

from gen_jax.errors import UserError
from gen_jax.runtime.config_file import define_config

# Each mode's own flag.
MODES = {'train': 'stopped', 'sample': 'step', 'evaluate': 'step', 'inspect': 'step'}
MODES |= {'edit': 'step', 'explore': 'step', 'benchmark': '', 'plan': 'topology'}
FLAGS = flags.FLAGS


def define(config: str) -> None:
    """Defines them; not at import: defining `config` reads the command line, and may refuse it.

    Args:
      config: the file that is taken where none is given.
    """
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


def read(argv: list[str]) -> dict:
    """Parses them into FLAGS; returns what the mode's own flag says, {name: value}, or {}.

    Raises:
      UserError: an argument that is no flag, or another mode's flag; absl's own errors are of
        what a flag may be.
    """
    if extra := FLAGS(argv)[1:]:
        raise UserError(f'unexpected argument {extra[0]!r}: flags are written --name=value')
    own = MODES[FLAGS.mode]
    if other := {x for x in ('step', 'topology', 'stopped') if FLAGS[x].value} - {own}:
        raise UserError(f'--{other.pop()} is not for --mode={FLAGS.mode}: leave it out')
    return {own: FLAGS[own].value} if own else {}
