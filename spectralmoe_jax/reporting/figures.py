"""From a run's records to what the page shows: charts, tables and pictures with words for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from spectralmoe_jax.inference.pictures import Scene
from spectralmoe_jax.reporting import svg as encode
from spectralmoe_jax.reporting.run_records import Run
from spectralmoe_jax.reporting.svg import Line, line_chart, stacked_chart, thin

LOSSES = {
    "loss": "loss",
    "loss_cls": "class",
    "loss_mask": "mask",
    "loss_dice": "dice",
    "loss_balance": "balance",
}


class Chart(NamedTuple):
    """caption: below it. svg: the picture. legend: names of its lines, empty for one."""

    caption: str
    svg: Markup
    legend: list[str]


class Picture(NamedTuple):
    """caption: below it. address: `data:`. alt: what is to be seen. tokens: a pixel is a token, to be shown
    enlarged without smoothing."""

    caption: str
    address: str
    alt: str
    tokens: bool = False


def curves(run: Run) -> list[Chart]:
    """Loss and its terms, scores on what was held out, learning rate."""
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


def usage(run: Run, layers: Sequence[int] | None = None) -> list[Chart]:
    """Share of tokens that each expert gets over training, a chart a layer and modality.

    Args:
      layers: numbers from 1, or None for all; -1 is the last.
    """
    records = [record for record in run.metrics.get("experts", ()) if "expert_usage" in record]
    if not records:
        return []
    kept = [records[i] for i in thin(len(records), 40)]
    shares = np.array([record["expert_usage"] for record in kept])  # (n, L, J, E)
    steps = [record["step"] for record in kept]
    found = []
    for layer in _numbers(layers, shares.shape[1]):
        for modality in range(shares.shape[2]):
            one = shares[:, layer - 1, modality]
            one = one / np.maximum(one.sum(axis=1, keepdims=True), 1e-9)
            caption = f"Layer {layer}, {modality_name(modality)}"
            title = f"Share of tokens by expert over training, {caption}; at the end {_shares(one[-1])}"
            found.append(Chart(caption, Markup(stacked_chart(one, steps, title, "step")), []))
    return found


def specialisation(run: Run) -> Chart | None:
    """Mutual information of expert and class by layer, a line a modality."""
    entries = (run.evaluation or {}).get("routing")
    if not entries:
        return None
    lines = []
    for modality in dict.fromkeys(entry["modality"] for entry in entries):
        own = [entry for entry in entries if entry["modality"] == modality]
        lines.append(Line(modality, [e["layer"] for e in own], [_number(e["nmi"]) for e in own]))
    top = max((v for line in lines for v in line.y if not np.isnan(v)), default=0.0)
    title = f"Normalised mutual information of expert and class by layer, at most {top:.2f}"
    return _chart(
        "Mutual information of expert and class", lines, title, "layer", y_range=(0, max(0.1, top * 1.1)),
        markers=True,
    )  # fmt: skip


class RoutingTable(NamedTuple):
    """rows: (expert, share of each class's tokens that go to it), in 0..1 or None for a class without."""

    caption: str
    nmi: float
    rows: list[tuple[str, list[float | None]]]


def routing_tables(run: Run, layers: Sequence[int] | None = None) -> list[RoutingTable]:
    """Of each layer and modality; `layers` as in `usage`."""
    entries = (run.evaluation or {}).get("routing") or ()
    shown = _numbers(layers, max((entry["layer"] for entry in entries), default=0))
    found = []
    for entry in [entry for entry in entries if entry["layer"] in shown]:
        counts = np.array(entry["counts"])
        totals = counts.sum(axis=0)
        rows = [
            (f"expert {e + 1}", [n / total if total else None for n, total in zip(row, totals, strict=True)])
            for e, row in enumerate(counts.tolist())
        ]
        caption = f"Layer {entry['layer']}, {entry['modality']}"
        found.append(RoutingTable(caption, _number(entry["nmi"]), rows))
    return found


def panels(scene: Scene, names: Sequence[str], palette: Sequence[Sequence[int]],
           given: bool = True) -> list[Picture]:  # fmt: skip
    """Input, truth, prediction and errors; without the first two where not `given`."""
    known = scene.truth != 255
    right = float((scene.truth == scene.prediction)[known].mean()) if known.any() else 0.0
    pictures = [
        Picture("prediction", encode.classes(scene.prediction, palette),
                f"Predicted classes of {scene.name}: {_parts(scene.prediction, names)}"),
        Picture("errors", encode.errors(scene.truth, scene.prediction),
                f"Right and wrong pixels of {scene.name}: {right:.0%} of the labelled ones are right"),
    ]  # fmt: skip
    if not given:
        return pictures
    return [
        Picture("input", encode.photo(scene.image), f"The image {scene.name} as the eye would see it"),
        Picture("truth", encode.classes(scene.truth, palette),
                f"True classes of {scene.name}: {_parts(scene.truth, names)}"),
        *pictures,
    ]  # fmt: skip


def expert_maps(scene: Scene, layers: Sequence[int] | None = None) -> list[Picture]:
    """Which expert each token went to, a picture a layer and modality; `layers` as in `usage`."""
    count, modalities = scene.experts.shape[:2]
    found = []
    for layer in _numbers(layers, count):
        for modality in range(modalities):
            numbers = scene.experts[layer - 1, modality]
            caption = f"layer {layer}, {modality_name(modality)}"
            shares = np.bincount(numbers.ravel()) / numbers.size
            alt = f"Expert of every token of {scene.name}, {caption}: {_shares(shares)}"
            found.append(Picture(caption, encode.experts(numbers), alt, tokens=True))
    return found


def depth_pictures(scene: Scene) -> list[Picture]:
    """The first three principal components of depth tokens as red, green and blue."""
    return [
        Picture(f"depth features, layer {layer}", encode.drawing(picture),
                f"Depth features of {scene.name} at layer {layer}: three principal components as colours",
                tokens=True)
        for layer, picture in zip(scene.depth_layers.tolist(), scene.depth, strict=True)
    ]  # fmt: skip


def _numbers(layers: Sequence[int] | None, count: int) -> list[int]:
    """Layers from 1 to `count`, all of them for None; negative ones count from the last."""
    return list(range(1, count + 1)) if layers is None else [n % (count + 1) for n in layers]


def experts_of(run: Run) -> int:
    """How many experts the routing of a run tells of."""
    entries = (run.evaluation or {}).get("routing") or ()
    return max((len(entry["counts"]) for entry in entries), default=0)


def modality_name(number: int) -> str:
    return ("visual", "depth")[number]


def _chart(caption: str, lines: Sequence[Line], title: str, x_label: str, **options: Any) -> Chart:
    legend = [line.name for line in lines] if len(lines) > 1 else []
    return Chart(caption, Markup(line_chart(lines, title, x_label, **options)), legend)


def _thinned(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    if not len(x):
        return Line(name, [], [])
    kept = thin(len(x))
    return Line(name, [x[i] for i in kept], [y[i] for i in kept])


def _shares(shares: np.ndarray) -> str:
    named = [f"expert {i + 1} {share:.0%}" for i, share in enumerate(shares) if share >= 0.005]
    return ", ".join(named)


def _parts(label: np.ndarray, names: Sequence[str]) -> str:
    counts = np.bincount(label.ravel(), minlength=256)
    shares = sorted(((counts[i] / label.size, name) for i, name in enumerate(names)), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005) or "none"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
