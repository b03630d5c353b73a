"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake, told in one line: what is wrong, what was expected, how to mend it.

    `main.py` prints it without a traceback and exits with code 2. Raise it before anything
    compiles and before anything on disk is touched.
    """
