"""Text of the configuration that `spectralmoe init` writes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sensors import find_sensor
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.project_setup.findings import Findings

_WIDTH = 110
_FEW = 16  # bands up to which names and statistics stand in the function itself
_SPARSE = 0.5  # share of labelled pixels below which crops are placed on labels
_DENSE = 0.95  # share from which on pixels without a label change nothing
_STEPS, _WARM_UP, _EVERY = 300, 30, 100


def configuration_text(found: Findings, output: Path) -> str:
    """Return the text of a configuration file.

    Args:
      found: what was found.
      output: path of the file, whose name without suffix is the run's.
    """
    blocks = [_model_of(found, output.stem), _data(found), _augmentation(found), _encoder(found), _run(found)]
    body = "\n\n".join("\n".join(f"    {line}" if line else "" for line in block) for block in blocks)
    imports = "from data_pipelines.sensors import SENSORS\n" if named_by_sensor(found) else ""
    return (
        f"{_docstring(found, output)}\n\nfrom ml_collections import ConfigDict\n\n{imports}"
        "from spectralmoe_jax.configs import common\n\n\n"
        f"def get_config() -> ConfigDict:\n{body}\n    return config\n{_statistics(found)}"
    )


def _docstring(found: Findings, output: Path) -> str:
    place, workdir = shlex.quote(output.as_posix()), shlex.quote(f"runs/{output.stem}")
    text = (
        f"{len(found.classes.names)} classes: {_domains(found.source)} to train on, "
        f"{_domains(found.target)} to test on."
    )
    picture = output.with_suffix(".png").name
    return (
        f'"""{_escaped(text)}\n\n'
        f"Written by `spectralmoe init`. {_escaped(picture)} shows what it understood; "
        "change what it did not.\n\n"
        f'  {_escaped(f"spectralmoe train --config {place} --workdir {workdir}")}\n"""'
    )


def _domains(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} domains"


def _model_of(found: Findings, name: str) -> list[str]:
    """Return the lines about bands and classes."""
    order = "the colours below" if found.contents.colours else "data.label_values"
    rename = "" if found.classes.named else f"  # in the order of {order}: give them names"
    lines = [f"config = common.small({_quoted(name)})"]
    if found.bands.sensor:
        lines.append(f"config.sensor = {_quoted(found.bands.sensor)}  # {found.bands.sensor_origin}")
    if named_by_sensor(found):
        left_out = f"  # {len(found.empty)} have no data" if found.empty else ""
        lines += _wrapped("empty = ", found.empty) if found.empty else []
        sensor = f"SENSORS[{_quoted(str(found.bands.sensor))}].bands"
        condition = " if band.name not in empty" if found.empty else ""
        lines.append(f"config.bands = tuple(band.name for band in {sensor}{condition}){left_out}")
    else:
        lines += _wrapped("config.bands = ", found.names)
    lines += _wrapped("config.classes.names = ", found.classes.names, rename)
    lines += _wrapped("config.classes.palette = ", found.classes.palette)
    return lines


def named_by_sensor(found: Findings) -> bool:
    """Return whether the bands are written as those of the sensor, because they are many."""
    sensor = found.bands.sensor
    of_sensor = () if sensor is None else tuple(band.name for band in find_sensor(sensor).bands)
    return len(found.names) > _FEW and found.bands.names == of_sensor


def _data(found: Findings) -> list[str]:
    """Return the lines about files, labels and domains."""
    layout, contents, classes = found.layout, found.contents, found.classes
    lines = [
        'config.data.kind = "geotiff"  # any format that GDAL reads',
        f"config.data.root = {_quoted(found.folder)}",
        f"config.data.image_glob = {_quoted(layout.image_glob)}",
        f"config.data.mask_template = {_quoted(layout.mask_template)}",
    ]
    if contents.attribute:
        lines.append(f"config.data.label_attribute = {_quoted(contents.attribute)}")
    if contents.layer:
        lines.append(f"config.data.label_layer = {_quoted(contents.layer)}")
    if contents.colours:
        if classes.ignored:
            lines += _wrapped("config.data.ignore_colours = ", classes.ignored, "  # no label")
    else:
        lines += _wrapped("config.data.label_values = ", classes.values, "  # as stored, one for each class")
        if classes.ignored:
            lines += _wrapped("config.data.ignore_values = ", classes.ignored, "  # no label")
    if found.bands.file_bands:
        lines += _wrapped(
            "config.data.file_bands = ", found.bands.file_bands, "  # the files do not name them"
        )
    if found.bands.sensors:
        chosen = [f"{domain}={sensor}" for domain, sensor in found.bands.sensors.items()]
        lines += _wrapped("config.data.sensors = ", chosen)
    lines += _wrapped("config.data.source = ", found.source)
    lines += _wrapped("config.data.target = ", found.target, "  # never seen in training")
    if found.held_out:
        lines += _wrapped(
            "config.data.holdout_domains = ", found.held_out, "  # of the source, to choose the checkpoint"
        )
    else:
        if found.sizes.tile:
            lines.append(
                f"config.data.tile = {found.sizes.tile}  # scenes are cut, so that parts can be held out"
            )
        share = 0.2 if found.sizes.tile else 0.1
        lines.append(f"config.data.holdout = {share}  # of the source, to choose the checkpoint")
    lines.append(f"config.data.crop = {found.sizes.crop}")
    return lines


def _augmentation(found: Findings) -> list[str]:
    """Return the lines about augmentation and sparse labels."""
    whole = found.encoder is not None or found.sizes.crop * 1.5 > (found.sizes.tile or found.side)
    scale = "(1.0, 1.0)" if whole else "(0.7, 1.4)"
    lines = [f"config.augment.scale = {scale}", "config.augment.max_class_share = 0.9"]
    if found.encoder is None:
        if found.eight_bit and set(found.names) == {"red", "green", "blue"}:
            lines.append("config.augment.photometric = True")
        else:
            lines.append("config.augment.gain = config.augment.tilt = 0.1  # other dates and sensors")
    if found.labelled < _DENSE:
        unlabelled = f"  # {1 - found.labelled:.1%} of the pixels have no label"
        lines.append(f'config.loss.unlabelled = "excluded"{unlabelled}')
        if found.labelled < _SPARSE:
            lines.append("config.augment.crop_on_labels = 1.0")
    return lines


def _encoder(found: Findings) -> list[str]:
    """Return the lines about statistics and encoder."""
    if found.encoder is not None:
        return _preset(found, found.encoder)
    return [
        *_normalisation(found, "# of the source, without nodata"),
        'config.model.visual.kind = "dinov3"  # small, trained from random weights',
        f"config.model.visual.patch_size = {found.sizes.patch}",
        "config.model.visual.storage_tokens = 1",
        "config.model.adapter.scale_init = 0.1",
    ]


def _normalisation(found: Findings, comment: str) -> list[str]:
    """Return the lines about the statistics that pixels are normalised with."""
    mean, std = found.pixel_statistics
    return [
        comment,
        *_numbers("config.model.pixel_mean = ", mean, "PIXEL_MEAN"),
        *_numbers("config.model.pixel_std = ", std, "PIXEL_STD"),
    ]


def _preset(found: Findings, name: str) -> list[str]:
    """Return the lines about a frozen encoder: with a linear head fitted to it, and an adapter at zero."""
    fields, patch = preset(name, "--encoder"), found.sizes.patch
    lines = []
    if fields["kind"] == "softcon":
        lines = _normalisation(found, "# of the source: two deviations around the mean become 0 to 1")
    elif fields["kind"] != "galileo":
        lines = _normalisation(found, "# of the source, without nodata")
    told = "" if found.weights else "  # give a file, a folder or hf://owner/name: docs/checkpoints.md"
    lines += [
        f'config.model.visual = ConfigDict({{"preset": {_quoted(name)}, "trainable": False}})',
        f"config.model.visual.weights = {_quoted(found.weights)}{told}",
    ]
    if patch != fields["patch_size"]:
        lines.append(f"config.model.visual.patch_size = {patch}  # published with {fields['patch_size']}")
    if found.stored_as:
        lines.append(
            f"config.model.visual.stored_as = {_quoted(found.stored_as)}  # as the files' values suggest"
        )
    layers = int(fields["layers"])
    lines += [
        f"config.model.out_layers = ({layers - 1},)",
        'config.model.head = ConfigDict({"kind": "linear"})  # starts fitted to the frozen features',
        'config.train.head_start = "probe"',
        "config.model.adapter.zero_start = True",
        'config.train.lr_factors = ConfigDict({"head": 0.1})',
    ]
    return lines


def _run(found: Findings) -> list[str]:
    """Return the lines about steps and windows."""
    sizes = found.sizes
    lines = [
        f"config.train.steps = {_STEPS}",
        f"config.train.warmup_steps = {_WARM_UP}  # fewer than steps: a trial of 2 steps needs 0",
    ]
    if sizes.batch != 8:
        lines.append(f"config.train.batch_size = {sizes.batch}")
    if found.encoder is not None:
        lines += ["config.train.learning_rate = 5e-3", 'config.train.schedule = "cosine"']
    return [
        *lines,
        f"config.train.evaluate_every = config.train.checkpoint_every = {_EVERY}",
        f"config.evaluate.window = {sizes.crop}",
        f"config.evaluate.overlap = {sizes.overlap}",
    ]


def _numbers(start: str, values: Iterable[float], name: str) -> list[str]:
    """Return an assignment of numbers, which stand below the function if they are many."""
    numbers = [float(f"{value:.4g}") for value in values]
    if len(numbers) > _FEW:
        return [f"{start}tuple(float(value) for value in {name}.split())"]
    return _wrapped(start, numbers)


def _statistics(found: Findings) -> str:
    """Return the statistics of many bands, as text below the function."""
    galileo = found.encoder is not None and preset(found.encoder, "")["kind"] == "galileo"
    if len(found.names) <= _FEW or galileo:
        return ""
    mean, std = found.pixel_statistics
    text = "\n\n# one number for each band\n"
    for name, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        lines = _filled([f"{value:.4g}" for value in values], " ", _WIDTH - 4)
        text += f'{name} = """\n' + "".join(f"    {line}\n" for line in lines) + '"""\n'
    return text


def _wrapped(start: str, values: Sequence[Any], comment: str = "") -> list[str]:
    """Return an assignment of a tuple, in as many lines as it needs."""
    words = [_literal(value) for value in values]
    ending = "," if len(words) == 1 else ""
    line = f"{start}({', '.join(words)}{ending}){comment}"
    if len(line) + 4 <= _WIDTH:
        return [line]
    return [
        f"{start}({comment}",
        *(f"    {part}" for part in _filled([f"{w}," for w in words], " ", 98)),
        ")",
    ]


def _filled(words: Sequence[str], between: str, width: int) -> list[str]:
    """Join words to lines of at most some width."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(between) + len(word) <= width:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    """Return a string literal. The escapes of JSON are those of Python, too."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return text as it stands inside a string literal of one line, which it cannot end."""
    return _quoted(text)[1:-1]
