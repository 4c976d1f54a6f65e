"""Grids of variants and seeds, read from files, and helpers to write grid files with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectralmoe_jax.config.adapters import ADAPTER_PRESETS
from spectralmoe_jax.config.load import (
    Configuration,
    apply_overrides,
    apply_settings,
    as_run_config,
    call_in_file,
    config_dict,
    find_file,
    load_given,
)
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, choose, require
from spectralmoe_jax.models.build import segmenter_config

PAPER: dict[str, Any] = {"model.adapter.preset": "paper"} | {
    f"model.adapter.{switch}": None for switch in (*ADAPTER_PRESETS["paper"], "fusion_value")
}
"""Settings of the publication's reading: they unset every switch that a configuration sets itself."""


class Sizes(NamedTuple):
    """Sizes of a visual encoder.

    Attributes:
      width: of the tokens.
      layers: transformer blocks.
      heads: attention heads.
      patch_size: pixels along a patch's edge.
      grid: tokens along an edge of a crop.
      published: the published size, s, b or l; "" for another.
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    grid: int
    published: str


_PUBLISHED = {(384, 12): "s", (768, 12): "b", (1024, 24): "l"}


def base_config(base: str) -> Any:
    """Read the configuration that a grid varies.

    Args:
      base: `FILE[:args]`; a bare name is a shipped one.

    Returns:
      The keys that the file gives, as a locked dictionary of `ml_collections`.
    """
    return config_dict(load_given(base))


def sizes_of(config: Configuration) -> Sizes:
    """Return the sizes of an encoder that stands in the place of the visual one, or beside it."""
    run = as_run_config(config)
    visual = run.model.visual
    published = _PUBLISHED.get((visual.width, visual.layers), "")
    grid = run.data.crop // visual.patch_size
    return Sizes(visual.width, visual.layers, visual.heads, visual.patch_size, grid, published)


def depth_encoder(config: Configuration) -> dict[str, Any]:
    """Return settings that give a configuration the depth modality.

    One that has a depth encoder keeps it. Another gets one of random weights that stay as they are, of the
    visual encoder's sizes: enough to compare how the modalities are gated and fused, not to learn what depth
    is worth.
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
    """The section of an encoder of a family, in given sizes and without weights."""
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


Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Named variants of one configuration, each trained with every seed.

    Attributes:
      base: the configuration that is varied, `FILE[:args]`.
      variants: settings by name of the variant: dotted keys without `config.` and their values, such as
        `{"model.adapter.num_experts": 3}`; a dictionary as a value replaces a whole section, None unsets.
      reference: the variant that the others are compared with.
      common: settings of all variants; a variant's own settings win over them.
      seeds: of the runs of each variant.
      title: of the table, one line.
    """

    base: str
    variants: Mapping[str, Settings]
    reference: str
    common: Settings = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    title: str = ""

    def __post_init__(self) -> None:
        require(bool(self.variants), "variants", "a grid needs at least one")
        choose("reference", self.reference, self.variants)
        seeds = tuple(self.seeds)
        whole = all(isinstance(seed, int) and seed >= 0 for seed in seeds)
        require(bool(seeds) and whole and len(set(seeds)) == len(seeds), "seeds",
                f"is {self.seeds!r}: give different whole numbers from 0")  # fmt: skip
        folders: dict[str, str] = {}
        for name in self.variants:
            other = folders.setdefault(folder_of(name), name)
            require(other == name, "variants", f"{name!r} and {other!r} would share a folder: rename one")

    def config(self, variant: str, seed: int, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the configuration of one run.

        Args:
          variant: name of the variant.
          seed: of the run.
          overrides: of the command line; they win over `common`, and the variant's own settings over them.

        Raises:
          UserError: names the variant and the key that is wrong.
        """
        try:
            given = apply_overrides(apply_settings(load_given(self.base), self.common), overrides)
            given = apply_settings(given, {**self.variants[variant], "seed": seed})
            return RunConfig.from_given(given)
        except UserError as problem:
            raise UserError(f"variant {variant!r}: {problem}") from None


class Cell(NamedTuple):
    """One run of a grid.

    Attributes:
      number: from 0, over variants and within them over seeds.
      variant: name of the variant.
      seed: of the run.
      folder: of the run.
      config: of the run.
    """

    number: int
    variant: str
    seed: int
    folder: Path
    config: RunConfig


def cells(grid: Grid, workdir: Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """List every run of a grid, with its folder below `workdir`.

    Raises:
      UserError: a variant is not a valid configuration; nothing has run then.
    """
    found: list[Cell] = []
    for variant in grid.variants:
        for seed in grid.seeds:
            config = grid.config(variant, seed, overrides)
            folder = workdir / "runs" / folder_of(variant) / f"seed{seed}"
            found.append(Cell(len(found), variant, seed, folder, config))
        try:
            segmenter_config(config)
        except UserError as problem:
            raise UserError(f"variant {variant!r}: {problem}") from None
    return found


def folder_of(variant: str) -> str:
    """Turn a variant's name into the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.+=-]+", "_", variant).strip("_.") or "_"


def load_grid(spec: str, base: str | None = None, seeds: int | None = None) -> Grid:
    """Read `FILE[:BASE]`, a Python file with a function `get_grid(base)`.

    Args:
      spec: path of the file, or the name of a shipped one; after a colon the configuration to vary.
      base: the configuration to vary; it wins over the one after the colon.
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
        require(seeds > 0, "--seeds", f"is {seeds}: give 1 or more")
        grid = dataclasses.replace(grid, seeds=tuple(range(seeds)))
    return grid
