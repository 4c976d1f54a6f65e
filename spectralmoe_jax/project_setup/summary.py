"""What `spectralmoe init` understood, as a short table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.prepare.contact_sheet import choose_tiles
from data_pipelines.records import Source, Window
from data_pipelines.sheet import QUIET, Sheet, chequers, coloured, counted, display_bands, short, stretched
from data_pipelines.splits import Splits
from data_pipelines.survey.ambiguity import listed
from data_pipelines.tiles.label_grid import label_grid
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.project_setup.findings import Findings

_COLUMNS, _ROWS = 8, 2  # pictures in a row, and rows of a split
_NONE = 5e-4  # share that is shown as 0.0 %
_LONGEST = 512  # side of the part of a large image that is drawn, in pixels

# lengths in inches
_CELL, _GAP, _LEFT, _TOP, _HEAD, _CAPTION, _LEGEND, _ROW = 1.55, 0.06, 0.25, 0.85, 0.3, 0.17, 3.6, 0.235


def print_summary(found: Findings, console: Console) -> None:
    """Print what was understood, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in summary(found):
        table.add_row(plain(name), plain(text))
    console.print(table)


def summary(found: Findings) -> list[tuple[str, str]]:
    """Return what was understood, as names and texts."""
    layout, bands, statistics, sizes = found.layout, found.bands, found.statistics, found.sizes
    domains = layout.domains
    counts = [f"{name} {len(domains[name])}" for name in (*found.source, *found.target)]
    labels = {mask for _, mask in layout.pairs}
    lines = [
        ("images", f"{layout.image_glob}: {counted(len(layout.images), 'image')}"),
        ("labels", f"{layout.mask_template}: {counted(len(labels), 'file')}" + _attribute(found)),
        ("domains", listed(counts)),
        ("source", listed(found.source) + (f"; held out {listed(found.held_out)}" if found.held_out else "")),
        ("target", listed(found.target)),
        ("bands", f"{len(found.names)}: {listed(found.names)} ({bands.origin})"),
        ("sensor", _sensor(found)),
        ("classes", listed([_class(found, number) for number in range(len(found.classes.names))])),
        ("no label", _unlabelled(found)),
        ("nodata", _nodata(found)),
        ("statistics", f"of the source, {statistics.share:.0%} of its pixels"),
        (
            "sizes",
            f"crop {sizes.crop}, patch {sizes.patch}, {_tile(sizes.tile)}, batch {sizes.batch}: "
            f"about {sizes.step_bytes / 2**30:.1f} GiB a step"
            + ("" if sizes.fits else ", more than there is room for"),
        ),
    ]
    if found.empty:
        lines.insert(6, ("left out", f"{listed(found.empty)}: no data, or a single value"))
    if layout.unused:
        lines.insert(2, ("not used", listed(layout.unused)))
    return lines


def _attribute(found: Findings) -> str:
    return f", attribute {found.contents.attribute}" if found.contents.attribute else ""


def _sensor(found: Findings) -> str:
    bands = found.bands
    if bands.sensors:
        return listed([f"{d}={s}" for d, s in bands.sensors.items()]) + f" ({bands.sensor_origin})"
    return f"{bands.sensor} ({bands.sensor_origin})" if bands.sensor else bands.sensor_origin


def _class(found: Findings, number: int) -> str:
    value = found.classes.values[number]
    stored = f"#{value[0]:02x}{value[1]:02x}{value[2]:02x}" if isinstance(value, tuple) else value
    name = found.classes.names[number]
    known = "" if str(stored) in name else f" ({stored})"
    return f"{name}{known} {found.share(value):.2%}"


def _unlabelled(found: Findings) -> str:
    classes = found.classes
    text = f"{1 - found.labelled:.2%} of the pixels"
    if classes.ignored:
        text += f"; ignored: {', '.join(map(str, classes.ignored))}"
    if classes.stray:
        text += f"; too rare for a class: {counted(len(classes.stray), 'colour')}"
    return text


def _nodata(found: Findings) -> str:
    statistics = found.statistics
    missing = 1 - statistics.data[statistics.used].min()
    text = ", ".join(f"{value:g}" for value in statistics.nodata) or "none stated"
    if missing > _NONE:
        text += f"; up to {missing:.1%} of a band's pixels in the source are missing"
    if statistics.zeros > _NONE:
        text += f"; {statistics.zeros:.1%} are 0 in all bands"
    return text


def _tile(tile: int | None) -> str:
    return "whole images" if tile is None else f"scenes cut to tiles of {tile}"


def draw_sheet(config: RunConfig, found: Findings, splits: Splits, path: Path) -> None:
    """Write a PNG with images of source and target, their labels, and a legend with shares of pixels.

    All images share one stretch, from the 2nd to the 98th percentile of each band over those shown.
    """
    parts = {name: _pictures(*splits.of(name), config) for name in ("source", "target")}
    channels = list(display_bands(config.bands, config.sensor))
    columns = min(_COLUMNS, max(map(len, parts.values())))
    blocks = {name: -(-len(shown) // columns) for name, shown in parts.items()}
    tall = _CAPTION + 2 * _CELL + _GAP + 0.08
    grid = _LEFT + columns * (_CELL + _GAP)
    rows_of_legend = len(config.classes.names) + 3
    height = _TOP + max(sum(_HEAD + rows * tall for rows in blocks.values()), _ROW * rows_of_legend) + 0.1
    sheet = Sheet(grid + 0.3 + _LEGEND, height, cell=_CELL)
    sheet.text(_LEFT, 0.3, f"{config.name}: what was understood of {found.folder}", size=17, weight="bold")
    shown_bands = ", ".join(config.bands[channel] for channel in channels)
    sheet.text(
        _LEFT,
        0.6,
        f"Images above, labels below. Red, green, blue show {shown_bands}, all stretched alike.",
        color=QUIET,
    )
    pixels = np.concatenate([i[..., channels].reshape(-1, 3) for p in parts.values() for _, i, _ in p])
    seen = pixels[pixels.any(axis=1)]
    limits = np.percentile(seen if len(seen) else pixels, (2, 98), axis=0)
    top = _TOP
    for name, shown in parts.items():
        domains = found.source if name == "source" else found.target
        sheet.text(_LEFT, top + 0.12, f"{name}: {listed(domains)}", size=12, weight="bold")
        for place, (caption, image, label) in enumerate(shown):
            row, column = divmod(place, columns)
            left, above = _LEFT + column * (_CELL + _GAP), top + _HEAD + row * tall
            sheet.text(left, above + 0.06, short(caption, 22), size=7, color=QUIET)
            sheet.picture(left, above + _CAPTION, stretched(image[..., channels], limits))
            below = above + _CAPTION + _CELL + _GAP
            sheet.picture(left, below, coloured(label, config.classes.colours))
        top += _HEAD + blocks[name] * tall
    _draw_legend(sheet, found, left=grid + 0.3)
    sheet.save(path)


def _pictures(
    source: Source, records: Sequence, config: RunConfig
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, image and label of a few records that show all classes and domains."""
    grid = label_grid(source)
    assert grid is not None  # image files count their labels
    counts = grid.pixels(records)  # (N, K)
    areas = np.array([record.height * record.width for record in records])
    chosen = choose_tiles(counts / areas[:, None], [record.domain for record in records], _COLUMNS * _ROWS)
    shown = []
    for number in chosen:
        record = records[number]
        height, width = min(record.height, _LONGEST), min(record.width, _LONGEST)
        part = Window((record.height - height) // 2, (record.width - width) // 2, height, width)
        shown.append((record.name, source.read_image(record, part), source.read_label(record, part)))
    return shown


def _draw_legend(sheet: Sheet, found: Findings, left: float) -> None:
    """Draw colours and names of the classes, with stored values and shares of all pixels."""
    sheet.text(left, _TOP + 0.12, "share of all pixels", size=10, weight="bold")
    row = _TOP + 0.12 + _ROW
    classes = found.classes
    for name, colour, value in zip(classes.names, classes.palette, classes.values, strict=True):
        sheet.swatch(left, row, np.array(colour, np.uint8))
        sheet.text(left + 0.34, row, short(name, 22), size=9.5)
        stored = "" if isinstance(value, tuple) else str(value)
        sheet.text(left + 2.5, row, short(stored, 10), size=9, color=QUIET, ha="right")
        sheet.text(left + _LEGEND - 0.3, row, f"{found.share(value):.2%}", size=9.5, ha="right")
        row += _ROW
    sheet.swatch(left, row, chequers(8, 12, 4))
    sheet.text(left + 0.34, row, "no label", size=9.5, color=QUIET)
    sheet.text(left + _LEGEND - 0.3, row, f"{1 - found.labelled:.2%}", size=9.5, ha="right", color=QUIET)
