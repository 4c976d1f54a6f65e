"""Whether image files are whole, seen from their structure, without decoding a pixel."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rasterio

from data_pipelines.sources.raster_file import opened, unreadable

_JPEG, _JPEG_END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", 0xDA
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def require_complete(paths: Iterable[Path]) -> None:
    """Check that JPEG, PNG and TIFF files reach their end, several at a time; other formats are not judged.

    A damaged file of full length is found only when it is read.

    Raises UserError for the first file that was cut short, as reading it would.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, reason in zip(paths := list(paths), pool.map(what_is_missing, paths), strict=True):
            if reason:
                raise unreadable(path, reason)


def what_is_missing(path: Path) -> str:
    """What a JPEG, PNG or TIFF file lacks, in words, or ""."""
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_TIFF):
            return _missing_of_tiff(path)
        if not start.startswith((_JPEG, _PNG)):
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if start.startswith(_PNG):
                return "" if content.rfind(_PNG_END) >= 0 else "no IEND chunk at its end"
            # From the first scan on: a thumbnail in the header has an end marker of its own.
            scan = _first_scan(content)
            return "" if 0 < scan <= content.rfind(_JPEG_END) else "no end-of-image marker"


def _first_scan(content: mmap.mmap) -> int:
    """Where the first scan of a JPEG starts, or -1 where its header ends before there is one."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        if content[place + 1] == _SCAN:
            return place
        # a marker may be preceded by any number of fill bytes
        fill = content[place + 1] == 0xFF
        place += 1 if fill else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return -1


def _missing_of_tiff(path: Path) -> str:
    """Compares the place of the last block of every band with the length of the file."""
    length = path.stat().st_size
    with opened(path) as dataset:
        ends = [_end_of_last_block(dataset, band) for band in dataset.indexes]
    missing = max(ends, default=0) - length
    return f"{missing} bytes short" if missing > 0 else ""


def _end_of_last_block(dataset: rasterio.DatasetReader, band: int) -> int:
    """Where the last strip or tile of a band ends in the file; 0 if it is not stored, as in sparse files."""
    height, width = dataset.block_shapes[band - 1]
    block = f"{(dataset.width - 1) // width}_{(dataset.height - 1) // height}"
    offset, size = (
        dataset.get_tag_item(f"BLOCK_{what}_{block}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
    )
    return int(offset or 0) + int(size or 0)
