"""Training tiles and their masks as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.sheet import QUIET, Sheet, chequers, coloured, display_bands, short, stretched
from data_pipelines.survey.measure import Survey

_CELL, _GAP, _LEFT, _TOP, _SPACE, _LEGEND, _ROW = 1.55, 0.06, 0.25, 0.85, 0.25, 3.0, 0.235  # inches


def draw(config: ConfigDict, found: Survey, path: Path) -> None:
    """Writes a PNG with a row of images and the row of their masks for each batch.

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
    channels = display_bands(config.bands, config.get("sensor"))
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
        sheet.picture(left, top + _CELL + _GAP, coloured(label, config.classes.palette))
    _draw_legend(sheet, config, found, left=grid + 0.3)
    sheet.save(path)


def _draw_legend(sheet: Sheet, config: ConfigDict, found: Survey, left: float) -> None:
    sheet.text(left, _TOP + 0.12, "share of labelled pixels", size=10, weight="bold")
    row = _TOP + 0.12 + _ROW
    for name, colour, share in zip(config.classes.names, config.classes.palette, found.shares, strict=True):
        sheet.swatch(left, row, np.array(colour, np.uint8))
        sheet.text(left + 0.34, row, short(name, 26), size=9.5)
        sheet.text(left + _LEGEND - 0.2, row, f"{share:.2%}" if share else "-", size=9.5, ha="right")
        row += _ROW
    sheet.swatch(left, row, chequers(8, 12, 4))
    sheet.text(left + 0.34, row, "no label, of all pixels", size=9.5, color=QUIET)
    sheet.text(left + _LEGEND - 0.2, row, f"{1 - found.labelled:.2%}", size=9.5, ha="right", color=QUIET)
