"""Printing of a complete configuration, and of the reference of every key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from spectralmoe_jax.config.adapters import ADAPTER_PRESETS, ADAPTERS, OwnAdapterConfig, SpectralMoEConfig
from spectralmoe_jax.config.fields import (
    Section,
    hints_of,
    is_required,
    keys_of,
    section_class,
    type_name,
)
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.model import HEADS, DepthConfig, ModelConfig, VisualConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.config.schema import (
    DEFAULT_RULES,
    AugmentConfig,
    ClassesConfig,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ParallelConfig,
    PartRates,
    RunConfig,
    StatedAcquisition,
    StatedValues,
    StatedWavelengths,
    TrainConfig,
)

_HEAD = '''"""The complete configuration of {name}: every key with its value.

A comment gives the origin of each value that the configuration does not set.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
'''


def show_config(config: Configuration) -> str:
    """Format a configuration as a Python file that gives every key, with defaults and presets filled in.

    Args:
      config: a configuration in any form of `config.load.Configuration`.

    Raises:
      UserError: the configuration is not valid.
    """
    read = as_run_config(config)
    lines = [f"    {line}".rstrip() for line in _section_lines("config", read, read.given)]
    return _HEAD.format(name=read.name) + "\n".join(lines) + "\n    return config\n"


def _section_lines(place: str, section: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the assignments of a section: its values, then its subsections."""
    if isinstance(section, OwnAdapterConfig):
        yield from (
            f"{place}.{key} = {value!r}" for key, value in {"kind": section.kind, **section.settings}.items()
        )
        return
    if place in ("config.model.adapter", "config.model.head"):
        yield _line(f"{place}.kind", section.kind, "" if "kind" in given else "default")
    inner = []
    for name in keys_of(type(section)):
        value = getattr(section, name)
        if name == "streams":
            continue
        if isinstance(value, Section | OwnAdapterConfig):
            inner.append(name)
        else:
            yield _line(f"{place}.{name}", value, _origin(section, name, given))
    for name in inner:
        own = given.get(name)
        yield ""
        yield f"{place}.{name} = ConfigDict()"
        yield from _section_lines(
            f"{place}.{name}", getattr(section, name), own if isinstance(own, Mapping) else {}
        )
    if isinstance(section, RunConfig) and section.streams:
        yield ""
        yield f"{place}.streams = ConfigDict({dict(given['streams'])!r})"


def _line(key: str, value: Any, origin: str) -> str:
    return f"{key} = {value!r}" + (f"  # {origin}" if origin else "")


def _origin(section: Any, name: str, given: Mapping[str, Any]) -> str:
    """Return the origin of a value for a comment; empty for a value that the configuration gives."""
    if given.get(name) is not None or (name in given and getattr(section, name) is None):
        return ""
    row: Mapping[str, Any] = {}
    if isinstance(section, VisualConfig | SpectralMoEConfig) and section.preset is not None:
        row = (PRESETS if isinstance(section, VisualConfig) else ADAPTER_PRESETS)[section.preset]
    return f"preset {section.preset}" if name in row else "default"


_INTRODUCTION = """# Configuration reference

A configuration is a Python file whose `get_config()` returns an `ml_collections.ConfigDict`; the shipped
ones are in `configs/`. It sets the keys that matter for it; all others have the defaults below. Any key can
be set on the command line, whether or not the file sets it:

```
spectralmoe train --config configs/dubai.py --config.train.steps=100 --workdir runs/dubai
```

`spectralmoe config FILE` prints a complete configuration, every key with its value. This page is generated
from the code: `spectralmoe config --reference > docs/configuration.md`.

Strings need no quotes on the command line; tuples are written `a,b,c` or `(1,2)`; `none` unsets a key that
may be none.
"""

_SECTIONS: tuple[tuple[str, str, type], ...] = (
    ("config", "The run", RunConfig),
    ("config.classes", "Classes", ClassesConfig),
    ("config.data", "Data", DataConfig),
    ("config.augment", "Augmentation", AugmentConfig),
    ("config.model", "Model", ModelConfig),
    ("config.model.visual", "Visual encoder", VisualConfig),
    ("config.model.depth", "Depth encoder", DepthConfig),
)
_LATER: tuple[tuple[str, str, type], ...] = (
    ("config.loss", "Loss", LossConfig),
    ("config.train", "Training", TrainConfig),
    ("config.train.lr_factors", "Learning rates by part", PartRates),
    ("config.evaluate", "Evaluation and prediction", EvaluateConfig),
    ("config.parallel", "Several devices", ParallelConfig),
    ("config.stated_wavelengths", "Stated wavelengths", StatedWavelengths),
    ("config.stated_acquisition", "Stated acquisition", StatedAcquisition),
    ("config.stated_values", "Stated values", StatedValues),
)

_STREAMS = """## Several sensors in one run: `config.streams`

Each section of `config.streams` is a further stream of batches, under a name of your choice. It contains the
keys in which the stream differs from the rest of the configuration (bands, sensor, data, augment,
`model.pixel_mean`, ...), and its `weight`, the share of its batches. Classes and architecture are those of
the run.

```python
landsat = ConfigDict({"weight": 0.5, "sensor": "landsat8", "bands": ("blue", "green", "red", "nir")})
landsat.data = ConfigDict({"root": "data/landsat"})
landsat.model = ConfigDict({"pixel_mean": (0.1, 0.1, 0.1, 0.3), "pixel_std": (0.1, 0.1, 0.1, 0.2)})
config.streams = ConfigDict({"landsat": landsat})
```
"""


def reference() -> str:
    """Return the page `docs/configuration.md`: each key with type, default, meaning and allowed values."""
    parts = [_INTRODUCTION]
    parts += [_page_section(*section) for section in _SECTIONS]
    parts += [_kinds("config.model.adapter", "Adapter", ADAPTERS), _kinds("config.model.head", "Head", HEADS)]
    parts += [_page_section(*section) for section in _LATER[:-1]]
    parts += [_STREAMS, _page_section(*_LATER[-1]), _presets()]
    return "\n".join(parts)


def _page_section(place: str, title: str, cls: type) -> str:
    names = [name for name in keys_of(cls) if cls is not DepthConfig or name not in keys_of(VisualConfig)]
    more = ""
    if cls is DepthConfig:
        more = "\nIt has every key of `config.model.visual`, and:\n"
    return f"## {title}: `{place}`\n\n{_summary(cls)}\n{more}\n{_table(cls, names)}"


def _summary(cls: type) -> str:
    """Return the first paragraph of a section's docstring, without the section's place."""
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    head, colon, rest = text.partition(": ")
    if not (colon and head.startswith("`config.")):
        return text
    return f"{rest[0].upper()}{rest[1:]}"


def _kinds(place: str, title: str, kinds: Mapping[str, type]) -> str:
    default = next(iter(kinds))
    others = " or your own, as `module:Class` or `file.py:Class` (adding_an_adapter.md)"
    listed = ", ".join(f"`{kind}`" for kind in kinds)
    text = [
        f"## {title}: `{place}`\n",
        f"`{place}.kind` is one of {listed}{',' + others if kinds is ADAPTERS else ''}; default `{default}`. "
        "The other keys depend on it.\n",
    ]
    for kind, cls in kinds.items():
        text.append(f"### `{kind}`\n\n{_summary(cls)}\n")
        if keys_of(cls):
            text.append(_table(cls, list(keys_of(cls))))
    return "\n".join(text)


def _table(cls: type, names: list[str]) -> str:
    rows = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    fields, hints = keys_of(cls), hints_of(cls)
    for name in names:
        field = fields[name]
        allowed = field.metadata.get("allowed")
        doc = field.metadata["doc"] + (f" Allowed: {allowed.words}." if allowed else "")
        read_by = field.metadata.get("read_by")
        doc += f" Read by {', '.join(read_by)}." if read_by else ""
        is_section = "kinds" in field.metadata or name == "streams" or section_class(hints[name])
        kind = "section" if is_section else type_name(hints[name]).removeprefix("a ")
        cells = (f"`{name}`", kind, _default(field, bool(is_section)), doc)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(field: dataclasses.Field[Any], is_section: bool) -> str:
    if is_required(field):
        return "required"
    if field.default is None:
        return "none"
    return "" if is_section or field.name == "rules" else f"`{field.default!r}`"


def _presets() -> str:
    rows = [
        "## Presets",
        "",
        "### Encoders",
        "",
        "`config.model.visual.preset` and `config.model.depth.preset`:",
        "",
    ]
    rows += [f"- `{name}`: {_listed(fields)}" for name, fields in PRESETS.items()]
    rows += [
        "",
        "### Switches of the adapter `spectral_moe`",
        "",
        "| Switch | `paper` | `released` |",
        "|---|---|---|",
    ]
    switches = dict.fromkeys(key for fields in ADAPTER_PRESETS.values() for key in fields)
    for switch in switches:
        values = [ADAPTER_PRESETS[name].get(switch) for name in ("paper", "released")]
        rows.append(f"| `{switch}` | " + " | ".join("" if v is None else f"`{v!r}`" for v in values) + " |")
    rows += ["", "### Rules of the optimizer", "", "The default of `config.train.rules`:", ""]
    rows += [
        f"- `{pattern}`: weight decay x {decay:g}, learning rate x {rate:g}"
        for pattern, decay, rate in DEFAULT_RULES
    ]
    return "\n".join(rows) + "\n"


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in fields.items())
