"""What is told to the user without a traceback."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A problem with the user's input: a file, a key, a value, a shape.

    The message is a single line that names the file, key or band, says what is
    wrong with it and what to do. The command line prints it without a traceback
    and exits with status 2.
    """


_SHOWN = 200  # characters of a value in a message


def bad_value(key: str, value: object, must: str) -> UserError:
    """The error of a value that is not allowed, in the form `KEY = VALUE: must be at least 1`."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return UserError(f"{key} = {shown}: {must}")


def require(condition: bool, key: str, message: str) -> None:
    """Raise a UserError that names the key unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: {message}")


def choose(key: str, value: T, allowed: Iterable[T]) -> T:
    """The value where it is among the allowed ones, else a UserError that lists them."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise bad_value(key, value, f"must be one of {', '.join(map(str, allowed))}")
    return value


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
