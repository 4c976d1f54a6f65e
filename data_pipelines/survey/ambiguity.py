"""The error of a folder that can be understood in several ways, with the option that settles it."""

from __future__ import annotations

from collections.abc import Sequence

from spectralmoe_jax.errors import UserError

_LISTED = 12


class Ambiguous(UserError):
    """A folder that can be understood in several ways, none of which is chosen.

    Args:
      option: the option of `spectralmoe init` that settles it, such as "--target".
      found: what was found, in words.
      choices: values that the option may have.
      remedy: what to give, where the choices alone do not say it.

    Attributes:
      option: as given.
      found: as given.
      choices: as given.
    """

    def __init__(self, option: str, found: str, choices: Sequence[str] = (), remedy: str = ""):
        self.option, self.found, self.choices = option, found, tuple(choices)
        told = f" ({listed(self.choices)})" if self.choices else ""
        super().__init__(f"{found}{told}: {remedy or 'choose with'} {option}")


def listed(names: Sequence[str]) -> str:
    """Join names by commas, those beyond the first twelve as a number."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
