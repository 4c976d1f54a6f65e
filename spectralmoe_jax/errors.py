"""What is told to the user without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """A problem with the user's input: a file, a key, a value, a shape.

    The message is a single line that names the file, key or band, says what is
    wrong with it and what to do. The command line prints it without a traceback
    and exits with status 2.
    """


class RunLost(Exception):
    """A run of several processes cannot go on here; started again, it resumes."""


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """An OSError that does not say which file it is about, as one of writing does not, says `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
