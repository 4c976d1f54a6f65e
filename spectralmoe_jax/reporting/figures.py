"""From the files of a run or a grid to charts, tables and pictures, each with its words.

`read_run` and `read_grid` read what `spectralmoe train`, `evaluate` and `ablate` left; no model is needed.
The functions below them each make one kind of figure of a `RunRecord`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from spectralmoe_jax.ablation.ablate import GRID_FILE, read_grid_file
from spectralmoe_jax.ablation.stored_results import RESULTS_FILE, read_results
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CONFIG_FILE, read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.score_table import MODALITIES
from spectralmoe_jax.evaluation.stored_scores import EVALUATION_FILE, read_evaluation
from spectralmoe_jax.inference.pictures import ScenePictures, read_pictures
from spectralmoe_jax.reporting.svg import (
    Line,
    class_picture,
    drawing,
    error_picture,
    expert_picture,
    line_chart,
    photo,
    stacked_chart,
    thin,
)
from spectralmoe_jax.training.logging import read_metrics

LOSSES = {
    "loss": "loss",
    "loss_cls": "class",
    "loss_mask": "mask",
    "loss_dice": "dice",
    "loss_balance": "balance",
}
"""Labels of the losses in the metrics."""


class RunRecord(NamedTuple):
    """Files of a run.

    Attributes:
      name: of the run, or of its variant.
      config: its configuration.
      metrics: records by kind (`train`, `evaluate`, `experts`), by step.
      evaluation: of the target; None if there is none yet.
      scenes: pictures; may be empty.
    """

    name: str
    config: RunConfig
    metrics: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any] | None
    scenes: list[ScenePictures]

    def series(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Return steps and values of a logged number, NaN where it was not finite; empty if never logged."""
        records = [record for record in self.metrics.get(kind, ()) if np.ndim(record.get(name, [])) == 0]
        values = [np.nan if record[name] is None else record[name] for record in records]
        return [record["step"] for record in records], values


class GridRecord(NamedTuple):
    """Files of a grid.

    Attributes:
      results: content of `results.json`.
      runs: of each variant the first run that is done, by the variant's name.
    """

    results: dict[str, Any]
    runs: dict[str, RunRecord]


def read_run(folder: Path, name: str = "") -> RunRecord:
    """Read a run's files.

    Args:
      folder: of the run.
      name: instead of that in the configuration.

    Raises:
      UserError: the folder holds no run.
    """
    config = read_run_config(folder, allow_code=True)  # only shown
    name = name or config.name
    return RunRecord(name, config, read_metrics(folder), read_evaluation(folder), read_pictures(folder))


def read_grid(folder: Path) -> GridRecord:
    """Read a grid's files.

    Raises:
      UserError: there are no results yet.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: let `spectralmoe ablate` finish, or give it --collect")
    results, folders = read_results(folder), read_grid_file(folder)["runs"]
    runs: dict[str, RunRecord] = {}
    for place, run in folders.items():
        if run["variant"] not in runs and (folder / place / EVALUATION_FILE).is_file():
            runs[run["variant"]] = read_run(folder / place, run["variant"])
    return GridRecord(results, runs)


def is_grid(folder: Path) -> bool:
    """Return whether a folder is that of a grid, not of a run.

    Raises:
      UserError: it is neither.
    """
    if (folder / GRID_FILE).is_file():
        return True
    if (folder / CONFIG_FILE).is_file():
        return False
    raise UserError(f"{folder}: neither a run nor a grid; give a folder that `train` or `ablate` wrote")


class Chart(NamedTuple):
    """A chart with its caption.

    Attributes:
      caption: text below it.
      svg: the chart.
      legend: names of its lines, empty for one line.
    """

    caption: str
    svg: Markup
    legend: list[str]


class Picture(NamedTuple):
    """A picture with its caption.

    Attributes:
      caption: text below it.
      address: `data:` address.
      alt: description in words.
      tokens: whether a pixel is a token, to be enlarged without smoothing.
    """

    caption: str
    address: str
    alt: str
    tokens: bool = False


def curves(run: RunRecord) -> list[Chart]:
    """Chart the loss and its terms, scores on held-out images, and the learning rate."""
    found = []
    lines = [_thinned(label, *run.series("train", name)) for name, label in LOSSES.items()]
    lines = [line for line in lines if len(line.x)]
    if lines:
        first, last = lines[0].y[0], lines[0].y[-1]
        title = f"Training loss and its terms over steps; the loss goes from {first:.3g} to {last:.3g}"
        found.append(_chart("Training loss and its terms", lines, title, "step"))
    scores = {"mIoU": "miou", "overall accuracy": "overall_accuracy"}
    held = [Line(label, *run.series("evaluate", name)) for label, name in scores.items()]
    if held[0].x:
        title = f"Scores on held-out source images over steps; the best mIoU is {np.nanmax(held[0].y):.1%}"
        found.append(_chart("Held-out source images", held, title, "step", y_range=(0, 1), markers=True))
    rate = _thinned("learning rate", *run.series("train", "learning_rate"))
    if len(rate.x):
        title = f"Learning rate over steps, at most {max(rate.y):.3g}"
        found.append(_chart("Learning rate", [rate], title, "step"))
    return found


def usage(run: RunRecord, layers: Sequence[int] | None = None) -> list[Chart]:
    """Chart the share of tokens that each expert gets over training, for each layer and modality.

    Args:
      run: the run.
      layers: numbers from 1, or None for all; -1 is the last.
    """
    records = [record for record in run.metrics.get("experts", ()) if "expert_usage" in record]
    sizes = [np.shape(record["expert_usage"]) for record in records]
    records = [r for r, size in zip(records, sizes, strict=True) if len(size) == 3 and size == sizes[0]]
    if not records:
        return []
    kept = [records[i] for i in thin(len(records), 40)]
    shares = np.array([record["expert_usage"] for record in kept])  # (n, L, J, E)
    steps = [record["step"] for record in kept]
    found = []
    for layer in _layer_numbers(layers, shares.shape[1]):
        for modality in range(shares.shape[2]):
            one = shares[:, layer - 1, modality]
            one = one / np.maximum(one.sum(axis=1, keepdims=True), 1e-9)
            caption = f"Layer {layer}, {MODALITIES[modality]}"
            title = (
                f"Share of tokens by expert over training, {caption}; at the end {_expert_shares(one[-1])}"
            )
            found.append(Chart(caption, Markup(stacked_chart(one, steps, title, "step")), []))
    return found


def specialisation(run: RunRecord) -> Chart | None:
    """Chart the mutual information of expert and class by layer, a line for each modality."""
    entries = (run.evaluation or {}).get("routing")
    if not entries:
        return None
    lines = []
    for modality in dict.fromkeys(entry["modality"] for entry in entries):
        own = [entry for entry in entries if entry["modality"] == modality]
        lines.append(Line(modality, [e["layer"] for e in own], [_nan_for_none(e["nmi"]) for e in own]))
    top = max((v for line in lines for v in line.y if not np.isnan(v)), default=0.0)
    title = f"Normalised mutual information of expert and class by layer, at most {top:.2f}"
    y_range = (0, max(0.1, top * 1.1))
    caption = "Mutual information of expert and class"
    return _chart(caption, lines, title, "layer", y_range=y_range, markers=True)


def reliability(run: RunRecord) -> Chart | None:
    """Chart the share of right pixels by their confidence, a line for each temperature."""
    found = (run.evaluation or {}).get("reliability")
    if not found:
        return None
    lines, said = [Line("as it should be", [0, 100], [0.0, 1.0])], []
    for scores in found:
        shown = [i for i, pixels in enumerate(scores["pixels"]) if pixels]
        name = f"temperature {scores['temperature']:.3g}"
        confidence = [100 * scores["confidence"][i] for i in shown]
        lines.append(Line(name, confidence, [scores["accuracy"][i] for i in shown]))
        error = scores["expected_calibration_error"]
        if error is not None:
            said.append(f"{name}, expected calibration error {error:.1%}, Brier score {scores['brier']:.3f}")
    title = f"Share of right pixels by their confidence: {'; '.join(said)}"
    caption = f"Right pixels by confidence. {'; '.join(said).capitalize()}"
    return _chart(caption, lines, title, "confidence, %", y_range=(0, 1), markers=True)


class RoutingTable(NamedTuple):
    """Experts against classes in one layer and modality.

    Attributes:
      caption: layer and modality.
      nmi: normalised mutual information of expert and class.
      rows: (expert, share of each class's tokens that go to it), in 0..1 or None for a class without tokens.
    """

    caption: str
    nmi: float
    rows: list[tuple[str, list[float | None]]]


def routing_tables(run: RunRecord, layers: Sequence[int] | None = None) -> list[RoutingTable]:
    """Tabulate experts against classes for each layer and modality; `layers` as in `usage`."""
    entries = (run.evaluation or {}).get("routing") or ()
    shown = _layer_numbers(layers, max((entry["layer"] for entry in entries), default=0))
    found = []
    for entry in [entry for entry in entries if entry["layer"] in shown]:
        counts = np.array(entry["counts"])
        totals = counts.sum(axis=0)
        rows = [
            (f"expert {e + 1}", [n / total if total else None for n, total in zip(row, totals, strict=True)])
            for e, row in enumerate(counts.tolist())
        ]
        caption = f"Layer {entry['layer']}, {entry['modality']}"
        found.append(RoutingTable(caption, _nan_for_none(entry["nmi"]), rows))
    return found


def panels(
    scene: ScenePictures, names: Sequence[str], palette: Sequence[Sequence[int]], given: bool = True
) -> list[Picture]:
    """Draw input, truth, prediction and errors of a scene; without the first two if not `given`."""
    known = scene.truth != 255
    right = float((scene.truth == scene.prediction)[known].mean()) if known.any() else 0.0
    pictures = [
        Picture(
            "prediction",
            class_picture(scene.prediction, palette),
            f"Predicted classes of {scene.name}: {_class_shares(scene.prediction, names)}",
        ),
        Picture(
            "errors",
            error_picture(scene.truth, scene.prediction),
            f"Right and wrong pixels of {scene.name}: {right:.0%} of the labelled ones are right",
        ),
    ]
    if not given:
        return pictures
    return [
        Picture("input", photo(scene.image), f"The image {scene.name} in natural colours"),
        Picture(
            "truth",
            class_picture(scene.truth, palette),
            f"True classes of {scene.name}: {_class_shares(scene.truth, names)}",
        ),
        *pictures,
    ]


def expert_maps(scene: ScenePictures, layers: Sequence[int] | None = None) -> list[Picture]:
    """Draw the expert of every token, for each layer and modality; `layers` as in `usage`."""
    count, modalities = scene.experts.shape[:2]
    found = []
    for layer in _layer_numbers(layers, count):
        for modality in range(modalities):
            numbers = scene.experts[layer - 1, modality]
            caption = f"layer {layer}, {MODALITIES[modality]}"
            shares = np.bincount(numbers.ravel()) / numbers.size
            alt = f"Expert of every token of {scene.name}, {caption}: {_expert_shares(shares)}"
            found.append(Picture(caption, expert_picture(numbers), alt, tokens=True))
    return found


def depth_pictures(scene: ScenePictures) -> list[Picture]:
    """Draw the first three principal components of depth tokens as red, green and blue."""
    return [
        Picture(
            f"depth features, layer {layer}",
            drawing(picture),
            f"Depth features of {scene.name} at layer {layer}: three principal components as colours",
            tokens=True,
        )
        for layer, picture in zip(scene.depth_layers.tolist(), scene.depth, strict=True)
    ]


def _layer_numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    """Return layers from 1 to `count`, all of them for None; negative ones count from the last."""
    return list(range(1, count + 1)) if layers is None else [n % (count + 1) for n in layers]


def experts_of(run: RunRecord) -> int:
    """Return the number of experts in a run's evaluation; 0 without."""
    entries = (run.evaluation or {}).get("routing") or ()
    return max((len(entry["counts"]) for entry in entries), default=0)


def _chart(caption: str, lines: Sequence[Line], title: str, x_label: str, **options: Any) -> Chart:
    legend = [line.name for line in lines] if len(lines) > 1 else []
    return Chart(caption, Markup(line_chart(lines, title, x_label, **options)), legend)


def _thinned(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    if not len(x):
        return Line(name, [], [])
    kept = thin(len(x))
    return Line(name, [x[i] for i in kept], [y[i] for i in kept])


def _expert_shares(shares: np.ndarray) -> str:
    named = [f"expert {i + 1} {share:.0%}" for i, share in enumerate(shares) if share >= 0.005]
    return ", ".join(named)


def _class_shares(label: np.ndarray, names: Sequence[str]) -> str:
    counts = np.bincount(label.ravel(), minlength=256)
    shares = sorted(((counts[i] / label.size, name) for i, name in enumerate(names)), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005) or "none"


def _nan_for_none(value: float | None) -> float:
    return float("nan") if value is None else value
