"""Grids of runs: named variants of one configuration and seeds, read from a Python file.

`Grid` says what is compared, `load_grid` reads one, and `grid_runs` lists its runs. Below them stand the
helpers by which grid files adapt to the configuration that they vary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectralmoe_jax.config.adapters import ADAPTER_PRESETS
from spectralmoe_jax.config.given import config_dict
from spectralmoe_jax.config.load import Configuration, as_run_config, load_given
from spectralmoe_jax.config.overrides import apply_overrides, apply_settings
from spectralmoe_jax.config.python_files import call_in_file, find_file
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value, choose, require
from spectralmoe_jax.models.build import segmenter_config

Settings = Mapping[str, Any]
"""Values by dotted key, without `config.`."""

PAPER: dict[str, Any] = {"model.adapter.preset": "paper"} | {
    f"model.adapter.{switch}": None for switch in (*ADAPTER_PRESETS["paper"], "fusion_value")
}
"""Settings of the publication's reading of the method, whatever the base sets."""

_LONGEST_FOLDER = 120  # characters; names of files are limited
_PUBLISHED = {(384, 12): "s", (768, 12): "b", (1024, 24): "l"}


@dataclasses.dataclass(frozen=True)
class Grid:
    """Named variants of one configuration, each trained with every seed.

    Attributes:
      base: the configuration to vary, `FILE[:args]`.
      variants: settings by name of the variant: dotted keys without `config.` and their values, such as
        `{"model.adapter.num_experts": 3}`; a dictionary as a value replaces a whole section, None unsets.
      reference: name of the variant that the others are compared with.
      common: settings of all variants; a variant's own win over them.
      seeds: seeds of the runs of each variant.
      title: title of the table, one line.
      seeded: further keys that get the run's seed, such as `data.holdout_seed`, so that the spread over seeds
        includes the choice of held-out images. They win over the command line.
    """

    base: str
    variants: Mapping[str, Settings]
    reference: str
    common: Settings = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    title: str = ""
    seeded: Sequence[str] = ()

    def __post_init__(self) -> None:
        require(bool(self.variants), "variants", "a grid needs at least one")
        choose("reference", self.reference, self.variants)
        seeds = tuple(self.seeds)
        whole = all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            raise bad_value("seeds", self.seeds, "must be different whole numbers from 0")
        folders: dict[str, str] = {}
        for name in self.variants:
            if not isinstance(name, str):
                raise bad_value("variants", name, "must be named by a string")
            other = folders.setdefault(folder_of(name), name)
            require(other == name, "variants", f"{name!r} and {other!r} would share a folder: rename one")

    def config(self, variant: str, seed: int, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the configuration of one run.

        Args:
          variant: name of a variant.
          seed: the run's seed.
          overrides: of the command line; they win over `common`, and the variant's own settings over them.

        Raises:
          UserError: names the variant and the key that is wrong.
        """
        try:
            given = apply_overrides(apply_settings(load_given(self.base), self.common), overrides)
            seeds = dict.fromkeys(("seed", *self.seeded), seed)
            given = apply_settings(given, {**self.variants[variant], **seeds})
            return RunConfig.from_given(given)
        except UserError as problem:
            raise UserError(f"variant {variant!r}: {problem}") from None


class GridRun(NamedTuple):
    """One run of a grid.

    Attributes:
      number: number from 0, over variants and within them over seeds.
      variant: name of its variant.
      seed: its seed.
      folder: folder of the run.
      config: its configuration.
    """

    number: int
    variant: str
    seed: int
    folder: Path
    config: RunConfig

    @property
    def name(self) -> str:
        """The run's name in messages and `timings.json`."""
        return f"{self.variant}, seed {self.seed}"


def grid_runs(grid: Grid, workdir: Path, overrides: Sequence[str] = ()) -> list[GridRun]:
    """List every run of a grid, with its folder below `workdir`.

    Raises:
      UserError: a variant is not a valid configuration; raised before anything is run.
    """
    runs: list[GridRun] = []
    for variant in grid.variants:
        for seed in grid.seeds:
            config = grid.config(variant, seed, overrides)
            folder = workdir / "runs" / folder_of(variant) / f"seed{seed}"
            runs.append(GridRun(len(runs), variant, seed, folder, config))
        try:
            segmenter_config(config)
        except UserError as problem:
            raise UserError(f"variant {variant!r}: {problem}") from None
    return runs


def folder_of(variant: str) -> str:
    """Return the folder name of a variant: unusual characters become underscores, and a long name is cut."""
    name = re.sub(r"[^A-Za-z0-9.+=-]+", "_", variant).strip("_.") or "_"
    if len(name) <= _LONGEST_FOLDER:
        return name
    code = hashlib.sha256(variant.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{name[: _LONGEST_FOLDER - 9]}-{code}"


def load_grid(spec: str, base: str | None = None, seeds: int | None = None) -> Grid:
    """Read `FILE[:BASE]`: call `get_grid(base)` of a Python file.

    Args:
      spec: path of the file, or the name of a shipped one; after a colon the configuration to vary.
      base: configuration to vary; wins over that of `spec`.
      seeds: number of seeds, from 0, instead of the grid's own.

    Raises:
      UserError: names the file and what is wrong with it.
    """
    file, _, argument = spec.partition(":")
    base = base or argument
    path = find_file(file, "configs.ablations", "grid")
    grid = call_in_file(path, "get_grid", base)
    require(isinstance(grid, Grid), str(path), "get_grid() has to return a spectralmoe_jax.ablation.Grid")
    if seeds is not None:
        if seeds < 1:
            raise bad_value("--seeds", seeds, "must be at least 1")
        grid = dataclasses.replace(grid, seeds=tuple(range(seeds)))
    return grid


class Sizes(NamedTuple):
    """Sizes of a visual encoder.

    Attributes:
      width: width of its tokens.
      layers: number of layers.
      heads: attention heads.
      patch_size: side of a patch in pixels.
      grid: tokens along an edge of a crop.
      published: its published size (s, b, l), or "".
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    grid: int
    published: str


def base_config(base: str) -> Any:
    """Return the ConfigDict of the configuration `FILE[:args]`; a bare name is a shipped one."""
    return config_dict(load_given(base))


def sizes_of(config: Configuration) -> Sizes:
    """Return the visual encoder's sizes, for an encoder in its place or beside it."""
    run = as_run_config(config)
    visual = run.model.visual
    published = _PUBLISHED.get((visual.width, visual.layers), "")
    grid = run.data.crop // visual.patch_size
    return Sizes(visual.width, visual.layers, visual.heads, visual.patch_size, grid, published)


def depth_encoder(config: Configuration) -> dict[str, Any]:
    """Return settings that give a configuration the depth modality.

    An existing depth encoder is kept. Otherwise a frozen one with random weights is added, of the visual
    encoder's sizes: enough to compare how modalities are gated and fused, not to measure what depth is worth.
    """
    use = {"model.adapter.use_depth": True}
    if as_run_config(config).model.depth is not None:
        return use
    return {"model.depth": random_encoder("dinov3", sizes_of(config)), **use}


def own_weights(encoder: Any) -> dict[str, str]:
    """Return the weights of an encoder's section by its preset, where it gives both."""
    encoder = encoder or {}
    return {encoder["preset"]: encoder["weights"]} if encoder.get("preset") and encoder.get("weights") else {}


def random_encoder(kind: str, sizes: Sizes) -> dict[str, Any]:
    """Return the section of an encoder of a family, in given sizes and without weights."""
    section = {
        "kind": kind,
        "width": sizes.width,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "patch_size": sizes.patch_size,
        "table_size": sizes.grid,
        "layer_scale": 1.0,
    }
    return section | ({"global_every": 2} if kind == "sam" else {})
