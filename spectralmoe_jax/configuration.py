"""Configurations: reading, overriding, checking and storing them.

A configuration is a Python file whose `get_config()` (or `get_config(args)`)
returns an `ml_collections.ConfigDict`. Whatever is wrong with it is said in one
line that names the full key, as in `config.train.batch_size`.
"""

import ast
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from spectralmoe_jax.config_files import call_in_file, find_file
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import replacing
from spectralmoe_jax.optional_keys import CHOICES, keys_of_kind, optional_in, optional_key

T = TypeVar("T")


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads `FILE[:args]` and applies overrides.

    Args:
      spec: path of a configuration file, optionally followed by `:args`, which
        `get_config` receives as a string. A path that does not exist here is
        looked up by name among the shipped configurations.
      overrides: dotted assignments such as `--config.train.batch_size=4`.

    Returns:
      A locked ConfigDict in which every list has become a tuple.

    Raises:
      UserError: the file is missing or broken, a key is unknown or a value has
        the wrong type.
    """
    file, _, arguments = spec.partition(":")
    config = _call_get_config(find_file(file, "configs"), arguments)
    return apply_overrides(config, overrides)


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A locked copy of `config` with assignments `--config.a.b=value` applied in order.

    A value is read by the type of what it replaces, or by that of `optional_keys.OPTIONAL`: tuples as Python
    literals or separated by commas, booleans as true or false; `none` unsets a section, a tuple or a number.
    Of the optional keys only those that are assigned are in the result.

    A section that gets another `kind` loses the keys that the new kind does not have and keeps the others;
    of a user's own kind, whose keys are not known here, it loses all. This comes before all other
    assignments, which are held against the new kind.

    Raises:
      UserError: names the full key and the nearest keys, or the type it takes; or a number is not finite.
    """
    config = ConfigDict(_frozen(config.to_dict()))
    kinds = _change_kinds(config, overrides)
    for override in overrides:
        name, equals, text = override.removeprefix("--").partition("=")
        require(bool(equals), name, "needs a value, as in --config.train.steps=100")
        keys = name.split(".")
        require(keys[0] == "config" and len(keys) > 1, name, "an override starts with --config.")
        section = config
        for depth, key in enumerate(keys[1:-1], start=2):
            section = _subsection(section, key, keys[1 : depth - 1], kinds)
            if not isinstance(section, ConfigDict):
                raise UserError(
                    f"{'.'.join(keys[:depth])} is {section!r}, not a section: it has no key {keys[-1]!r}"
                )
        _require_key(section, keys[-1], keys[1:-1], kinds)
        optional = optional_key(_plain(keys[1:]), kinds)
        with section.ignore_type():
            section[keys[-1]] = (
                _parse(text, section.get_type(keys[-1]), name)
                if optional is None
                else _parse_as(text, optional.kind, name)
            )
    for name, value in flatten(config, "config").items():
        require(_is_finite(value), name, f"takes finite numbers, not {value!r}")
    return config.lock()


def _change_kinds(config: ConfigDict, overrides: Sequence[str]) -> dict[str, str]:
    """Drops, in place, what sections with a new kind cannot keep; returns the kind of every section that is
    of another kind than the default."""
    given = dict(override.removeprefix("--").partition("=")[::2] for override in overrides)
    kinds = {}
    for place, choice in CHOICES.items():
        section: Any = config
        for key in place.split("."):
            section = section.get(key) if isinstance(section, ConfigDict) else None
        was = section.get("kind", choice.default) if isinstance(section, ConfigDict) else choice.default
        kind = given.get(f"config.{place}.kind", was)
        if kind != choice.default:
            kinds[place] = kind
        if kind != was and isinstance(section, ConfigDict):
            known = keys_of_kind(place, kind) or {}
            for key in [key for key in section if key != "kind" and key not in known]:
                del section[key]
    return kinds


def require(condition: bool, key: str, message: str) -> None:
    """Raises a UserError `KEY: message` unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: {message}")


def choose(key: str, value: T, allowed: Iterable[T]) -> T:
    """Returns `value` if it is among the allowed ones, else a UserError that lists them."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise UserError(f"{key} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
    return value


def from_config(cls: type[T], section: ConfigDict, prefix: str) -> T:
    """Builds a dataclass from a configuration section, strictly.

    Annotations decide what is allowed: int, float (takes an int too), bool, str,
    tuples, `X | None`, `Literal[...]` for a choice, `Any`, and other dataclasses
    for subsections.

    Args:
      cls: a dataclass; fields without a default must be in the section.
      section: the section, whose keys must all be fields of `cls`.
      prefix: where the section stands, for example "train".

    Raises:
      UserError: unknown key, missing key or value of another type, named in full
        as `config.<prefix>.<key>`.
    """
    assert dataclasses.is_dataclass(cls)
    place = f"config.{prefix}" if prefix else "config"
    require(isinstance(section, ConfigDict), place, f"has to be a section, not {section!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in section:
        if key not in fields:
            raise _unknown_key(place, key, fields)
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in section:
            values[name] = _checked(section[name], hints[name], f"{place}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{place}.{name} is missing; it is needed, of type {_type_name(hints[name])}")
    return typing.cast(T, cls(**values))


def save_config(config: ConfigDict, path: str | os.PathLike[str]) -> None:
    """Writes the configuration as JSON, whole or not at all."""
    with replacing(Path(path)) as aside:
        aside.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(path: str | os.PathLike[str]) -> ConfigDict:
    """Reads what `save_config` wrote; the result equals the saved configuration and is locked.

    Raises:
      UserError: the file is missing or is not such a JSON file.
    """
    try:
        values = json.loads(Path(path).read_text())
        return ConfigDict(_frozen(values)).lock()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a folder that `spectralmoe train` wrote") from None
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a stored configuration: {_one_line(error)}") from None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key: `{'train.steps': 100, ...}`; an empty section stands as `{}`."""
    if not isinstance(config, ConfigDict | dict) or (prefix and not config):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key in config:
        flat |= flatten(config[key], f"{prefix}.{key}" if prefix else str(key))
    return flat


def _call_get_config(file: Path, arguments: str) -> ConfigDict:
    config = call_in_file(file, "get_config", arguments)
    require(
        isinstance(config, ConfigDict), str(file), "get_config() has to return an ml_collections.ConfigDict"
    )
    return config


def _plain(keys: Sequence[str]) -> str:
    """The dotted key, empty for the top; of one in `streams.NAME`, that of which it is an override."""
    return ".".join(keys[2:] if len(keys) > 1 and keys[0] == "streams" else keys)


def _require_key(section: ConfigDict, key: str, place: Sequence[str], kinds: Mapping[str, str]) -> None:
    plain = _plain(place)
    known = {*section, *optional_in(plain, kinds)}
    is_own = plain in kinds and keys_of_kind(plain, kinds[plain]) is None
    if key not in known and not is_own:
        raise _unknown_key(".".join(("config", *place)), key, known)


def _subsection(section: ConfigDict, key: str, place: Sequence[str], kinds: Mapping[str, str]) -> Any:
    """What stands under `key`; an empty section where one may stand and does not."""
    _require_key(section, key, place, kinds)
    if key not in section:
        section[key] = ConfigDict()
    return section[key]


def _unknown_key(place: str, key: str, allowed: Collection[str]) -> UserError:
    near = difflib.get_close_matches(key, list(allowed), n=3, cutoff=0.5)
    if near:
        return UserError(f"{place}.{key} is not a known key; nearest: {', '.join(near)}")
    return UserError(f"{place}.{key} is not a known key; allowed: {', '.join(sorted(allowed)) or 'none'}")


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _parse(text: str, kind: type, name: str) -> Any:
    """The value that `text` stands for where a value of type `kind` stood."""
    if kind is str:
        return text
    if text.lower() == "none" and kind is not bool:
        return None
    if kind is bool:
        choose(name, text.lower(), _BOOLEANS)
        return _BOOLEANS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise UserError(f"{name}: takes {_type_name(kind)}, not {text!r}") from None
    if issubclass(kind, ConfigDict):
        raise UserError(f"{name} is a section; set one of its keys or none, not {text!r}")
    value = _frozen(_literal(text))
    if kind is tuple and not isinstance(value, tuple):
        return tuple(_literal(part.strip()) for part in text.split(",") if part.strip())
    return value


def _parse_as(text: str, kind: Any, name: str) -> Any:
    """The value that `text` stands for where the annotation `kind` says what is allowed."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    only = [each for each in kinds if each is not type(None)]
    if only == [str]:
        return text
    if len(only) == 1 and only[0] in (bool, int, float):
        return _checked(_parse(text, only[0], name), kind, name)
    value = _frozen(_literal(text))
    if str in only and not isinstance(value, tuple):
        return text
    if all(tuple in (each, typing.get_origin(each)) for each in only):
        value = _listed(text, value, of_texts=typing.get_args(only[0])[:1] == (str,))
    return _checked(value, kind, name)


def _listed(text: str, value: Any, of_texts: bool) -> tuple[Any, ...]:
    """The tuple that `text` means, `value` being its literal: of one element, or of bare names, too."""
    if isinstance(value, tuple) and not (of_texts and any(not isinstance(each, str) for each in value)):
        return value
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    return tuple(part if of_texts else _literal(part) for part in parts if part)


def _literal(text: str) -> Any:
    """A Python literal, or the text itself where it is none: names need no quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` if it is what the annotation allows; ints become floats where floats are wanted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        return choose(key, value, arguments)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        if len(kinds) == 1:
            return _checked(value, kinds[0], key)
        fitting = [kind for kind in kinds if isinstance(value, typing.get_origin(kind) or kind)]
        require(bool(fitting), key, f"takes {_type_name(hint)}, not {value!r}")
        return _checked(value, fitting[0], key)
    if dataclasses.is_dataclass(hint):
        return from_config(typing.cast(type, hint), value, key.removeprefix("config."))
    if hint is tuple or origin is tuple:
        return _checked_tuple(value, arguments, hint, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(_is_finite(value), key, f"takes finite numbers, not {value!r}")
    if hint is float and is_number:
        return float(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    require(fits, key, f"takes {_type_name(hint)}, not {value!r}")
    return value


def _checked_tuple(value: Any, arguments: tuple[Any, ...], hint: Any, key: str) -> tuple[Any, ...]:
    require(isinstance(value, tuple | list), key, f"takes {_type_name(hint)}, not {value!r}")
    if not arguments:
        return tuple(value)
    kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    require(len(kinds) == len(value), key, f"takes {len(kinds)} elements, not {len(value)}")
    return tuple(
        _checked(v, kind, f"{key}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _is_finite(value: Any) -> bool:
    """Whether a value, or everything in a tuple, is finite or no number: NaN passes comparisons unnoticed."""
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _type_name(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "none",
    }
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in typing.get_args(hint))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def _frozen(value: Any) -> Any:
    """The same nested values with every list a tuple: JSON and literals know lists only."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
