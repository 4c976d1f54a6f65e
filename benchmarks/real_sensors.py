"""Everything on a frozen foundation model that docs/results.md reports, from real sensors to others.

  landsat5-7      clouds and shadows, one Landsat-5 scene to one Landsat-7 scene
                  (configs/cloud_shadow.py:galileo)
  landsat7-5      the other way
  scene_D-HALF    land cover: three dates, one half of the place, to date D in the other half
                  (configs/sentinel2_landcover.py:galileo); the last third of the training half is held out

Parts: classifiers of single pixels, `spectralmoe probe`, and the grids of configs/ablations; after `frozen`,
`routing` draws the expert that each token of the target is sent to. Of the grids, the dates have `frozen`:
all of it on scene_2-west, elsewhere two variants and two seeds. Everything is kept below the folder, and the
same command continues what was interrupted; --pairs and --parts choose.

  python benchmarks/real_sensors.py --workdir runs/real --clouds CLOUDSHADOW --sentinel2 SENTINEL2

Without network, --weights gives Galileo-nano's folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pixel_baselines
import rasterio
from rasterio.windows import Window
from rich.console import Console
from rich.table import Table

from data_pipelines.sources import resolve_run_wavelengths
from data_pipelines.splits import open_splits
from data_pipelines.transforms.augment import visible_bands
from spectralmoe_jax.ablation.grid import folder_of, load_grid
from spectralmoe_jax.cli.main import main as spectralmoe
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.errors import UserError, choose
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.predict_step import make_predict, make_routed_step
from spectralmoe_jax.inference.preview import write_panel
from spectralmoe_jax.inference.segmenter_weights import load_trained
from spectralmoe_jax.inference.sliding_window import expert_maps, predict_image

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GRIDS = {"frozen": 5, "components": 3, "peers": 3, "switches": 3}  # number of seeds
PARTS = ("trees", "probe", *GRIDS, "routing")
SHORT, SHORT_SEEDS = ("SpectralMoE, paper", "frozen"), 2
READINGS = ("SpectralMoE, paper", "SpectralMoE, released")
DATES = ("scene_0", "scene_1", "scene_2", "scene_3")
FOLDS = ("west", "east")  # the half that is trained on
SEEDS = 5  # of classifiers
DONE = "done.json"  # time of a part and its settings
PICTURE = "routing.png"
_WHOLE = {"data.tile": None, "data.holdout": 0.0}  # of a scene, which then is one image


@dataclasses.dataclass(frozen=True)
class Pair:
    """Source and target.

    Attributes:
      config: the configuration.
      overrides: overrides that set source and target.
      parts: what is measured on the pair.
      short: whether of a grid only `SHORT` is run.
    """

    config: str
    overrides: tuple[str, ...]
    parts: tuple[str, ...] = PARTS
    short: bool = False


def cloud_pairs(root: Path) -> dict[str, Pair]:
    """Return the pairs of Landsat sensors."""
    config = f"{CONFIGS / 'cloud_shadow.py'}:galileo"
    back = ("--config.sensor=landsat7", "--config.data.source=landsat7", "--config.data.target=landsat5")
    folder = f"--config.data.root={root}"
    return {"landsat5-7": Pair(config, (folder,)), "landsat7-5": Pair(config, (folder, *back))}


def date_pairs(root: Path, folder: Path) -> dict[str, Pair]:
    """Cut the dates of one place into halves, and return a pair for every date and half.

    A whole grid runs on one of them: `scene_2`, a clear date, trained on the western half of the others.
    """
    for fold in FOLDS:
        _cut(root, folder / fold, fold)
    pairs = {}
    for date, fold in itertools.product(DATES, FOLDS):
        others = [other for other in DATES if other != date]
        heldout = [f"{other}_heldout" for other in others]
        overrides = {
            "data.root": folder / fold, "data.mask_template": "{domain}_label.tif",
            "data.source": ",".join([*(f"{other}_train" for other in others), *heldout]),
            "data.holdout_domains": ",".join(heldout), "data.target": f"{date}_test",
        }  # fmt: skip
        given = tuple(f"--config.{key}={value}" for key, value in overrides.items())
        config, short = f"{CONFIGS / 'sentinel2_landcover.py'}:galileo", (date, fold) != ("scene_2", "west")
        pairs[f"{date}-{fold}"] = Pair(config, given, ("trees", "probe", "frozen"), short)
    return pairs


def _cut(root: Path, folder: Path, trained: str) -> None:
    """Write images and labels of the training half in two parts, and of the test half."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*DATES, "landcover"):
        with rasterio.open(root / f"{name}.tif") as image:
            half, rows = image.width // 2, image.height * 2 // 3
            start = {"west": 0, "east": half}[trained]
            windows = {
                "train": Window(start, 0, half, rows),
                "heldout": Window(start, rows, half, image.height - rows),
                "test": Window(half - start, 0, half, image.height),
            }
            for part, window in windows.items():
                labels = [f"{date}_{part}_label" for date in DATES]
                for target in labels if name == "landcover" else [f"{name}_{part}"]:
                    _write_window(image, window, folder / f"{target}.tif")


def _write_window(image: Any, window: Window, path: Path) -> None:
    """Write a window of an open image to a file of its own."""
    place = {"transform": image.window_transform(window), "width": window.width, "height": window.height}
    with atomic_write(path) as aside, rasterio.open(aside, "w", **(image.profile | place)) as sink:
        sink.write(image.read(window=window))
        sink.descriptions = image.descriptions


def measure(part: str, pair: Pair, folder: Path, weights: Sequence[str], side_by_side: int) -> None:
    """Measure one part of a pair, unless its result is there; note its time.

    A grid that has more runs than before does those that are missing.

    Raises:
      UserError: it failed, or was measured with other settings.
    """
    done, overrides, earlier = folder / part / DONE, [*pair.overrides, *weights], 0
    runs = _runs(part, pair)
    if done.exists():
        stored = json.loads(done.read_text())
        if stored["overrides"] != overrides:
            raise UserError(f"{done}: measured with other settings; choose another --workdir")
        if stored.get("runs") == runs:
            return
        earlier = stored["seconds"]
    began = time.monotonic()
    workdir = ["--workdir", str(folder / part)]
    if part == "trees":
        found = pixel_baselines.benchmark(load_config(pair.config, overrides), SEEDS)
        (folder / part).mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / part / "scores.json") as aside:
            aside.write_text(json.dumps({name: scores.tolist() for name, scores in found.items()}))
    elif part == "routing":
        draw_routing(folder / "frozen", folder / part / PICTURE)
    elif part == "probe":
        _run(["probe", pair.config, *workdir, "--seeds", str(SEEDS), *overrides])
    else:
        variants, seeds = runs
        only = [word for variant in variants for word in ("--only", variant)] if pair.short else []
        settings = ["--seeds", str(seeds), *only, "--side-by-side", str(side_by_side)]
        _run(["ablate", _grid(part), "--base", pair.config, *workdir, *settings, *overrides])
    # an interrupted part counts from its last start
    with atomic_write(done) as aside:
        seconds = earlier + round(time.monotonic() - began)
        aside.write_text(json.dumps({"seconds": seconds, "overrides": overrides, "runs": runs}))


def _grid(part: str) -> str:
    """Return the path of a grid."""
    return str(CONFIGS / "ablations" / f"{part}.py")


def _runs(part: str, pair: Pair) -> list[Any]:
    """Return the variants of a grid and the number of seeds, as JSON has them; nothing for other parts."""
    if part not in GRIDS:
        return []
    if pair.short:
        return [list(SHORT), SHORT_SEEDS]
    return [list(load_grid(_grid(part), pair.config).variants), GRIDS[part]]


def draw_routing(grid: Path, path: Path) -> None:
    """Draw the target with the expert of every token by layer, from the first seed of both readings.

    Args:
      grid: folder of the grid `frozen`.
      path: of the picture, a PNG.

    Raises:
      UserError: a run is not there.
    """
    images, truths, predictions, experts = [], [], [], []
    for reading in READINGS:
        run = grid / "runs" / folder_of(reading) / "seed0"
        if not run.exists():
            raise UserError(f"{run}: no run to draw; measure --parts frozen first")
        config = resolve_run_wavelengths(read_run_config(run).replaced(_WHOLE))
        segmenter, settings = load_trained(run, config), config.evaluate
        _, _, image, label = next(open_splits(config).examples("target"))
        maps = expert_maps(
            make_routed_step(segmenter), image, window=settings.window, batch_size=settings.batch_size
        )  # (layers, modalities, h, w)
        images.append(image)
        truths.append(label)
        predictions.append(predict_image(image, make_predict(segmenter), settings).argmax(axis=-1))
        experts.append({f"expert, layer {layer}": of_layer[0] for layer, of_layer in enumerate(maps, 1)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_panel(
        path, images, truths, predictions, experts, titles=READINGS, names=config.classes.names,
        palette=config.classes.palette, expert_count=config.model.adapter.num_experts,
        rgb_bands=visible_bands(config.bands, config.sensor),
    )  # fmt: skip


def _run(command: list[str]) -> None:
    """Run a command of `spectralmoe` in this process.

    Raises:
      UserError: it failed.
    """
    if spectralmoe(command) != 0:
        raise UserError(f"spectralmoe {' '.join(command)} failed; the same command continues it")


def scores_of(part: str, folder: Path) -> dict[str, tuple[np.ndarray, ...]]:
    """Return target and held-out mIoU of each classifier or variant, (seeds,) in per cent."""
    if part == "routing":
        return {}
    if part == "trees":
        stored = json.loads((folder / part / "scores.json").read_text())
        return {name: (np.array(x)[:, 1], np.array(x)[:, 0]) for name, x in stored.items()}
    if part == "probe":
        stored = json.loads((folder / part / "probe.json").read_text())
        splits = stored["miou"]["logistic regression"]
        last = len(stored["stages"]) - 1
        return {"probe, last norm": tuple(np.array(splits[s])[:, last] for s in ("target", "holdout"))}
    stored = json.loads((folder / part / "results.json").read_text())
    finished = {
        name: [run for run in own["runs"] if "miou" in run] for name, own in stored["variants"].items()
    }
    return {
        f"{part}: {name}": tuple(100 * np.array([run[key] for run in runs]) for key in ("miou", "held_out"))
        for name, runs in finished.items()
        if runs
    }


def summary(pairs: Mapping[str, Pair], workdir: Path) -> Table:
    """Make a table of everything that is measured, with its time."""
    table = Table(box=None, header_style="bold")
    for column in ("pair", "method", "held-out source", "target", "seconds"):
        table.add_column(column)
    for name, pair in pairs.items():
        for part in pair.parts:
            done = workdir / name / part / DONE
            if not done.exists():
                continue
            seconds = str(json.loads(done.read_text())["seconds"])
            for method, (target, heldout) in scores_of(part, workdir / name).items():
                table.add_row(name, method, _mean(heldout), _mean(target), seconds)
                seconds = ""
    return table


def _mean(scores: Any) -> str:
    return f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}"


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--clouds", type=Path, help="folder of configs/cloud_shadow.py")
    parser.add_argument("--sentinel2", type=Path, help="folder of configs/sentinel2_landcover.py")
    parser.add_argument("--weights", help="Galileo-nano's folder; default: from the hub")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all")
    parser.add_argument("--pairs", nargs="+", help="landsat5-7, landsat7-5, scene_0-west, ...; default: all")
    parser.add_argument("--side-by-side", type=int, default=2, help="runs of a grid at a time")
    given = parser.parse_args()
    weights = [f"--config.model.visual.weights={given.weights}"] if given.weights else []
    try:
        pairs = cloud_pairs(given.clouds) if given.clouds else {}
        if given.sentinel2:
            pairs |= date_pairs(given.sentinel2, given.workdir / "halves")
        if not pairs:
            raise UserError("give --clouds, --sentinel2 or both")
        for name in given.pairs or ():
            choose("--pairs", name, pairs)
        for part in given.parts:
            for name, pair in pairs.items():
                if part in pair.parts and (given.pairs is None or name in given.pairs):
                    measure(part, pair, given.workdir / name, weights, given.side_by_side)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    Console(width=140).print(summary(pairs, given.workdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
