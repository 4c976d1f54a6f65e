"""Read configurations from files, apply overrides, and store configurations with a run.

A configuration is a Python file whose `get_config()` or `get_config(args)` returns an
`ml_collections.ConfigDict`. It is converted to nested dictionaries of what the user wrote, and these to a
`RunConfig`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    warn_once,
)
from spectralmoe_jax.config.model import HEADS
from spectralmoe_jax.config.own_code import require_allowed_code
from spectralmoe_jax.config.schema import DataConfig, RunConfig, assign
from spectralmoe_jax.errors import UserError, bad_value, choose, require
from spectralmoe_jax.files import atomic_write, read_json

# ml_collections is imported where it is used: the model and the step also run without it.
if typing.TYPE_CHECKING:
    from ml_collections import ConfigDict

Given = dict[str, Any]
"""What a user wrote: nested dictionaries, with every list as a tuple."""

Configuration: typing.TypeAlias = "RunConfig | ConfigDict | str"
"""Configuration as public functions accept it: a RunConfig, a ConfigDict, or `FILE[:args]`."""

CHOICES: dict[str, Mapping[str, type]] = {"model.adapter": ADAPTERS, "model.head": HEADS}
"""Sections whose keys depend on their `kind`; the first kind is the default."""


def load_config(spec: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `FILE[:args]` and apply overrides.

    Args:
      spec: path of a configuration file, optionally followed by `:args`, a string for `get_config`.
        A path that does not exist is looked up by name among the shipped configurations.
      overrides: dotted assignments such as `--config.train.batch_size=4`.

    Raises:
      UserError: the file is missing or broken, a key is unknown or missing, or a value is not allowed.
    """
    given = load_given(spec, overrides)
    require_read(given)
    return RunConfig.from_given(given)


def require_read(given: Mapping[str, Any], only: Sequence[str] | None = None) -> None:
    """Check that the kind of the data reads every key of `data` that is given, in each stream too.

    Args:
      given: the configuration.
      only: assignments such as `--config.data.tile=512`, whose keys alone are checked; a warning is logged
        of others. None to check all keys.

    Raises:
      UserError: it does not; names the key, the kind, and the kinds that read the key.
    """
    data = given.get("data")
    sections: dict[str, Any] = {"config.data": data}
    streams = given.get("streams")
    for name, stream in streams.items() if isinstance(streams, Mapping) else ():
        own = stream.get("data") if isinstance(stream, Mapping) else None
        if isinstance(own, Mapping) and isinstance(data, Mapping):
            sections[f"config.streams.{name}.data"] = {"kind": data.get("kind"), **own}
    assigned = {override.removeprefix("--").partition("=")[0] for override in only or ()}
    for place, section in sections.items():
        for key, kinds in unread_keys(DataConfig, section).items():
            problem = (
                f"{place}.{key}: data of the kind {section['kind']!r} does not read it, "
                f"{' and '.join(kinds)} {'do' if len(kinds) > 1 else 'does'}: leave it out, or choose "
                f"another {place}.kind"
            )
            if only is None or f"{place}.{key}" in assigned:
                raise UserError(problem)
            warn_once(f"ignored: {problem}")


def as_run_config(config: Configuration) -> RunConfig:
    """Convert a configuration in any form to a RunConfig.

    Raises:
      UserError: as in `load_config`.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, str):
        return load_config(config)
    given = given_of(config)
    require_read(given)
    return RunConfig.from_given(given)


def load_given(spec: str, overrides: Sequence[str] = ()) -> Given:
    """Read `FILE[:args]` and apply overrides, without building a RunConfig.

    Raises:
      UserError: the file is missing or broken, or an override is wrong.
    """
    from ml_collections import ConfigDict

    file, _, arguments = spec.partition(":")
    path = find_file(file, "configs")
    config = call_in_file(path, "get_config", arguments)
    if isinstance(config, RunConfig):  # the file starts from another one with `load_config`
        return apply_overrides(config.given, overrides)
    is_config = isinstance(config, ConfigDict)
    require(is_config, str(path), "get_config() has to return an ml_collections.ConfigDict")
    return apply_overrides(given_of(config), overrides)


def given_of(config: ConfigDict) -> Given:
    """Convert a ConfigDict to nested dictionaries."""
    return as_given(config.to_dict())


def config_dict(given: Mapping[str, Any]) -> ConfigDict:
    """Convert nested dictionaries to a locked ConfigDict."""
    from ml_collections import ConfigDict

    return ConfigDict(dict(given)).lock()


def as_given(value: Any) -> Any:
    """Return nested values as a configuration has them: lists as tuples, and paths as strings."""
    if isinstance(value, dict):
        return {key: as_given(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_given(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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


CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"
"""Names, in a run's folder, of the file with its configuration and of the folder with its checkpoints."""


def read_run_config(
    workdir: str | os.PathLike[str], overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Read the configuration stored in a run's folder, and apply overrides.

    Raises:
      UserError: as in `read_config`.
    """
    return read_config(Path(workdir) / CONFIG_FILE, overrides, allow_code)


def read_run_given(workdir: str | os.PathLike[str]) -> Given:
    """Read the configuration stored in a run's folder as nested dictionaries, not as a RunConfig.

    Raises:
      UserError: the folder holds no configuration.
    """
    return read_given(Path(workdir) / CONFIG_FILE)


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write what the user gave in a configuration as JSON; the file is never left incomplete."""
    with atomic_write(Path(path)) as aside:
        aside.write_text(json.dumps(config_dict(config.given).to_dict(), indent=2) + "\n", encoding="utf-8")


def read_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Read a file that `save_config` wrote, and apply overrides.

    Args:
      path: the file.
      overrides: from the command line.
      allow_code: whether the configuration may name code that is not in `overrides`; True where nothing is
        built from it.

    Raises:
      UserError: the file is missing or not a stored configuration, an override does not fit it, or it names
        code.
    """
    return stored_config(read_given(path), path, overrides, allow_code)


def stored_config(
    given: Given, place: object, overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Return a stored configuration with overrides; arguments as in `read_config`.

    It may hold keys that the kind of its data does not read.

    Raises:
      UserError: names the place and the key that is wrong; or it names code.
    """
    changed = apply_overrides(given, overrides)
    require_allowed_code(changed, place, overrides, allow_code)
    require_read(changed, overrides)
    try:
        return RunConfig.from_given(changed)
    except UserError as problem:
        if overrides:  # which may be what is wrong
            raise
        raise UserError(f"{place}: {problem}") from None


def read_given(path: str | os.PathLike[str]) -> Given:
    """Read a file that `save_config` wrote as nested dictionaries, not as a RunConfig.

    Raises:
      UserError: the file is missing or not a stored configuration.
    """
    remedy = "name a folder that `spectralmoe train` wrote, or restore its config.json"
    try:
        return as_given(read_json(Path(path), remedy))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy.partition(',')[0]}") from None


def flatten(given: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key, as in `{"train.steps": 100}`; an empty section is kept as `{}`."""
    if not isinstance(given, Mapping) or (prefix and not given):
        return {prefix: given}
    flat: dict[str, Any] = {}
    for key, value in given.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def shipped_files(package: str) -> dict[str, Path]:
    """Return the files shipped in the package `configs` or `configs.ablations`, by file name."""
    folders = importlib.import_module(f"spectralmoe_jax.{package}").__path__
    files = (file for folder in folders for file in sorted(Path(folder).glob("*.py")))
    return {file.name: file for file in files if file.name not in ("__init__.py", "common.py")}


def find_file(file: str, package: str, what: str = "configuration") -> Path:
    """Return the file at a path, or the shipped file of that name.

    Raises:
      UserError: there is no such file; lists the shipped ones.
    """
    if Path(file).is_file():
        return Path(file)
    shipped, name, folder = shipped_files(package), Path(file).name, package.replace(".", "/")
    is_bare = Path(file).parent in (Path("."), Path(folder))
    if is_bare and (found := shipped.get(name) or shipped.get(f"{name}.py")):
        return found
    listed = ", ".join(f"{folder}/{name}" for name in shipped) or "none"
    raise UserError(f"{what} {file} does not exist; shipped: {listed}")


def call_in_file(file: Path, function: str, argument: str = "") -> Any:
    """Run a Python file and return what one of its functions returns.

    Args:
      file: the file.
      function: name of the function.
      argument: passed to the function unless it is empty.

    Raises:
      UserError: the file is not Python, has no such function, or raises an error (names the line), or the
        function takes no argument.
    """
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"configuration {file} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        called = getattr(module, function, None)
        if called is None:
            raise UserError(f"configuration {file} has no function {function}()")
        takes_arguments = bool(inspect.signature(called).parameters)
        if argument and not takes_arguments:
            raise UserError(f"configuration {file} takes no arguments, but got {argument!r} after the colon")
        return called(argument) if argument else called()
    except UserError:
        raise
    except Exception as error:
        line = getattr(error, "lineno", None) or _line_in(file, error)
        where, said = f"{file}:{line}" if line else str(file), _one_line(error)
        raise UserError(f"configuration {where}: {type(error).__name__}: {said}") from error


def _line_in(file: Path, error: Exception) -> int | None:
    """Return the line of `file` where the error was raised or passed through, if any."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
