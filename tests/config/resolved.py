"""Resolved values of the shipped configurations and grids: what a run is built from.

`written` and `resolved` are the only functions that read a configuration. The stored values in `snapshots/`
are older than any change of how it is read, so they stay as they are.

  python -m tests.config.resolved     stores the values of new configurations; stored files are left alone
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.transforms import Augment, visible_bands
from spectralmoe_jax.ablation.grid import load_grid
from spectralmoe_jax.config.schema import EvaluateConfig, LossConfig, TrainConfig
from spectralmoe_jax.configuration import flatten, from_config, load_config
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.optional_keys import OPTIONAL
from spectralmoe_jax.parallel.mesh import parallel_settings

FOLDER = Path(__file__).parent / "snapshots"

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "cloud_shadow": (),
    "dubai": (),
    "enmap_landcover": (),
    "fbp_cross_geospatial": ("experts=1", "experts=3", "dofa", "dofa,experts=3"),
    "fbp_cross_sensor": (
        "experts=1",
        "experts=3",
        "dofa",
        "dofa,experts=3",
        "dinov3_7b",
        "dinov3_7b,experts=3",
    ),
    "flair": ("experts=1", "experts=3", "dofa", "dofa,experts=3"),
    "loveda": ("experts=1", "experts=3", "experts=6"),
    "open_earth_map": ("experts=1", "experts=3", "experts=6"),
    "potsdam_vaihingen": ("experts=1", "experts=3"),
    "quickstart": (),
    "sentinel2_landcover": ("raster", "polygons"),
    "whu_ohs": ("experts=1", "experts=3"),
}
"""The arguments of each shipped configuration, besides none."""

GRIDS = (
    "backbones",
    "balance_weight",
    "components",
    "depth_encoders",
    "dubai_size",
    "experts",
    "gating",
    "peers",
    "rank",
    "semantics",
    "switches",
    "tokens",
    "top_k",
)
BASES = ("", "configs/dubai.py", "configs/fbp_cross_sensor.py")
"""The bases of each grid; the empty one is the grid's own."""

UNFIT = {("dubai_size", "configs/fbp_cross_sensor.py")}  # its widths are those of a small encoder

Values = dict[str, Any]
"""Plain values by dotted key."""


def written(config: ConfigDict) -> Values:
    """What the file sets, by dotted key."""
    return _plain(flatten(config))


def resolved(config: ConfigDict) -> Values:
    """What a run is built from, every default filled in."""

    def filled(section: str) -> Values:
        defaults = {
            name.removeprefix(f"{section}."): key.default
            for name, key in OPTIONAL.items()
            if name.startswith(f"{section}.")
        }
        return defaults | config[section].to_dict()

    augment = filled("augment")
    photometric = augment.pop("photometric")
    bands = visible_bands(config.bands, config.get("sensor")) if photometric else None
    sections = {
        "segmenter": segmenter_config(config),
        "data": filled("data"),
        "augment": Augment(crop=config.data.crop, photometric_bands=bands, **augment),
        "loss": from_config(LossConfig, config.loss, "loss"),
        "train": from_config(TrainConfig, config.train, "train"),
        "parallel": parallel_settings(config),
        "evaluate": from_config(EvaluateConfig, config.evaluate, "evaluate"),
    }
    return _plain(
        {
            f"{section}.{key}": value
            for section, values in sections.items()
            for key, value in flatten(
                dataclasses.asdict(values) if dataclasses.is_dataclass(values) else values
            ).items()
        }
    )


def both(config: ConfigDict) -> dict[str, Values]:
    """The values of a configuration as they are stored."""
    return {"written": written(config), "resolved": resolved(config)}


def of_configuration(name: str, folder: str | Path = "configs") -> dict[str, Any]:
    """The values of a configuration, and for each argument where they differ."""
    base = both(load_config(f"{folder}/{name}.py"))
    others = {
        argument: _differences(both(load_config(f"{folder}/{name}.py:{argument}")), base)
        for argument in CONFIGURATIONS[name]
    }
    return {"": base, **others}


def of_grid(name: str, folder: str | Path = "configs/ablations") -> dict[str, Any]:
    """For each base of a grid: its seeds, its reference, and where each variant differs from the base."""
    file = f"{folder}/{name}.py"
    return {base: _of_grid(file, base) for base in BASES if (name, base) not in UNFIT}


def _of_grid(file: str, base: str) -> dict[str, Any]:
    grid = load_grid(file, base)
    start = both(load_config(grid.base))
    variants = {
        variant: _differences(both(grid.config(variant, grid.seeds[0])), start) for variant in grid.variants
    }
    return {
        "base": grid.base,
        "seeds": list(grid.seeds),
        "reference": grid.reference,
        "variants": variants,
    }


def snapshots() -> Iterator[tuple[Path, Any]]:
    """Every stored file and what has to be in it."""
    for name in CONFIGURATIONS:
        yield FOLDER / f"{name}.json", of_configuration(name)
    for name in GRIDS:
        yield FOLDER / "ablations" / f"{name}.json", of_grid(name)


def text(values: Mapping[str, Any], indent: str = "") -> str:
    """JSON with one value a line; 1 and 1.0 read differently."""
    inner = indent + " "
    lines = [
        f"{inner}{json.dumps(key)}: "
        + (text(value, inner) if isinstance(value, Mapping) and value else json.dumps(value))
        for key, value in values.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _differences(values: dict[str, Values], base: dict[str, Values]) -> dict[str, Any]:
    """What is set and what is dropped in `values`, compared with `base`."""
    found: dict[str, Any] = {}
    for part, those in values.items():
        before = base[part]
        found[part] = {k: v for k, v in those.items() if k not in before or repr(v) != repr(before[k])}
        if dropped := [key for key in before if key not in those]:
            found[f"{part}, dropped"] = dropped
    return found


def _plain(values: Any) -> Any:
    """The same values as JSON reads them back, keys sorted."""
    return dict(sorted(json.loads(json.dumps(values)).items()))


if __name__ == "__main__":
    for path, values in snapshots():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text(values) + "\n")
