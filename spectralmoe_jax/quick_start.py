"""`spectralmoe quickstart`: train, test and map from end to end on generated scenes, in minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.splits import Splits, open_splits
from data_pipelines.synthetic import SyntheticDataset
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import EvaluateConfig, RunConfig
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix
from spectralmoe_jax.evaluation.score_table import print_table, score, write_report
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.inference.predict_step import make_predict, make_routed_step
from spectralmoe_jax.inference.preview import write_panel
from spectralmoe_jax.inference.segmenter_weights import load_trained
from spectralmoe_jax.inference.sliding_window import expert_maps, predict_image
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.training.train import train

PANEL_SIDE = 192  # pixels of a scene shown in the picture


def quickstart(workdir: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train on one generated sensor, test on another, and show the result.

    Args:
      workdir: folder to write. It gets the run itself, `target/` (georeferenced scenes of the second sensor),
        `map.tif` and `map.png` (the map of one of them), `panel.png` and `report.json`.
      overrides: of `configs/quickstart.py`, such as `--config.train.steps=1000`.

    Returns:
      `{"source": mIoU, "target": mIoU, "constant": mIoU of the best single class, "seconds": float}`.
      The time alone if SIGTERM stopped the training.

    Raises:
      UserError: names the key or folder that is wrong.
    """
    # 1. train
    start = time.monotonic()
    workdir = Path(workdir)
    config = load_config("configs/quickstart.py", overrides)
    if train(config, workdir)["step"] < config.train.steps:  # SIGTERM asked it to stop
        return {"seconds": time.monotonic() - start}

    # 2. score on held-out scenes of the source sensor, and on the target sensor
    segmenter = load_trained(workdir, config)
    predict = make_predict(segmenter, tta=config.evaluate.tta)
    splits = open_splits(config)
    settings = config.evaluate
    names = config.classes.names
    reports = {
        split: score(predict, splits.examples(split), names, settings) for split in ("holdout", "target")
    }
    print_table(reports["holdout"], "Source sensor, scenes held out of training")
    print_table(reports["target"], "Target sensor, never seen: other bands, gains, haze and season")
    constant = best_constant(splits, len(names))

    # 3. map one scene of the target sensor, and draw scenes of both
    data = config.data
    benchmark = SyntheticDataset(data.scene_seed, data.scenes_source, data.scenes_target, data.scene_size)
    scenes = benchmark.write(workdir, "target")
    Model(segmenter, config).map(scenes[0], workdir / "map.tif", preview=workdir / "map.png")
    _write_panel(workdir / "panel.png", config, splits, segmenter, settings)

    # 4. summary
    summary = {
        "source": reports["holdout"]["miou"],
        "target": reports["target"]["miou"],
        "constant": constant,
        "seconds": time.monotonic() - start,
    }
    write_report({**summary, "reports": reports}, workdir / "report.json")
    shares = {key: f"{100 * summary[key]:.1f} %" for key in ("source", "target", "constant")}
    print(f"mIoU: source {shares['source']}, target {shares['target']}")
    print(f"mIoU of the best constant prediction on the target: {shares['constant']}")
    print(f"Done in {summary['seconds']:.0f} seconds. Results in {printable(workdir)}:")
    print("  panel.png    scenes, truth, prediction and experts of both sensors")
    print(f"  map.tif      map of {scenes[0].relative_to(workdir)}, for any GIS; map.png shows both")
    print("  report.json  all scores")
    return summary


def best_constant(splits: Splits, classes: int) -> float:
    """Return the mIoU on the target of predicting one class everywhere, for the class that does best."""
    matrices = [ConfusionMatrix(classes) for _ in range(classes)]
    for _, _, _, label in splits.examples("target"):
        for single, matrix in enumerate(matrices):
            matrix.add(label, np.full(label.shape, single))
    return max(matrix.miou for matrix in matrices)


def _write_panel(
    path: Path, config: RunConfig, splits: Splits, segmenter: Segmenter, settings: EvaluateConfig
) -> None:
    """Draw two scenes of each sensor: input, truth, prediction and experts."""
    last = segmenter.config.visual.layers
    experts = getattr(segmenter.config.adapter, "num_experts", 0)
    predict, routed = make_predict(segmenter), make_routed_step(segmenter)
    shown: dict[str, Any] = {"images": [], "truths": [], "predictions": [], "experts": [], "titles": []}
    for split, sensor in (("holdout", "source sensor"), ("target", "target sensor")):
        for index, (_, name, image, label) in enumerate(splits.examples(split)):
            if index == 2:
                break
            image, label = image[:PANEL_SIDE, :PANEL_SIDE], label[:PANEL_SIDE, :PANEL_SIDE]
            shown["images"].append(image)
            shown["truths"].append(label)
            shown["predictions"].append(predict_image(image, predict, settings).argmax(axis=-1))
            if experts:
                maps = expert_maps(routed, image, window=settings.window, batch_size=settings.batch_size)
                visual = maps[:, 0]  # (L, h, w)
                shown["experts"].append({"expert, layer 1": visual[0], f"expert, layer {last}": visual[-1]})
            shown["titles"].append(f"{sensor}\n{name.rpartition('/')[2].replace('_', ' ')}")
    shown["experts"] = shown["experts"] or None
    write_panel(
        path,
        **shown,
        names=config.classes.names,
        palette=config.classes.colours,
        expert_count=experts,
        rgb_bands=[config.bands.index(band) for band in ("red", "green", "blue")],
        false_colour_bands=[config.bands.index(band) for band in ("nir", "red", "green")],
        heading="Trained on one generated sensor, tested on another",
    )
