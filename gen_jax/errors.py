"""The one exception that means: the user can mend this."""

import errno
import re

from absl import flags

# What ml_collections says of a field that is not there, when it is read and when it is set.
NO_FIELD = re.compile(
    r"""(?:'([\w.]+)'|Key "([\w.]+)" .*?)(?:\nDid you mean "(\w+)".*)?""", re.DOTALL
)
# What devices say of memory that ran out.
EXHAUSTED = re.compile('RESOURCE_EXHAUSTED|Out of memory')


class UserError(Exception):
    """A user's mistake, told in one line: what is wrong, what was expected, how to mend it.

    `main.py` prints it without a traceback and exits with code 2. Raise it before anything
    compiles and before anything on disk is touched.
    """


class NotFinite(UserError):
    """Images of a model hold values that are no numbers; what trains it can go on without them."""


def in_one_line(error: Exception) -> str:
    """The message of an error that a library, or the code of a config file, raised.

    Its type is told too, but where a flag is wrong or a config lacks a field.
    """
    if isinstance(error, KeyError | AttributeError) and error.args:
        first = error.args[0]
        # ml_collections makes AttributeErrors of KeyErrors.
        text = str(first.args[0] if isinstance(first, KeyError) and first.args else first)
        if told := NO_FIELD.fullmatch(text):
            of_read, of_set, meant = told.groups()
            suggestion = f', did you mean {meant!r}?' if meant else ''
            return f'the config has no field {of_read or of_set}{suggestion}'
    text = ' '.join(str(error).split())
    if isinstance(error, UserError | flags.Error):
        return text
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def out_of_memory(error: Exception, mode: str, config) -> str | None:
    """Where memory ran out: what was asked for, in the words of the device or the host, and a way.

    None of another error.
    """
    lines = str(error).splitlines() or ['the host has no memory left']
    told = [x for x in lines if isinstance(error, MemoryError) or EXHAUSTED.search(x)]
    if not told:
        return None
    drawn = ('sample.batch_size',)
    sizes = {'train': ('batch_size',), 'benchmark': ('batch_size', *drawn)}
    sizes['evaluate'] = ('batch_size', *drawn, 'eval.batch_size')
    sizes['explore'] = (*drawn, 'explore.rows', 'explore.samples')
    ways = [f'lower config.{" or config.".join(sizes.get(mode, drawn))}']
    if mode == 'train':
        ways.append('raise config.accumulate, which keeps the batch')
        if config.model.get('remat') == 'none':
            ways.append("set config.model.remat='blocks'")
    said = told[0].rpartition(': ')[2].rstrip('.')
    return f'{said}: {", ".join(ways)}, or on several devices raise config.mesh.fsdp'


def is_users(error: Exception) -> bool:
    """Whether an error is the user's to mend: ours, or a disk that is full or forbidden."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
    return isinstance(error, UserError) or getattr(error, 'errno', None) in codes
