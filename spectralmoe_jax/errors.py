"""Errors that the command line reports in one line, without a traceback."""

from collections.abc import Iterable
from typing import TypeVar

from spectralmoe_jax.escapes import printable

T = TypeVar("T")


class UserError(Exception):
    """A problem with the user's input: a file, a key, a value, a shape.

    The message is a single line that names the file, key or band, says what is
    wrong with it and what to do. The command line prints it without a traceback
    and exits with status 2.
    """


_SHOWN = 200  # longest representation of a value in a message


def bad_value(key: str, value: object, must: str) -> UserError:
    """Return the error for a value that is not allowed, in the form `KEY = VALUE: must be at least 1`."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return UserError(f"{key} = {shown}: {must}")


def shown(text: object, at_most: int = _SHOWN) -> str:
    """Return a name out of a file or an address as a message shows it: one line, of limited length.

    Args:
      text: the name.
      at_most: number of characters that are kept.
    """
    kept = str(text)[: at_most + 1]
    return printable(kept[:at_most]) + "..." * (len(kept) > at_most)


def require(condition: bool, key: str, message: str) -> None:
    """Raise a UserError that names the key unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: {message}")


def choose(key: str, value: T, allowed: Iterable[T]) -> T:
    """Return the value if it is among the allowed ones; otherwise raise a UserError that lists them."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise bad_value(key, value, f"must be one of {', '.join(map(str, allowed))}")
    return value


class RunLost(Exception):
    """A run of several processes cannot continue in this process; started again, it resumes."""
