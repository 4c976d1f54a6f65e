"""Contact sheet of prepared tiles: one picture with tiles of every split, their masks and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Dataset
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
from spectralmoe_jax.escapes import drawn

_TILES = 8  # in a row
_ROWS = 3  # on a sheet with few splits; every split has at least one

# lengths in inches
_CELL, _GAP = 1.55, 0.06  # side of a picture, space between two
_LEFT, _TOP, _HEAD, _CAPTION, _SPACE, _BOTTOM = 0.25, 0.85, 0.3, 0.17, 0.2, 0.1
_TALL = _CAPTION + 2 * _CELL + _GAP + 0.08  # height of a row of images and their masks
_NAMES, _COLUMN, _ROW, _PLOT, _NARROWEST = 1.9, 0.85, 0.235, 1.9, 4.2  # legend, and the plot below it

_LONGEST = 256  # longer side of a tile as drawn, in pixels
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito (2008)


def write_contact_sheet(dataset: Dataset, folder: Path, statistics: Mapping[str, Any]) -> None:
    """Write `contact_sheet.png` to a folder of prepared tiles; the same tiles give the same bytes.

    The tiles of a split are chosen to show all its classes, rare ones too, and all its domains. They share
    one contrast stretch, from the 2nd to the 98th percentile of each band over the split, so that their
    brightness can be compared.

    Args:
      dataset: the data set.
      folder: the folder of its prepared tiles.
      statistics: from `data_pipelines.prepare.statistics.write_metadata`.
    """
    tiles = PreparedTiles(folder)
    splits = statistics["splits"]
    rows = max(1, _ROWS // len(splits))
    columns = min(_TILES, max(numbers["tiles"] for numbers in splits.values()))
    grid = _LEFT + columns * (_CELL + _GAP)
    width = grid + 0.3 + max(_NAMES + _COLUMN * len(splits), _NARROWEST) + 0.2
    block = _HEAD + rows * _TALL + _SPACE
    legend = _ROW * (len(dataset.classes) + 3) + _SPACE
    height = _TOP + max(block * len(splits), legend + _PLOT + 1.2) + _BOTTOM
    sheet = Sheet(width, height, cell=_CELL)
    channels = display_bands(dataset.bands, _sensor(dataset, tiles.records[0]))
    sheet.text(_LEFT, 0.3, dataset.title, size=17, weight="bold")
    shown = ", ".join(dataset.bands[channel] for channel in channels)
    explained = f"Images above, masks below. Red, green, blue show {shown}, stretched alike within a split."
    sheet.text(_LEFT, 0.6, explained, color=QUIET)
    for number, (split, numbers) in enumerate(splits.items()):
        top = _TOP + number * block
        _head(sheet, dataset, split, numbers, top)
        _draw_tiles(sheet, dataset, tiles, split, numbers, channels, rows, top + _HEAD)
    _draw_legend(sheet, dataset, splits, left=grid + 0.3, top=_TOP)
    _draw_bands(sheet, dataset, splits, left=grid + 0.3, top=_TOP + legend)
    sheet.save(folder / "contact_sheet.png")


def choose_tiles(shares: np.ndarray, domains: Sequence[str], count: int) -> list[int]:
    """Choose tiles that together show as much as possible of every class.

    Greedily maximises the sum over classes of the square root of their shares in the chosen tiles, so that a
    class that is shown already counts for less. No domain is chosen again before every domain was.

    Args:
      shares: share of each class in each tile, (N, K).
      domains: domain of each tile.
      count: number of tiles to choose.

    Returns:
      Indices of the chosen tiles, ascending.
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


def _head(sheet: Sheet, dataset: Dataset, split: str, numbers: Mapping[str, Any], top: float) -> None:
    sheet.text(_LEFT, top + 0.12, split, size=13, weight="bold")
    what = f"{counted(numbers['tiles'], 'tile')} of {counted(numbers['domains'], 'domain')}"
    labelled = f"{numbers['labelled_pixels'] / numbers['pixels']:.1%} labelled"
    beside = _LEFT + 0.115 * len(split) + 0.25
    sheet.text(beside, top + 0.13, f"{_role(dataset, split)}{what}, {labelled}", color=QUIET)


def _draw_tiles(
    sheet: Sheet,
    dataset: Dataset,
    tiles: PreparedTiles,
    split: str,
    numbers: Mapping[str, Any],
    channels: Sequence[int],
    rows: int,
    top: float,
) -> None:
    """Draw `rows` rows of images with their names above and their masks below."""
    of_split = [index for index, record in enumerate(tiles.records) if record.split == split]
    records = [tiles.records[index] for index in of_split]
    pixels = np.array([record.height * record.width for record in records])
    shares = tiles.class_pixels[of_split] / pixels[:, None]  # (N, K)
    limits = _limits(numbers["bands"], [dataset.bands[channel] for channel in channels])
    for place, number in enumerate(choose_tiles(shares, [r.domain for r in records], _TILES * rows)):
        row, column = divmod(place, _TILES)
        left, above = _LEFT + column * (_CELL + _GAP), top + row * _TALL
        sheet.text(left, above + 0.06, short(records[number].name, 22), size=7, color=QUIET)
        image, label = _thumbnails(tiles, records[number])
        sheet.picture(left, above + _CAPTION, stretched(image[..., list(channels)], limits))
        sheet.picture(left, above + _CAPTION + _CELL + _GAP, coloured(label, dataset.palette))


def _draw_legend(sheet: Sheet, dataset: Dataset, splits: Mapping[str, Any], left: float, top: float) -> None:
    """Draw colours and names of the classes, with their shares of the labelled pixels of each split."""
    columns = [left + _NAMES + _COLUMN * (number + 1) for number in range(len(splits))]
    sheet.text(left, top + 0.12, "share of labelled pixels", size=10, weight="bold")
    for column, split in zip(columns, splits, strict=True):
        sheet.text(column, top + 0.12 + _ROW, short(split, 12), color=QUIET, ha="right", size=9)
    row = top + 0.12 + 2 * _ROW
    for name, colour in zip(dataset.classes, dataset.palette, strict=True):
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


def _draw_bands(sheet: Sheet, dataset: Dataset, splits: Mapping[str, Any], left: float, top: float) -> None:
    """Plot mean and 2nd to 98th percentile of each band in each split."""
    sheet.text(left, top + 0.12, "value of each band", size=10, weight="bold")
    sheet.text(left + 1.6, top + 0.12, "mean, and 2nd to 98th percentile", size=9, color=QUIET)
    axes = sheet.axes(left + 0.5, top + 0.55, sheet.width - left - 0.75, _PLOT)
    for number, (split, numbers) in enumerate(splits.items()):
        filled = [p for p, name in enumerate(dataset.bands) if numbers["bands"][name]["percentiles"]]
        bands = [numbers["bands"][dataset.bands[place]] for place in filled]
        at = np.array(filled) + 0.12 * (number - (len(splits) - 1) / 2)
        low, high = ([band["percentiles"][which] for band in bands] for which in ("2", "98"))
        colour = _LINES[number % len(_LINES)]
        axes.vlines(at, low, high, color=colour, linewidth=1.6, alpha=0.45)
        style = {"color": colour, "markersize": 3, "linewidth": 0.9}
        axes.plot(at, [band["mean"] for band in bands], "o-", label=drawn(short(split, 20)), **style)
    few = range(0, len(dataset.bands), -(-len(dataset.bands) // 16))
    axes.set_xticks(
        few, [drawn(short(dataset.bands[place], 10)) for place in few], rotation=90 * (len(few) > 5)
    )
    axes.tick_params(labelsize=8, colors=QUIET, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        ncols=4,
        handlelength=1.2,
        columnspacing=1.2,
        loc="lower left",
        bbox_to_anchor=(0, 0.98),
        borderaxespad=0,
    )


def _sensor(dataset: Dataset, record: PreparedRecord) -> str | None:
    return dataset.sensors.get(record.split) or dataset.sensors.get(record.domain)


def _role(dataset: Dataset, split: str) -> str:
    roles = {"source": dataset.source, "target": dataset.target, "held out": dataset.holdout}
    named = [role for role, splits in roles.items() if split in splits]
    return f"{' and '.join(named)}: " if named and named != [split] else ""


def _thumbnails(tiles: PreparedTiles, record: PreparedRecord) -> tuple[np.ndarray, np.ndarray]:
    """Read image and label of a tile, subsampled to `_LONGEST` pixels."""
    step = -(-max(record.height, record.width) // _LONGEST)
    label = tiles.read_label(record)[::step, ::step]
    return tiles.read_image(record)[::step, ::step], label


def _limits(bands: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Return the pixel values to show as black and as full colour, (2, 3)."""
    percentiles = [bands[name]["percentiles"] or {"2": 0, "98": 1} for name in names]
    return np.array([[of_band[which] for of_band in percentiles] for which in ("2", "98")], np.float64)
