"""Code that a configuration names: allowed by the user, or refused where somebody else may have named it.

A configuration that the user gives, as a file or on the command line, is the user's own. One that is stored,
in a run's folder or in a weight file, may be anybody's: an adapter or a data source that it names by an
import path is imported only if the user says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spectralmoe_jax.errors import UserError

_PLACES = (("model", "adapter", "kind"), ("data", "kind"))
ALLOW_CODE = "--allow-code"


def require_allowed_code(
    given: Mapping[str, Any], place: object, overrides: Sequence[str] = (), allow_code: bool = False
) -> None:
    """Check that a stored configuration names no code but what the user allows.

    Args:
      given: the configuration, with the overrides applied.
      place: where it is stored, for the message.
      overrides: from the command line; code that they name is the user's own.
      allow_code: whether the user allows all that it names.

    Raises:
      UserError: it names code; says what it would run, and how to allow it.
    """
    own = {override.removeprefix("--").partition("=")[0] for override in overrides}
    for key, value in own_code(given):
        if not allow_code and key not in own:
            raise UserError(
                f"{place}: {key} = {value!r} names code, which is run only if you say so: if you trust it, "
                f"add {ALLOW_CODE} (in Python allow_code=True), or name it yourself as --{key}=..."
            )


def own_code(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and import path of the code that a configuration names, those of its streams included."""
    streams = given.get("streams")
    sections = {"config": given}
    sections |= {f"config.streams.{n}": s for n, s in streams.items()} if isinstance(streams, Mapping) else {}
    for prefix, section in sections.items():
        for path in _PLACES:
            value: Any = section
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, str) and ":" in value:
                yield ".".join((prefix, *path)), value
