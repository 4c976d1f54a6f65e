"""Assignments `--config.a.b=value` of the command line, and settings of a grid's variants.

A value is parsed by the type that the schema gives its key; the kind of a section decides which keys it has.
"""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from spectralmoe_jax.config.adapters import ADAPTERS
from spectralmoe_jax.config.fields import (
    checked,
    hints_of,
    is_finite,
    keys_of,
    section_class,
    type_name,
    unknown_key,
    unread_keys,
)
from spectralmoe_jax.config.given import Given, as_given, flatten
from spectralmoe_jax.config.model import HEADS
from spectralmoe_jax.config.schema import DataConfig, RunConfig, assign
from spectralmoe_jax.errors import UserError, bad_value, choose, require

CHOICES: dict[str, Mapping[str, type]] = {"model.adapter": ADAPTERS, "model.head": HEADS}
"""Sections whose keys depend on their `kind`; the first kind is the default."""


def apply_overrides(given: Mapping[str, Any], overrides: Sequence[str]) -> Given:
    """Return a copy of a configuration with assignments `--config.a.b=value` applied in order.

    A value is parsed by the type of its key: tuples as Python literals or separated by commas, booleans as
    true or false; `none` unsets a section, a tuple or a number. Only assigned keys are added.

    A section that gets another `kind` keeps the keys that the new kind has and loses the others. It loses all
    keys if the new kind is a user's own, whose keys are not known here. Kinds change before all other
    assignments, which are checked against the new kind.

    Raises:
      UserError: a key is unknown (names the nearest keys), a value has another type than its key, or a number
        is not finite.
    """
    result: Given = dict(given)
    # 1. kinds first: they decide which other keys there are
    kinds = _change_kinds(result, overrides)
    # 2. assignments in order
    for override in overrides:
        name, equals, text = override.removeprefix("--").partition("=")
        require(bool(equals), name, "needs a value, as in --config.train.steps=100")
        top, *keys = name.split(".")
        require(top == "config" and bool(keys), name, "an override starts with --config.")
        assign(result, keys, _read_override(result, keys, text, kinds))
    # 3. no value may be NaN or infinite
    for name, value in flatten(result, "config").items():
        if not is_finite(value):
            raise bad_value(name, value, "must be finite")
    return result


def apply_settings(given: Mapping[str, Any], settings: Mapping[str, Any]) -> Given:
    """Return a copy of a configuration with values set by dotted key, parsed as overrides are.

    Args:
      given: the configuration.
      settings: such as `{"model.adapter.num_experts": 3}`; a dictionary replaces a whole section, None
        unsets. Sections are set first, then all other keys at once, so that their order does not matter.

    Raises:
      UserError: as in `apply_overrides`.
    """
    result: Given = dict(given)
    for key, value in settings.items():
        if isinstance(value, Mapping):
            _require_place(result, key)
            assign(result, key.split("."), as_given(dict(value)))
    single = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    return apply_overrides(result, [f"--config.{key}={_text(value)}" for key, value in single.items()])


def _require_place(given: Mapping[str, Any], key: str) -> None:
    """Raise a UserError unless the section of `key` exists."""
    *places, _ = key.split(".")
    section: Any = given
    for place in places:
        section = section.get(place)
        if not isinstance(section, Mapping):
            raise UserError(f"config.{key}: there is no section config.{'.'.join(places)}")


def _text(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, str):
        return value
    return repr(value).lower() if value is None or isinstance(value, bool) else repr(value)


def _change_kinds(given: Given, overrides: Sequence[str]) -> dict[str, str]:
    """Drop the keys that a section with a new kind does not have.

    Returns:
      The kind of every section in `CHOICES`.
    """
    assigned = dict(override.removeprefix("--").partition("=")[::2] for override in overrides)
    kinds = {}
    for place, choice in CHOICES.items():
        section: Any = given
        for key in place.split("."):
            section = section.get(key) if isinstance(section, Mapping) else None
        own = section if isinstance(section, Mapping) else {}
        was = str(own.get("kind", next(iter(choice))))
        kinds[place] = kind = assigned.get(f"config.{place}.kind", was)
        if kind != was and own:
            known = keys_of(choice[kind]) if kind in choice else {}
            kept = {key: value for key, value in own.items() if key == "kind" or key in known}
            assign(given, place.split("."), kept)
    _change_kind_of_data(given, assigned)
    return kinds


def _change_kind_of_data(given: Given, assigned: Mapping[str, str]) -> None:
    """Drop the keys that a new kind of data does not read."""
    data, kind = given.get("data"), assigned.get("config.data.kind")
    if isinstance(data, Mapping) and kind not in (None, data.get("kind")):
        unread = unread_keys(DataConfig, {**data, "kind": kind})
        given["data"] = {key: value for key, value in data.items() if key not in unread}


def _read_override(given: Given, keys: Sequence[str], text: str, kinds: Mapping[str, str]) -> Any:
    """Parse `text` as the value of a key, and check that the key exists."""
    name, section = ".".join(("config", *keys)), given
    for depth, key in enumerate(keys[:-1]):
        _require_key(section, keys[: depth + 1], kinds)
        section = section.get(key, {})
        if not isinstance(section, Mapping):
            place = ".".join(("config", *keys[: depth + 1]))
            raise UserError(f"{place} is {section!r}, not a section: it has no key {keys[-1]!r}")
    _require_key(section, keys, kinds)
    hint = _hint(keys, kinds)
    if hint is not None and section_class(hint) is None:
        return _parse_as(text, hint, name)
    if hint is not None or isinstance(section.get(keys[-1]), Mapping):
        if text.lower() == "none":
            return None
        raise UserError(f"{name} is a section; set one of its keys or none, not {text!r}")
    return _parse(text, type(section[keys[-1]]), name)


def _section_at(place: Sequence[str], kinds: Mapping[str, str]) -> type | None:
    """Return the class of the section at a place; None if the schema has no section there.

    A stream may have any of the sections of a configuration.
    """
    place = place[2:] if len(place) > 1 and place[0] == "streams" else place
    cls: type | None = RunConfig
    for depth, key in enumerate(place, start=1):
        field = keys_of(cls).get(key) if cls else None
        if cls is None or field is None:
            return None
        if "kinds" in field.metadata:
            cls = field.metadata["kinds"].get(kinds[".".join(place[:depth])])
        else:
            cls = section_class(hints_of(cls)[key]) if key != "streams" else None
    return cls


def _hint(keys: Sequence[str], kinds: Mapping[str, str]) -> Any:
    """Return the type of a key; None if the schema does not have the key."""
    *place, key = keys
    if place and _in_kind(place, kinds) is not None:
        if key == "kind":
            return str
        if _section_at(place, kinds) is None:
            return Any  # a user's own kind
    cls = _section_at(place, kinds)
    if cls is None or key not in keys_of(cls):
        return None
    if cls is RunConfig and key == "streams":
        return dict | None
    if "kinds" in keys_of(cls)[key].metadata:
        return RunConfig  # represents any section
    return hints_of(cls)[key]


def _in_kind(place: Sequence[str], kinds: Mapping[str, str]) -> str | None:
    """Return the kind of the section at a place; None if it has no kind."""
    place = place[2:] if place[0] == "streams" else place
    return kinds.get(".".join(place))


def _require_key(section: Mapping[str, Any], keys: Sequence[str], kinds: Mapping[str, str]) -> None:
    """Raise a UserError unless the last of `keys` is in the section or allowed there."""
    *place, key = keys
    cls = _section_at(place, kinds)
    of_kind = bool(place) and _in_kind(place, kinds) is not None
    if of_kind and cls is None:
        return  # a user's own kind
    known = {*section, *(keys_of(cls) if cls else ()), *(("kind",) if of_kind else ())}
    if key not in known:
        raise unknown_key(".".join(("config", *place)), key, known)


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _parse(text: str, kind: type, name: str) -> Any:
    """Parse `text` as the replacement of a value of type `kind`."""
    if kind is str:
        return text
    if text.lower() == "none" and kind is not bool:
        return None
    if kind is bool:
        return _BOOLEANS[choose(name, text.lower(), _BOOLEANS)]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise bad_value(name, text, f"must be {type_name(kind)}") from None
    value = as_given(_literal(text))
    if kind is tuple and not isinstance(value, tuple):
        return tuple(_literal(part.strip()) for part in text.split(",") if part.strip())
    return value


def _parse_as(text: str, hint: Any, name: str) -> Any:
    """Parse `text` as a value of the type `hint`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    only = [kind for kind in kinds if kind is not type(None)]
    if only == [str]:
        return text
    if len(only) == 1 and only[0] in (bool, int, float):
        return checked(_parse(text, only[0], name), hint, name)
    value = as_given(_literal(text))
    if str in only and not isinstance(value, tuple):
        return text
    if all(tuple in (kind, typing.get_origin(kind)) for kind in only):
        value = _listed(text, value, of_texts=typing.get_args(only[0])[:1] == (str,))
    return checked(value, hint, name)


def _listed(text: str, value: Any, of_texts: bool) -> tuple[Any, ...]:
    """Parse `text`, whose literal is `value`, as a tuple; one element or unquoted names are accepted."""
    if isinstance(value, tuple) and not (of_texts and any(not isinstance(each, str) for each in value)):
        return value
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    return tuple(part if of_texts else _literal(part) for part in parts if part)


def _literal(text: str) -> Any:
    """Parse a Python literal; any other text is returned as it is, so that names need no quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
