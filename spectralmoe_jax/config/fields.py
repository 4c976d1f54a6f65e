"""Fields of a section with documentation, default and allowed values, and strict reading of sections.

A section is a frozen dataclass whose fields are defined with `option` or `required`:

    steps: int = required("Steps of the whole training.", at_least(1))
    flip: float = option(0.5, "Probability of a horizontal flip.", between(0, 1))
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from spectralmoe_jax.errors import UserError, bad_value

T = TypeVar("T")
_LARGEST_SIZE = 1 << 31  # of an array
_LARGEST = 10**15 - 1  # whole numbers up to here are exact as floating-point numbers, too


class Allowed(NamedTuple):
    """Values that a field may have.

    Attributes:
      words: description of the values, as in "at least 1".
      holds: predicate that is true for an allowed value.
      choices: the values if they can be listed.
    """

    words: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def at_least(least: float) -> Allowed:
    """Allow numbers from `least` upwards."""
    return Allowed(f"at least {least}", lambda value: value >= least)


def above(bound: float) -> Allowed:
    """Allow numbers greater than `bound`."""
    return Allowed(f"above {bound}", lambda value: value > bound)


def between(low: float, high: float) -> Allowed:
    """Allow numbers from `low` to `high`, both included."""
    return Allowed(f"between {low} and {high}", lambda value: low <= value <= high)


def inside(low: float, high: float) -> Allowed:
    """Allow numbers from `low` to `high`, both excluded."""
    return Allowed(f"above {low} and below {high}", lambda value: low < value < high)


def one_of(*choices: str) -> Allowed:
    """Allow the given strings."""
    return Allowed(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def one_of_or_own(*choices: str) -> Allowed:
    """Allow the given strings, or an import path of the user's own."""
    words = f"one of {', '.join(choices)}, or your own as module:function or file.py:function"
    return Allowed(words, lambda value: value in choices or ":" in value, choices)


def each(allowed: Allowed) -> Allowed:
    """Allow tuples of which every element is allowed."""
    return Allowed(f"{allowed.words} for each element", lambda values: all(map(allowed.holds, values)))


def option(default: Any, doc: str, allowed: Allowed | None = None, *, read_by: tuple[str, ...] = ()) -> Any:
    """Define a field that a configuration may leave out.

    Args:
      default: its value then.
      doc: documentation of the field.
      allowed: values that it may have; None for any of its type.
      read_by: kinds of the section that read the field, beside kinds of a user's own; none for all.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "allowed": allowed, "read_by": read_by})


def required(doc: str, allowed: Allowed | None = None) -> Any:
    """Define a field that every configuration must give."""
    return dataclasses.field(metadata={"doc": doc, "allowed": allowed})


def subsection(cls: type, doc: str) -> Any:
    """Define a section whose fields all have defaults, so that a configuration may leave it out."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc})


def section_of_kind(kinds: Mapping[str, type], doc: str, other: type | None = None) -> Any:
    """Define a section whose fields depend on its key `kind`.

    Args:
      kinds: class of each kind, the default one first.
      doc: documentation of the section.
      other: called as `other(kind, section)` for any other kind; None if no other kind is allowed.
    """
    default = next(iter(kinds.values()))
    return dataclasses.field(default_factory=default, metadata={"doc": doc, "kinds": kinds, "other": other})


def derived(default: Any) -> Any:
    """Define a field that no configuration gives; the code fills it in."""
    return dataclasses.field(default=default, metadata={"derived": True})


class Section:
    """Base class of the sections: checks type and allowed values of every field.

    Attributes:
      place: place of the section in the configuration, as in "config.train".
      tolerant: whether unknown keys cause a warning instead of an error.
    """

    place: ClassVar[str] = "config"
    tolerant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = hints_of(typing.cast(type, type(self)))
        for field in dataclasses.fields(typing.cast(Any, self)):
            allowed = field.metadata.get("allowed")
            value = checked(getattr(self, field.name), hints[field.name], f"{self.place}.{field.name}")
            object.__setattr__(self, field.name, value)
            if allowed is not None and value is not None:
                self.require(field.name, allowed.holds(value), f"must be {allowed.words}")

    def require(self, name: str, holds: bool, must: str) -> None:
        """Check a condition on the field `name`.

        Raises:
          UserError: the condition does not hold; names the key and its value.
        """
        if not holds:
            raise bad_value(f"{self.place}.{name}", getattr(self, name), must)

    @classmethod
    def completed(cls, given: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Return the given values, completed by those that follow from them."""
        return given


def keys_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a section that a configuration may give, by name."""
    fields = dataclasses.fields(typing.cast(Any, cls))
    return {field.name: field for field in fields if field.init and not field.metadata.get("derived")}


def choices_of(cls: type) -> dict[str, tuple[str, ...]]:
    """Return the choices of every field that has some, by name."""
    allowed = {name: field.metadata.get("allowed") for name, field in keys_of(cls).items()}
    return {name: found.choices for name, found in allowed.items() if found and found.choices}


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the type of every field, by name."""
    return typing.get_type_hints(cls)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Return True if a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def section_class(hint: Any) -> type | None:
    """Return the dataclass `X` of a type `X` or `X | None`; None for any other type."""
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def build(cls: type[T], given: Mapping[str, Any], place: str) -> T:
    """Build a dataclass from a section, strictly.

    Annotations decide what is allowed: int, float (takes an int too), bool, str, tuples, `X | None`,
    `Literal[...]` for a choice, `Any`, and other dataclasses for subsections.

    Args:
      cls: a dataclass; fields without a default must be in the section.
      given: the section, whose keys must all be fields of `cls`.
      place: place of the section in the configuration, as in "config.train".

    Raises:
      UserError: a key is unknown or missing, or a value has another type; names the full key.
    """
    if not isinstance(given, Mapping):
        raise bad_value(place, given, "must be a section")
    is_section = issubclass(cls, Section)
    if is_section:
        given = cls.completed(given, place)  # type: ignore[attr-defined]
    known, hints = keys_of(cls), hints_of(typing.cast(type, cls))
    # 1. refuse unknown keys, or warn about them
    for key in given:
        if key not in known:
            problem = unknown_key(place, key, known)
            if not (is_section and cls.tolerant):  # type: ignore[attr-defined]
                raise problem
            warn_once(f"ignored: {problem}")
    # 2. read the values; the dataclass fills in defaults
    values: dict[str, Any] = {}
    for name, field in known.items():
        full = f"{place}.{name}"
        if name not in given:
            if is_required(field):
                raise UserError(f"{full} is missing: give {type_name(hints[name])}")
        elif "kinds" in field.metadata:
            values[name] = _of_kind(field, given[name], full)
        else:
            values[name] = checked(given[name], hints[name], full)
    return cls(**values)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once per process."""
    import logging

    logging.getLogger(__name__).warning("%s", message)


def _of_kind(field: dataclasses.Field[Any], given: Any, place: str) -> Any:
    if not isinstance(given, Mapping):
        raise bad_value(place, given, "must be a section")
    kinds, other = field.metadata["kinds"], field.metadata["other"]
    kind = given.get("kind", next(iter(kinds)))
    if not isinstance(kind, str):
        raise bad_value(f"{place}.kind", kind, "must be a string")
    own = {key: value for key, value in given.items() if key != "kind"}
    if kind in kinds:
        return build(kinds[kind], own, place)
    if other is not None:
        return other(kind, own)
    raise bad_value(f"{place}.kind", kind, f"must be {one_of(*kinds).words}")


def unread_keys(cls: type, given: Any) -> dict[str, tuple[str, ...]]:
    """Return the keys of a section that its kind does not read, each with the kinds that do.

    Keys that have their default value are left out, and so are all keys of a kind of the user's own.

    Args:
      cls: class of the section, which has a field `kind`.
      given: the section as the user wrote it.
    """
    kind = given.get("kind") if isinstance(given, Mapping) else None
    if kind not in choices_of(cls).get("kind", ()):
        return {}
    return {
        name: read_by
        for name, field in keys_of(cls).items()
        if (read_by := field.metadata.get("read_by"))
        and kind not in read_by
        and name in given
        and given[name] != field.default
    }


def unknown_key(place: str, key: str, allowed: Collection[str]) -> UserError:
    """Return the error for an unknown key of a section; it lists the nearest keys, or all."""
    near = difflib.get_close_matches(key, list(allowed), n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"allowed: {', '.join(sorted(allowed)) or 'none'}"
    return UserError(f"{place}.{key} is not a known key; {hint}")


def checked(value: Any, hint: Any, key: str) -> Any:
    """Return a value if its type is right; an int is converted if the type is float.

    Raises:
      UserError: the value has another type or is not finite; names the full key.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        if value not in arguments:
            raise bad_value(key, value, f"must be {type_name(hint)}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _checked_union(value, arguments, hint, key)
    if dataclasses.is_dataclass(hint):
        return (
            value
            if isinstance(value, typing.cast(type, hint))
            else build(typing.cast(type, hint), value, key)
        )
    if hint is tuple or origin is tuple:
        return _checked_tuple(value, arguments, hint, key)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if not is_finite(value):
        raise bad_value(key, value, "must be finite")
    if isinstance(value, int) and value >= _LARGEST_SIZE and key.startswith("config.model."):
        raise bad_value(key, value, f"must be below {_LARGEST_SIZE}")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise bad_value(key, value, "must be a number of at most 15 digits")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, typing.get_origin(hint) or hint) and (
        hint is bool or not isinstance(value, bool)
    )
    if not fits:
        raise bad_value(key, value, f"must be {type_name(hint)}")
    return value


def _checked_union(value: Any, kinds: tuple[Any, ...], hint: Any, key: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    some = [kind for kind in kinds if kind is not type(None)]
    if len(some) == 1:
        return checked(value, some[0], key)
    fitting = [kind for kind in some if isinstance(value, typing.get_origin(kind) or kind)]
    if not fitting:
        raise bad_value(key, value, f"must be {type_name(hint)}")
    return checked(value, fitting[0], key)


def _checked_tuple(value: Any, arguments: tuple[Any, ...], hint: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise bad_value(key, value, f"must be {type_name(hint)}")
    if not arguments:
        return tuple(value)
    kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(kinds) != len(value):
        raise bad_value(key, value, f"must have {len(kinds)} elements, not {len(value)}")
    return tuple(
        checked(v, kind, f"{key}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True))
    )


def is_finite(value: Any) -> bool:
    """Return False if a value, or an element of a tuple, is NaN or infinite.

    Range checks do not suffice: fields without allowed values have none, and infinity passes `at_least`.
    """
    if isinstance(value, tuple | list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


_NAMES = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "booleans"),
    str: ("a string", "strings"),
    tuple: ("a tuple", "tuples"),
    dict: ("a section", "sections"),
    type(None): ("none", "none"),
    Any: ("any value", "values"),
}


def type_name(hint: Any, plural: bool = False) -> str:
    """Describe a type in words, as in "a tuple of 2 numbers"."""
    if hint in _NAMES:
        return _NAMES[hint][plural]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument, plural) for argument in arguments)
    if origin is tuple:
        head = "tuples" if plural else "a tuple"
        if arguments[-1] is Ellipsis:
            return f"{head} of {type_name(arguments[0], plural=True)}"
        if len(set(arguments)) == 1:
            return f"{head} of {len(arguments)} {type_name(arguments[0], plural=True)}"
        return f"{head} of ({', '.join(type_name(argument) for argument in arguments)})"
    if origin is not None:
        return type_name(origin, plural)
    return "a section" if dataclasses.is_dataclass(hint) else getattr(hint, "__name__", str(hint))
