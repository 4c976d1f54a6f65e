"""`spectralmoe init`: look at a folder of images and labels, and write a configuration for it.

What the folder leaves open is not guessed: it raises `Ambiguous`, whose option settles it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_pipelines.readers.raster_header import read_header
from data_pipelines.sensors import find_sensor
from data_pipelines.splits import open_splits
from data_pipelines.survey.ambiguity import Ambiguous, listed
from data_pipelines.survey.band_statistics import Statistics, band_statistics
from data_pipelines.survey.bands import Bands, find_bands
from data_pipelines.survey.label_contents import choose_classes, parse_values, read_contents
from data_pipelines.survey.layout import Layout, find_layout
from data_pipelines.survey.roles import require_text
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, choose
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.project_setup.findings import Findings
from spectralmoe_jax.project_setup.sizes import available_memory, choose_sizes
from spectralmoe_jax.project_setup.summary import draw_sheet, print_summary
from spectralmoe_jax.project_setup.text import configuration_text
from spectralmoe_jax.training.train import check_sizes

_HELD_OUT = 5  # one of so many source domains is held out, where each is a single image
_SMALL_IMAGE = 10  # per cent of the images that may be smaller than a crop, which is then padded
_REFLECTANCE = 2.0  # largest mean of a band of reflectance from 0 to 1
_TIMES_10000 = (100.0, 20000.0)  # means of bands of reflectance x 10000
_GALILEO_NANO = "hf://nasaharvest/galileo/models/nano"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `spectralmoe init`, which settle what a folder leaves open; each is empty by default.

    Attributes:
      images: pattern of the images, as `config.data.image_glob`.
      labels: path of the labels, as `config.data.mask_template`.
      source: domains to train on, or patterns of them; default all others.
      target: domains to test on, or patterns of them.
      bands: names of the bands to use, or of all bands of the files in their order.
      sensor: name of the sensor.
      classes: names of the classes, in ascending order of their values or colours.
      ignore: labels that mean "no label", separated by commas, or "none".
      attribute: attribute of polygons that holds the class.
      layer: layer of the polygons.
      encoder: name of a preset to use frozen; default a small encoder that is trained.
      weights: its weights.
    """

    images: str = ""
    labels: str = ""
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    sensor: str = ""
    classes: tuple[str, ...] = ()
    ignore: str = ""
    attribute: str = ""
    layer: str = ""
    encoder: str = ""
    weights: str = ""

    def with_answers(self, answers: Mapping[str, str | Sequence[str]]) -> Options:
        """Return a copy with other values by name; several names may be one text, separated by commas.

        Raises:
          UserError: there is no such option.
        """
        values: dict[str, Any] = {}
        for name, answer in answers.items():
            choose("options of init_config", name, (field.name for field in dataclasses.fields(self)))
            values[name] = text = answer if isinstance(answer, str) else ",".join(answer)
            if isinstance(getattr(self, name), tuple):
                values[name] = tuple(word.strip() for word in text.split(",") if word.strip())
        return dataclasses.replace(self, **values)


def init_config(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    ask: Callable[[Ambiguous], str] | None = None,
    **options: str | Sequence[str],
) -> RunConfig:
    """Write a configuration for a folder of images and labels, and a picture of what was understood.

    The picture is beside the configuration, under its name with the suffix .png. What was understood is
    printed, with the next command.

    Args:
      folder: the folder.
      output: path of the configuration, which must not exist.
      ask: answers what the folder leaves open; by default this raises an error that names the option.
      options: those of the command line by name, as in `target=("tile_5", "tile_6")`: images, labels, source,
        target, bands, sensor, classes, ignore, attribute, layer, encoder, weights.

    Returns:
      The configuration.

    Raises:
      UserError: the folder leaves something open, files do not fit, or `output` exists.
    """
    folder, output = os.fspath(folder), Path(output)
    picture = output.with_suffix(".png")
    _require_new(output, picture)
    given = Options().with_answers(options)
    require_text(folder, "the name of the folder")
    require_text(os.fspath(output), "the name of the output")
    for name, value in dataclasses.asdict(given).items():
        require_text("".join(value), f"the value of --{name}")
    if given.encoder:
        _require_visual(given.encoder)
    elif given.weights:
        raise UserError("--weights: they are those of an encoder: give --encoder, too")
    found = settle(folder, given, ask)
    with atomic_write(output) as aside, atomic_write(picture) as aside_picture:
        aside.write_text(configuration_text(found, output), encoding="utf-8")
        config = load_config(str(aside))
        segmenter_config(config)
        check_sizes(config)
        draw_sheet(config, found, open_splits(config), aside_picture)
    console = Console(highlight=False, soft_wrap=True)
    print_summary(found, console)
    console.print(plain(f"{output}: the configuration; {picture}: what was understood, to check by eye"))
    console.print(plain(f"next: {next_command(found, output)}"))
    return config


def next_command(found: Findings, output: Path) -> str:
    """Return the command that continues: training, or a look at batches while weights are missing."""
    name = shlex.quote(output.as_posix())
    if found.encoder and not found.weights:
        return f"spectralmoe data {name}"
    return f"spectralmoe train --config {name} --workdir {shlex.quote(f'runs/{output.stem}')}"


def _require_new(output: Path, picture: Path) -> None:
    """Raise a UserError if the configuration cannot be written, or would replace a file."""
    if output.suffix != ".py":
        raise UserError(f"--output {output}: a configuration is a Python file, give a name that ends in .py")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: no such folder {output.absolute().parent}, make it first")
    for path in (output, picture):
        if path.exists():
            raise UserError(f"--output {output}: {path} exists, and is not replaced: give another name")


def _require_visual(name: str) -> None:
    """Raise a UserError unless a preset is that of a visual encoder."""
    preset(name, "--encoder")
    if "depth_anything" in name:
        raise UserError(
            f"--encoder {name}: is a depth encoder, set it as config.model.depth.preset afterwards"
        )


def settle(folder: str, options: Options, ask: Callable[[Ambiguous], str] | None) -> Findings:
    """Look at a folder, and ask for what it leaves open.

    Args:
      folder: the folder.
      options: what the user settled.
      ask: answers a question; None raises it.
    """
    while True:
        try:
            return find(folder, options)
        except Ambiguous as question:
            if ask is None:
                raise
            options = options.with_answers({question.option.removeprefix("--"): ask(question)})


def find(folder: str, options: Options) -> Findings:
    """Look at a folder: files and domains, bands, labels, statistics, sizes.

    Args:
      folder: the folder.
      options: what the user settled.

    Raises:
      Ambiguous: the folder leaves something open; names the option that settles it.
      UserError: files or options do not fit.
    """
    # 1. images, labels and domains
    whole = find_layout(Path(folder), options.images, options.labels)
    source, target = _domains(whole, options)
    layout = whole.by_domain((*source, *target))
    # 2. classes
    contents = read_contents(layout, options.attribute, options.layer)
    ignore = parse_values(options.ignore, contents) if options.ignore else None
    classes = choose_classes(contents, ignore, options.classes)
    # 3. bands, and their statistics over the source
    bands = find_bands(Path(folder), layout.domains, options.bands, options.sensor)
    statistics = band_statistics(layout.by_domain(source).images, bands)
    # 4. sizes
    headers = [read_header(path) for _, path in layout.images]
    side = int(np.percentile([min(header.height, header.width) for header in headers], _SMALL_IMAGE))
    single = all(len(layout.domains[domain]) == 1 for domain in source)
    step = len(source) // max(1, round(len(source) / _HELD_OUT))
    held_out = source[step - 1 :: step] if single and len(source) > 2 else ()
    encoder = preset(options.encoder, "--encoder") if options.encoder else None
    used = int(statistics.used.sum())
    sizes = choose_sizes(side, used, available_memory(), encoder, divide=single and not held_out)
    is_galileo, is_nano = (encoder or {}).get("kind") == "galileo", options.encoder == "galileo_nano"
    stored_as = _stored_as(options.encoder, bands, statistics, headers[0].dtype) if is_galileo else ""
    return Findings(
        folder=folder,
        layout=dataclasses.replace(layout, unused=whole.unused),
        source=source,
        target=target,
        held_out=held_out,
        bands=bands,
        statistics=statistics,
        contents=contents,
        classes=classes,
        sizes=sizes,
        side=side,
        eight_bit=all(header.dtype == np.uint8 for header in headers),
        encoder=options.encoder or None,
        weights=options.weights or (_GALILEO_NANO if is_nano else ""),
        stored_as=stored_as,
    )


def _domains(layout: Layout, options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the domains to train on and to test on.

    Raises:
      Ambiguous: neither is given.
      UserError: a pattern matches no domain, one matches both, or there is a single domain.
    """
    names = list(layout.domains)
    if len(names) < 2:
        raise UserError(
            f"{layout.root}: all {len(layout.images)} images are of one domain, {names[0]}, and a run needs "
            "another to test on: add images of another place, date or sensor, or say with --images where the "
            "domain stands in their paths"
        )
    target = _matching(layout, options.target, "--target")
    source = _matching(layout, options.source, "--source")
    if not target and not source:
        raise Ambiguous(
            "--target",
            f"{layout.root}: {len(names)} domains",
            names,
            "say which of them to test on, and never to train on, with",
        )
    source = source or [name for name in names if name not in target]
    target = target or [name for name in names if name not in source]
    both = [name for name in source if name in target]
    if both:
        raise UserError(f"--source and --target both name {listed(both)}: give each domain to one of them")
    if not source or not target:
        raise UserError(f"{layout.root}: --target or --source names all {len(names)} domains: leave one out")
    return tuple(source), tuple(target)


def _matching(layout: Layout, patterns: Sequence[str], option: str) -> list[str]:
    """Return the domains that patterns name, by their own names or those of their files."""
    found: list[str] = []
    for pattern in patterns:
        matching = [
            domain
            for domain, paths in layout.domains.items()
            if fnmatch.fnmatchcase(domain, pattern)
            or (len(paths) == 1 and fnmatch.fnmatchcase(paths[0].stem, pattern))
        ]
        if not matching:
            raise UserError(f"{option} {pattern}: no such domain, there are {listed([*layout.domains])}")
        found += [domain for domain in matching if domain not in found]
    return found


def _stored_as(encoder: str, bands: Bands, statistics: Statistics, dtype: np.dtype) -> str:
    """Return how files store reflectance, from the sensor or from the means of the bands.

    Raises:
      UserError: they store something else.
    """
    mean = float(np.median(statistics.mean[statistics.used]))
    if dtype.kind == "f" and mean < _REFLECTANCE:
        return "unit"
    sensor = None if bands.sensor is None else find_sensor(bands.sensor)
    if sensor is not None and sensor.scale is not None and sensor.dtype == str(dtype):
        return "sensor"
    if _TIMES_10000[0] < mean < _TIMES_10000[1]:
        return "x10000"
    raise UserError(
        f"--encoder {encoder}: needs reflectance, and bands of {dtype} with a mean of {mean:.4g} are none "
        "that is known: choose another encoder"
    )
