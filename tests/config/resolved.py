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

from data_pipelines.transforms import visible_bands
from spectralmoe_jax.ablation.grid import load_grid
from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.models.build import segmenter_config

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
    "frozen",
    "gating",
    "peers",
    "rank",
    "semantics",
    "switches",
    "tokens",
    "top_k",
)
_ENCODER = {
    "normalise_maps": False, "stored_as": "sensor", "month": 0, "resolution": 0.0, "ndvi": True,
    "window_overlap": 0, "channels": [], "bandwidths": [], "location": None, "days": None, "eight_bit": False,
    "generator_width": 128,
}  # fmt: skip
_ENCODERS = ("visual", "depth")
NEWER = {
    **{f"segmenter.{encoder}.{key}": value for encoder in _ENCODERS for key, value in _ENCODER.items()},
    "data.check_values": "stop",
    "augment.crop_on_labels": 0.0, "loss.unlabelled": "negative", "loss.class_weights": None,
    "segmenter.adapter.token_groups": "mean", "segmenter.adapter.zero_start": False,
    "segmenter.head.labels": "pixels", "evaluate.tta": "none",
    "model.weights_head": "same",
    "train.schedule": "poly", "train.lr_factors.visual": 1.0, "train.lr_factors.adapter": 1.0,
    "train.lr_factors.head": 1.0, "train.head_first_steps": 0, "train.head_start": "random",
    "train.probe_tiles": 64, "train.probe_penalty": 1e-3, "train.patience": None, "train.selection": "miou",
    "train.accumulate": 1, "train.ema": None, "train.trackers": [],
}  # fmt: skip
"""Keys that are newer than the snapshots, with the value that runs had before; left out where it is that."""

BASES = ("", "configs/dubai.py", "configs/fbp_cross_sensor.py")
"""The bases of each grid; the empty one is the grid's own."""

UNFIT = {("dubai_size", "configs/fbp_cross_sensor.py")}  # its widths are those of a small encoder

Values = dict[str, Any]
"""Plain values by dotted key."""


def written(config: RunConfig) -> Values:
    """What the file sets, by dotted key."""
    return _plain(flatten(config.given))


def resolved(config: RunConfig) -> Values:
    """What a run is built from, every default filled in."""
    photometric = visible_bands(config.bands, config.sensor) if config.augment.photometric else None
    augment = dataclasses.asdict(config.augment) | {
        "crop": config.data.crop,
        "photometric_bands": photometric,
    }
    del augment["photometric"]
    data = dataclasses.asdict(config.data)
    # of the keys that not every kind of data has, the snapshot holds those that are given
    for key in ("root", "image_glob", "mask_template"):
        if key not in config.given["data"]:
            del data[key]
    segmenter = dataclasses.asdict(segmenter_config(config))
    # numbers are floats now; the snapshot has whole ones as they were written
    for key in ("pixel_mean", "pixel_std"):
        if key in config.given["model"]:
            assert segmenter[key] == config.given["model"][key]
            segmenter[key] = config.given["model"][key]
    sections = {
        "segmenter": segmenter,
        "data": data,
        "augment": augment,
        "loss": config.loss,
        "train": config.train,
        "parallel": config.parallel,
        "evaluate": config.evaluate,
    }
    found = _plain(
        {
            f"{section}.{key}": value
            for section, values in sections.items()
            for key, value in flatten(
                dataclasses.asdict(values) if dataclasses.is_dataclass(values) else values
            ).items()
        }
    )
    kept = {key: value for key, value in found.items() if key not in NEWER or value != NEWER[key]}
    if not any(key.startswith("segmenter.adapter.") for key in kept):
        kept["segmenter.adapter"] = {}
    return dict(sorted(kept.items()))


def both(config: RunConfig) -> dict[str, Values]:
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
