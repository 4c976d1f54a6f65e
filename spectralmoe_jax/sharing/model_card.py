"""The model card of a published run: README.md with metadata, configuration, data, scores and licence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from spectralmoe_jax import __version__
from spectralmoe_jax.ablation.results import LEVEL, RESAMPLES, image_interval
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.escapes import markdown, printable
from spectralmoe_jax.evaluation.metrics import ImageCounts
from spectralmoe_jax.models.build import count_parameters
from spectralmoe_jax.weights.hub import HUB

LIBRARY, TASK = "spectralmoe-jax", "image-segmentation"
KNOWN_LICENCES = (
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "etalab-2.0", "gpl-3.0", "lgpl-3.0", "mit",
    "openrail", "unlicense",
)  # fmt: skip
"""Names that the hub lists; others are shown under `other`."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a model card says.

    Attributes:
      repository: owner/name.
      licence: as the publisher gave it.
      config: configuration of the run.
      shown: the same as JSON values, without folders of the machine.
      record: record of origin of the weight file.
      step: step of the checkpoint.
      last: the last step that the run was trained to.
      average: decay of the average of the weights that the checkpoint holds, or None.
      held_out: scores of the checkpoint on held-out source images, or None.
      evaluation: report on the target images, as `evaluation.json` has it, or None.
      images: counts of each of these images.
    """

    repository: str
    licence: str
    config: RunConfig
    shown: Mapping[str, Any]
    record: Mapping[str, Any]
    step: int
    last: int
    average: float | None
    held_out: Mapping[str, float] | None
    evaluation: Mapping[str, Any] | None
    images: Sequence[ImageCounts]


def write_model_card(facts: Facts) -> str:
    """Return the text of README.md."""
    parts = (_introduction, _use, _data, _scores, _licence, _configuration)
    sections = "\n\n".join(part(facts) for part in parts)
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{sections}\n"


def _metadata(facts: Facts) -> ModelCardData:
    """Return what the hub indexes."""
    config, listed = facts.config, facts.licence.lower() in KNOWN_LICENCES
    encoders = facts.record.get("encoders", {}).values()
    hubs = [str(encoder.get("source", "")) for encoder in encoders]
    bases = ["/".join(name.removeprefix(HUB).split("@")[0].split("/")[:2]) for name in hubs if HUB in name]
    results = None
    if facts.evaluation is not None and facts.evaluation["miou"] is not None:
        miou, name = facts.evaluation["miou"], printable(config.name)
        results = [EvalResult(TASK, name, name, "mean_iou", miou, metric_name="mIoU")]
    return ModelCardData(
        license=facts.licence.lower() if listed else "other",
        license_name=None if listed else printable(facts.licence),
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=["remote-sensing", "semantic-segmentation", "jax", printable(_name(config.model.adapter.kind))],
        base_model=list(map(printable, bases)) or None,
        model_name=facts.repository.split("/")[1],
        eval_results=results,
    )


def _introduction(facts: Facts) -> str:
    config = facts.config
    parts = count_parameters(config)
    trained, frozen = (sum(getattr(part, kind) for part in parts) for kind in ("trainable", "frozen"))
    model = config.model
    depth = "" if model.depth is None else f", with a depth encoder of kind `{model.depth.kind}`"
    progress = f"step {facts.step} of a run that was trained to step {facts.last} of {config.train.steps}"
    average = "" if facts.average is None else f", averaged over the steps with decay {facts.average}"
    return f"""# {facts.repository.split("/")[1]}

A model for semantic segmentation of remote-sensing images: it gives each pixel one of
{len(config.classes.names)} classes. A visual encoder of kind `{model.visual.kind}`{depth}, adapted with
`{_name(model.adapter.kind)}`, and a head of kind `{model.head.kind}`; {trained:,} trained and
{frozen:,} frozen parameters, all in `model.safetensors`. The weights are those of {progress}{average}.

Trained with SpectralMoE-JAX; written by version {__version__}."""


def _name(kind: str) -> str:
    """Return the name of a kind, of a user's own without the folders before it."""
    return kind.rpartition("/")[2]


def _use(facts: Facts) -> str:
    count = len(facts.config.bands)
    return f"""## Use

```python
import spectralmoe_jax

model = spectralmoe_jax.load("{HUB}{facts.repository}")
classes = model.predict(image)  # stored pixel values (H, W, {count}) -> (H, W), numbers of model.classes
```

`spectralmoe predict --checkpoint {HUB}{facts.repository} --input SCENE.tif --output MAP.tif` maps a scene."""


def _data(facts: Facts) -> str:
    config = facts.config
    rows = [
        ("configuration", config.name),
        ("bands, in this order", ", ".join(config.bands)),
        ("sensor", config.sensor or "not stated"),
        ("classes", ", ".join(config.classes.names)),
        ("trained on", ", ".join(config.data.source) or "not stated"),
        ("held out of these", _held_out_of(config)),
        ("target, never trained on", ", ".join(config.data.target) or "none"),
    ]
    streams = "".join(
        f"\nA further stream of the training, {markdown(name)}, has the bands "
        f"{markdown(', '.join(stream.bands))}."
        for name, stream in config.streams.items()
    )
    table = "\n".join(f"| {name} | {markdown(value)} |" for name, value in rows)
    return f"## Data\n\n| | |\n|---|---|\n{table}\n{streams}".rstrip()


def _held_out_of(config: RunConfig) -> str:
    if config.data.holdout_domains:
        return ", ".join(config.data.holdout_domains)
    return f"a share of {config.data.holdout} of the images" if config.data.holdout else "nothing"


def _scores(facts: Facts) -> str:
    lines = ["## Scores", ""]
    if facts.held_out:
        shown = ", ".join(f"{markdown(name)} {_percent(value)}" for name, value in facts.held_out.items())
        lines += [f"On held-out source images, which chose the checkpoint: {shown}.", ""]
    if facts.evaluation is None:
        return "\n".join([*lines, "The model was not scored on target images before it was published."])
    report, images = facts.evaluation, facts.images
    lines += [
        f"On {report['images']} target images, in percent. Intervals are bootstrap intervals of "
        f"{100 * LEVEL:g} % over the images ({RESAMPLES} draws); they leave out the chance in training.",
        "",
        "| mIoU | | interval |",
        "|---|---|---|",
        f"| all pixels | {_percent(report['miou'])} | {_interval(images)} |",
    ]
    if len(report["domains"]) > 1:
        for domain, scores in report["domains"].items():
            own = [image for image in images if image.domain == domain]
            lines.append(f"| {markdown(domain)} | {_percent(scores['miou'])} | {_interval(own)} |")
    lines += ["", "| class | IoU |", "|---|---|"]
    lines += [f"| {markdown(name)} | {_percent(value)} |" for name, value in report["all"]["iou"].items()]
    return "\n".join([*lines, "", f"Overall accuracy: {_percent(report['all']['overall_accuracy'])}."])


def _interval(images: Sequence[ImageCounts]) -> str:
    found = image_interval(np.stack([image.counts for image in images])) if images else None
    return "too few images" if found is None else f"{_percent(found[0])} to {_percent(found[1])}"


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def _licence(facts: Facts) -> str:
    lines = [
        "## Licence",
        "",
        f"What was trained is published under {markdown(facts.licence)}, as its publisher states.",
    ]
    encoders = facts.record.get("encoders", {})
    for name, encoder in encoders.items():
        origin = markdown(f"{encoder.get('preset') or 'an encoder'} from {encoder['source']}")
        lines.append(
            f"The file also holds the weights of the {markdown(name)} encoder ({origin}): "
            f"{markdown(encoder['licence'])}."
        )
    if not encoders:
        lines.append("Its encoders were not read from a published file, or their origin is not recorded.")
    return "\n".join([*lines, "The licence of the training data is not recorded here."])


def _configuration(facts: Facts) -> str:
    text = json.dumps(facts.shown, indent=2)
    return f"""## Configuration

As `config.json` and the header of `model.safetensors` have it; keys that are not given have their defaults.

<details>

```json
{text}
```

</details>"""
