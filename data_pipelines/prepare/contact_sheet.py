"""One picture to check a preparation by eye: tiles of every split, their masks, and what the colours mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Benchmark
from data_pipelines.readers.prepared import PreparedRecord, PreparedTiles
from data_pipelines.sheet import (
    INK,
    QUIET,
    Sheet,
    chequers,
    coloured,
    counted,
    display_bands,
    short,
    stretched,
)

_TILES = 8  # in a row
_ROWS = 3  # on a sheet of few splits; every split has at least one
_CELL, _GAP = 1.55, 0.06  # inches: side of a picture, space between two
_LEFT, _TOP, _HEAD, _CAPTION, _SPACE, _BOTTOM = 0.25, 0.85, 0.3, 0.17, 0.2, 0.1  # inches
_TALL = _CAPTION + 2 * _CELL + _GAP + 0.08  # of a row of images and their masks
_NAMES, _COLUMN, _ROW, _PLOT, _NARROWEST = 1.9, 0.85, 0.235, 1.9, 4.2  # of the legend and the plot below it
_LONGEST = 256  # pixels of a tile's longer side, as drawn
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito (2008)


def write_contact_sheet(benchmark: Benchmark, folder: Path, statistics: Mapping[str, Any]) -> None:
    """Writes `contact_sheet.png` to a folder of prepared tiles; the same tiles give the same bytes.

    A split shows tiles that hold its classes, rare ones too, of as many domains as it has. Its pictures
    share one stretch, from the 2nd to the 98th percentile of each band over the whole split, so what is
    darker there is darker here.

    Args:
      statistics: what `data_pipelines.prepare.finish.finish` returned.
    """
    tiles = PreparedTiles(folder)
    splits = statistics["splits"]
    rows = max(1, _ROWS // len(splits))
    columns = min(_TILES, max(numbers["tiles"] for numbers in splits.values()))
    grid = _LEFT + columns * (_CELL + _GAP)
    width = grid + 0.3 + max(_NAMES + _COLUMN * len(splits), _NARROWEST) + 0.2
    block = _HEAD + rows * _TALL + _SPACE
    legend = _ROW * (len(benchmark.classes) + 3) + _SPACE
    height = _TOP + max(block * len(splits), legend + _PLOT + 1.2) + _BOTTOM
    sheet = Sheet(width, height, cell=_CELL)
    channels = display_bands(benchmark.bands, _sensor(benchmark, tiles.records[0]))
    sheet.text(_LEFT, 0.3, benchmark.title, size=17, weight="bold")
    shown = ", ".join(benchmark.bands[channel] for channel in channels)
    explained = f"Images above, masks below. Red, green, blue show {shown}, stretched alike within a split."
    sheet.text(_LEFT, 0.6, explained, color=QUIET)
    for number, (split, numbers) in enumerate(splits.items()):
        top = _TOP + number * block
        _head(sheet, benchmark, split, numbers, top)
        _draw_tiles(sheet, benchmark, tiles, split, numbers, channels, rows, top + _HEAD)
    _draw_legend(sheet, benchmark, splits, left=grid + 0.3, top=_TOP)
    _draw_bands(sheet, benchmark, splits, left=grid + 0.3, top=_TOP + legend)
    sheet.save(folder / "contact_sheet.png")


def choose_tiles(shares: np.ndarray, domains: Sequence[str], count: int) -> list[int]:
    """Numbers of `count` tiles that together show as much as possible of every class, ascending.

    Greedily maximises the sum over classes of the square root of what is shown of them, so that a class
    already shown counts for less; no domain comes twice while another has not come.

    Args:
      shares: of each class in each tile, (N, K).
      domains: of each tile.
    """
    names = np.asarray(domains)
    shown = np.zeros(shares.shape[1])
    chosen: list[int] = []
    allowed = np.ones(len(shares), bool)
    while len(chosen) < min(count, len(shares)):
        if not allowed.any():
            allowed[:] = True
            allowed[chosen] = False
        gain = np.sqrt(shown + shares).sum(axis=1) - np.sqrt(shown).sum()
        best = int(np.argmax(np.where(allowed, gain, -1)))
        chosen.append(best)
        shown += shares[best]
        allowed &= names != names[best]
    return sorted(chosen)


def _head(sheet: Sheet, benchmark: Benchmark, split: str, numbers: Mapping[str, Any], top: float) -> None:
    sheet.text(_LEFT, top + 0.12, split, size=13, weight="bold")
    what = f"{counted(numbers['tiles'], 'tile')} of {counted(numbers['domains'], 'domain')}"
    labelled = f"{numbers['labelled_pixels'] / numbers['pixels']:.1%} labelled"
    beside = _LEFT + 0.115 * len(split) + 0.25
    sheet.text(beside, top + 0.13, f"{_role(benchmark, split)}{what}, {labelled}", color=QUIET)


def _draw_tiles(
    sheet: Sheet, benchmark: Benchmark, tiles: PreparedTiles, split: str, numbers: Mapping[str, Any],
    channels: Sequence[int], rows: int, top: float,
) -> None:  # fmt: skip
    """`rows` times a row of images with their names above, and the row of their masks."""
    places = [place for place, record in enumerate(tiles.records) if record.split == split]
    records = [tiles.records[place] for place in places]
    pixels = np.array([record.height * record.width for record in records])
    shares = tiles.class_pixels[places] / pixels[:, None]
    limits = _limits(numbers["bands"], [benchmark.bands[channel] for channel in channels])
    for place, number in enumerate(choose_tiles(shares, [r.domain for r in records], _TILES * rows)):
        row, column = divmod(place, _TILES)
        left, above = _LEFT + column * (_CELL + _GAP), top + row * _TALL
        sheet.text(left, above + 0.06, short(records[number].name, 22), size=7, color=QUIET)
        image, label = _thumbnails(tiles, records[number])
        sheet.picture(left, above + _CAPTION, stretched(image[..., list(channels)], limits))
        sheet.picture(left, above + _CAPTION + _CELL + _GAP, coloured(label, benchmark.palette))


def _draw_legend(
    sheet: Sheet, benchmark: Benchmark, splits: Mapping[str, Any], left: float, top: float
) -> None:
    """Colours and names of the classes, and the share of each in the labelled pixels of each split."""
    columns = [left + _NAMES + _COLUMN * (number + 1) for number in range(len(splits))]
    sheet.text(left, top + 0.12, "share of labelled pixels", size=10, weight="bold")
    for column, split in zip(columns, splits, strict=True):
        sheet.text(column, top + 0.12 + _ROW, short(split, 12), color=QUIET, ha="right", size=9)
    row = top + 0.12 + 2 * _ROW
    for name, colour in zip(benchmark.classes, benchmark.palette, strict=True):
        sheet.swatch(left, row, np.array(colour, np.uint8))
        sheet.text(left + 0.34, row, short(name, 26), size=9.5)
        for column, numbers in zip(columns, splits.values(), strict=True):
            found = numbers["classes"][name]
            share = f"{found['share']:.2%}" if found["pixels"] else "none"
            sheet.text(column, row, share, size=9.5, ha="right")
        row += _ROW
    sheet.swatch(left, row, chequers(8, 12, 4))
    sheet.text(left + 0.34, row, "no label, of all pixels", size=9.5, color=QUIET)
    for column, numbers in zip(columns, splits.values(), strict=True):
        share = 1 - numbers["labelled_pixels"] / numbers["pixels"]
        sheet.text(column, row, f"{share:.2%}", size=9.5, ha="right", color=QUIET)


def _draw_bands(
    sheet: Sheet, benchmark: Benchmark, splits: Mapping[str, Any], left: float, top: float
) -> None:
    """Mean of each band in each split, and between which percentiles most of its values lie."""
    sheet.text(left, top + 0.12, "value of each band", size=10, weight="bold")
    sheet.text(left + 1.6, top + 0.12, "mean, and 2nd to 98th percentile", size=9, color=QUIET)
    axes = sheet.axes(left + 0.5, top + 0.55, sheet.width - left - 0.75, _PLOT)
    for number, (split, numbers) in enumerate(splits.items()):
        filled = [p for p, name in enumerate(benchmark.bands) if numbers["bands"][name]["percentiles"]]
        bands = [numbers["bands"][benchmark.bands[place]] for place in filled]
        at = np.array(filled) + 0.12 * (number - (len(splits) - 1) / 2)
        low, high = ([band["percentiles"][which] for band in bands] for which in ("2", "98"))
        colour = _LINES[number % len(_LINES)]
        axes.vlines(at, low, high, color=colour, linewidth=1.6, alpha=0.45)
        axes.plot(at, [band["mean"] for band in bands], "o-", color=colour, markersize=3, linewidth=0.9,
                  label=short(split, 20))  # fmt: skip
    few = range(0, len(benchmark.bands), -(-len(benchmark.bands) // 16))
    axes.set_xticks(few, [short(benchmark.bands[place], 10) for place in few], rotation=90 * (len(few) > 5))
    axes.tick_params(labelsize=8, colors=QUIET, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, ncols=4, handlelength=1.2, columnspacing=1.2,
        loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0,
    )  # fmt: skip


def _sensor(benchmark: Benchmark, record: PreparedRecord) -> str | None:
    return benchmark.sensors.get(record.split) or benchmark.sensors.get(record.domain)


def _role(benchmark: Benchmark, split: str) -> str:
    roles = {"source": benchmark.source, "target": benchmark.target, "held out": benchmark.holdout}
    named = [role for role, splits in roles.items() if split in splits]
    return f"{' and '.join(named)}: " if named and named != [split] else ""


def _thumbnails(tiles: PreparedTiles, record: PreparedRecord) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a tile, every so many pixels."""
    step = -(-max(record.height, record.width) // _LONGEST)
    label = tiles.read_label(record)[::step, ::step]
    return tiles.read_image(record)[::step, ::step], label


def _limits(bands: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Values to show as black and as full colour, (2, 3)."""
    percentiles = [bands[name]["percentiles"] or {"2": 0, "98": 1} for name in names]
    return np.array([[of_band[which] for of_band in percentiles] for which in ("2", "98")], np.float64)
