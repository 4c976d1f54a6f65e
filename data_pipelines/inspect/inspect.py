"""`spectralmoe data`: tables and a picture of a configuration's training batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.inspect.measure import Inspection, inspect_batches
from data_pipelines.sensors import find_sensor
from data_pipelines.sheet import QUIET, Sheet, chequers, coloured, display_bands, short, stretched
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value

_TEXT_COLUMNS = ("split", "domain", "class", "band", "stage")
_THERMAL = 3.0  # um, beyond which bands measure heat
_REFLECTANCES = (
    -0.1,
    1.5,
)  # plausible means: correction of the atmosphere may overshoot, snow and glint are bright
_LISTED = 16  # largest number of domains of a split, and of bands, to print

# lengths in inches
_CELL, _GAP, _LEFT, _TOP, _SPACE, _LEGEND, _ROW = 1.55, 0.06, 0.25, 0.85, 0.25, 3.0, 0.235


def show(config: RunConfig, batches: int, output: Path) -> Inspection:
    """Print contents, classes, bands and times of a configuration's data, and draw some batches.

    Raises:
      UserError: as training would, fewer than one batch, or no folder to write the picture to.
    """
    if batches < 1:
        raise bad_value("--batches", batches, "must be at least 1")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the picture is a PNG, give a name that ends in .png")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: no such folder {output.absolute().parent}, make it first")
    found = inspect_batches(config, batches)
    console = Console(highlight=False, soft_wrap=True)
    for table in (_contents(found), _classes(config, found), _bands(config, found), _times(config, found)):
        console.print(table)
    for remark in remarks(config, found):
        console.print(remark)
    draw(config, found, output)
    console.print(
        f"{output}: {sum(len(batch['label']) for batch in found.batches)} tiles as training sees them"
    )
    return found


def remarks(config: RunConfig, found: Inspection) -> list[str]:
    """List what looks wrong, in one line each: unfit statistics, missing classes, too few labels."""
    lines, wrong = [], []
    for name, (mean, std) in zip(config.bands, found.normalised, strict=True):
        if abs(mean) > 2 or not 0.1 < std < 10:
            wrong.append(f"{name} (mean {mean:.2f}, std {std:.2f})")
    if wrong:
        lines.append(
            f"after normalisation {len(wrong)} bands are far from mean 0 and std 1, such as "
            f"{', '.join(wrong[:3])}: check config.model.pixel_mean and config.model.pixel_std"
        )
    lines += _storage_remarks(config, found)
    absent = [name for name, share in zip(config.classes.names, found.shares, strict=True) if not share]
    if absent:
        lines.append(f"not in these batches: {', '.join(absent)}")
    if found.labelled < 0.05:
        lines.append(f"only {found.labelled:.1%} of the pixels are labelled")
    return lines


def _storage_remarks(config: RunConfig, found: Inspection) -> list[str]:
    """List values that do not fit how files of `config.sensor` commonly store them."""
    if config.sensor is None:
        return []
    sensor, dtype = find_sensor(config.sensor), found.batches[0]["image"].dtype
    if sensor.dtype is not None and dtype != sensor.dtype:
        return [
            f"pixels are {dtype}, files of {sensor.name} commonly {sensor.dtype}: right if they were made "
            "so, as reflectance or a picture; else check config.sensor"
        ]
    if sensor.scale is None:
        return []
    odd = []
    for name, (mean, _) in zip(config.bands, found.raw, strict=True):
        band, reflectance = sensor.named(name), sensor.scale * mean + sensor.offset
        reflects = band is not None and band.centre < _THERMAL
        if reflects and not _REFLECTANCES[0] <= reflectance <= _REFLECTANCES[1]:
            odd.append(f"{name} {reflectance:.3g}")
    if not odd:
        return []
    return [
        f"{len(odd)} bands have a mean that is no reflectance as files of {sensor.name} store it "
        f"({', '.join(odd[:3])}): check config.sensor and how the files were made"
    ]


def _contents(found: Inspection) -> Table:
    table = _table("images", "split", "domain", "images", "Mpx")
    for split in dict.fromkeys(split for split, _ in found.contents):
        domains = {domain: content for (own, domain), content in found.contents.items() if own == split}
        if len(domains) > _LISTED:
            numbers, sizes = zip(*domains.values(), strict=True)
            domains = {f"{len(domains)} domains": (sum(numbers), sum(sizes))}
        for domain, (images, size) in domains.items():
            table.add_row(split, domain, f"{images:,}", f"{size:,.2f}")
    return table


def _classes(config: RunConfig, found: Inspection) -> Table:
    table = _table(f"classes in these batches, {found.labelled:.1%} labelled", "class", "share of labelled")
    for name, share in zip(config.classes.names, found.shares, strict=True):
        table.add_row(name, f"{share:.2%}")
    return table


def _bands(config: RunConfig, found: Inspection) -> Table:
    step = -(-len(config.bands) // _LISTED)
    title = "bands in these batches" + (f", every {step}th of {len(config.bands)}" if step > 1 else "")
    table = _table(title, "band", "mean", "std", "mean, normalised", "std, normalised")
    rows = list(zip(config.bands, found.raw, found.normalised, strict=True))
    for name, raw, normalised in rows[::step]:
        table.add_row(name, *(f"{value:,.4g}" for value in raw), *(f"{value:.2f}" for value in normalised))
    return table


def _times(config: RunConfig, found: Inspection) -> Table:
    table = _table("time", "stage", "")
    table.add_row("open the data", f"{found.opening:.2f} s")
    table.add_row("until the first batch", f"{found.first:.2f} s")
    for stage, milliseconds in found.stages.items():
        decoded = ", decoded anew" if stage.startswith("read") else ""
        table.add_row(f"{stage}, one thread{decoded}", f"{milliseconds:.2f} ms a tile")
    workers = config.data.workers
    table.add_row(f"loader with {workers} workers", f"{found.rate:,.1f} tiles/s")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right", no_wrap=True)
    return table


def draw(config: RunConfig, found: Inspection, path: Path) -> None:
    """Write a PNG with a row of images and the row of their masks for each batch.

    All images share one stretch, from the 2nd to the 98th percentile of each band.
    """
    per_row = min(8, max(len(batch["label"]) for batch in found.batches))
    images = np.concatenate([batch["image"] for batch in found.batches])
    labels = np.concatenate([batch["label"] for batch in found.batches])
    rows = -(-len(images) // per_row)
    grid = _LEFT + per_row * (_CELL + _GAP)
    block = 2 * _CELL + _GAP + _SPACE
    height = _TOP + max(rows * block, _ROW * (len(config.classes.names) + 3)) + 0.1
    sheet = Sheet(grid + 0.3 + _LEGEND, height, cell=_CELL)
    channels = display_bands(config.bands, config.sensor)
    shown = ", ".join(config.bands[channel] for channel in channels)
    sheet.text(_LEFT, 0.3, f"{config.name}: what training sees", size=17, weight="bold")
    sheet.text(
        _LEFT,
        0.6,
        f"Images above, masks below. Red, green, blue show {shown}, all stretched alike.",
        color=QUIET,
    )
    limits = np.percentile(images[..., list(channels)].reshape(-1, 3), (2, 98), axis=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(number, per_row)
        left, top = _LEFT + column * (_CELL + _GAP), _TOP + row * block
        sheet.picture(left, top, stretched(image[..., list(channels)], limits))
        sheet.picture(left, top + _CELL + _GAP, coloured(label, config.classes.colours))
    _draw_legend(sheet, config, found, left=grid + 0.3)
    sheet.save(path)


def _draw_legend(sheet: Sheet, config: RunConfig, found: Inspection, left: float) -> None:
    sheet.text(left, _TOP + 0.12, "share of labelled pixels", size=10, weight="bold")
    row = _TOP + 0.12 + _ROW
    for name, colour, share in zip(config.classes.names, config.classes.colours, found.shares, strict=True):
        sheet.swatch(left, row, np.array(colour, np.uint8))
        sheet.text(left + 0.34, row, short(name, 26), size=9.5)
        sheet.text(left + _LEGEND - 0.2, row, f"{share:.2%}" if share else "-", size=9.5, ha="right")
        row += _ROW
    sheet.swatch(left, row, chequers(8, 12, 4))
    sheet.text(left + 0.34, row, "no label, of all pixels", size=9.5, color=QUIET)
    sheet.text(left + _LEGEND - 0.2, row, f"{1 - found.labelled:.2%}", size=9.5, ha="right", color=QUIET)
