"""The one exception that means: the user can mend this."""

import errno


class UserError(Exception):
    """A user's mistake, told in one line: what is wrong, what was expected, how to mend it.

    `main.py` prints it without a traceback and exits with code 2. Raise it before anything
    compiles and before anything on disk is touched.
    """


def in_one_line(error: Exception) -> str:
    """The message of an error that a library raised over a flag or a config file."""
    if isinstance(error, KeyError | AttributeError) and error.args:
        # ml_collections puts the repr of a message into its message.
        text = str(error.args[0]).replace('\\n', ' ').replace("\\'", '').strip('\'"')
        return ' '.join(f'the config has no field {text}'.split())
    text = ' '.join(str(error).split()) or type(error).__name__
    earlier = 'Configuration is not available because of an earlier failure to load: '
    return text.removeprefix(earlier)


def is_users(error: Exception) -> bool:
    """Whether an error is the user's to mend: ours, or a disk that is full or forbidden."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
    return isinstance(error, UserError) or getattr(error, 'errno', None) in codes
