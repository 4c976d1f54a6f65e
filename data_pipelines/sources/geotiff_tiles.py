"""Labelled windows of GeoTIFFs, or of whatever GDAL reads, straight from the files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

from data_pipelines.sensors.band_tags import wavelengths_of_file
from data_pipelines.sensors.selection import check_wavelengths, select_bands
from data_pipelines.sources.arrays import crop
from data_pipelines.sources.cache import ArrayCache
from data_pipelines.sources.files import find_images, mask_path, record_names
from data_pipelines.sources.labels import Labels
from data_pipelines.sources.raster_file import (
    AS_STORED,
    Header,
    OpenFiles,
    missing_pixels,
    read_header,
    read_pixels,
)
from data_pipelines.sources.records import IGNORE, Record, Window
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import SENSORS

log = logging.getLogger(__name__)
_SCANNED_PIXELS = 1 << 23  # of a mask at a time, so that one larger than memory can be counted
_DECODED_WHOLE = 16 << 20  # bytes; larger files are read by window where their format allows it
_OPEN_FILES = 32  # a thread


@dataclass(frozen=True)
class FileRecord(Record):
    """A `Record` with its two files, and the window of them that it is.

    Attributes:
      channels: places in the file of the source's bands.
      has_nodata: whether pixels can be missing.
      by_window: whether windows are read on their own, and not cut from the decoded file.
    """

    image: Path
    mask: Path
    row: int
    col: int
    channels: tuple[int, ...]
    has_nodata: bool
    by_window: bool

    @property
    def image_name(self) -> str:
        return self.image.as_posix()

    def in_file(self, window: Window | None) -> Window:
        """`window` of this record, default all of it, as a window of the file."""
        row, col, height, width = window or Window(0, 0, self.height, self.width)
        return Window(self.row + row, self.col + col, height, width)


class GeoTiffTiles:
    """A `data_pipelines.sources.Source` over folders of GeoTIFFs, or of whatever GDAL reads.

    Files are read by window, through handles that stay open; small ones, and formats that can only be decoded
    from the start, are decoded once and kept. Images may differ in size, CRS and order of bands; nothing is
    reprojected. Pixels in which every band holds the nodata value are zero and unlabelled.

    Construction reads all headers and all labels once, in threads: a bad file or label stops here rather than
    hours into a run, and `class_pixels` is known.

    Args:
      root: the folder.
      bands: the bands to read, in this order; see `sensors.select_bands`.
      labels: how labels are read.
      classes: number of classes.
      domains: the domains to use, default all; images come in this order, then by path.
      image_glob: pattern of the images below `root`, with `{domain}` for the part that names the domain;
        without it, that is the first folder of the path.
      mask_template: path of the labels below `root`, of `{domain}` and the image's file `{stem}`.
      tile: images are divided evenly into windows of at most this side, each a record of its own, so that
        those of a single scene can be split into training and held-out ones; default None, whole images.
      sensor: whose names of bands and nodata value hold where files say nothing.
      file_bands: names of the bands of files that name none.
      wavelengths: of `bands`, in micrometres, to be compared with those that files state; default none.
      cache_bytes: memory for decoded images and labels, in each process.

    Attributes:
      records: `FileRecord`s.
      class_pixels: labelled pixels of each class in each record, (records, K) int64.
      dtype: of the pixels: uint8, int16 or uint16 if all files have it, else float32.

    Raises:
      UserError: naming the file or the key. Reading raises it for a file that is truncated or has values that
        are not finite.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        bands: Sequence[str],
        labels: Labels,
        classes: int,
        domains: Sequence[str] | None = None,
        image_glob: str = "*/images/*.tif",
        mask_template: str = "{domain}/masks/{stem}.tif",
        tile: int | None = None,
        sensor: str | None = None,
        file_bands: Sequence[str] | None = None,
        wavelengths: Sequence[float] | None = None,
        cache_bytes: int = 512 << 20,
    ):
        if tile is not None and tile < 1:
            raise UserError(f"data.tile={tile}: give at least 1 pixel, or None for whole images")
        self.root, self.bands, self.labels, self.classes = Path(root), tuple(bands), labels, classes
        self.nodata = SENSORS[sensor].nodata if sensor in SENSORS else None
        self._cache = ArrayCache(cache_bytes)
        self._files = OpenFiles(_OPEN_FILES)
        found = find_images(self.root, image_glob, domains)
        names = record_names(self.root, found)
        masks = [mask_path(self.root, mask_template, domain, path) for domain, path in found]

        def check(image: Path, mask: Path) -> tuple[Header, tuple[int, ...]]:
            return self._check(image, mask, sensor, file_bands, wavelengths)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            checked = list(pool.map(check, [path for _, path in found], masks))
        self.dtype = _common_dtype([path for _, path in found], [header for header, _ in checked])
        self.records: tuple[FileRecord, ...] = tuple(
            record
            for (domain, path), name, mask, (header, channels) in zip(
                found, names, masks, checked, strict=True
            )
            for record in self._divide(domain, name, path, mask, header, channels, tile)
        )
        self.class_pixels = self._scan_labels()

    def read_image(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Raw pixel values (H, W, C) of `dtype`, of the record or of `window`. Read-only."""
        return self._read(record, ("image", record.image), window, lambda part: self._pixels(record, part))

    def read_label(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Training ids (H, W) uint8, 255 for ignore, of the record or of `window`. Read-only."""
        return self._read(record, ("label", record.image), window, lambda part: self._labelled(record, part))

    def describe(self) -> str:
        """One line a domain: how many images, how many pixels, how much of them is labelled."""
        lines = []
        for domain in dict.fromkeys(record.domain for record in self.records):
            chosen = [i for i, record in enumerate(self.records) if record.domain == domain]
            pixels = sum(self.records[i].height * self.records[i].width for i in chosen)
            labelled = self.class_pixels[chosen].sum() / pixels
            lines.append(f"{domain}: {len(chosen)} images, {pixels / 1e6:.1f} Mpx, {labelled:.1%} labelled")
        return "\n".join(lines)

    def _check(
        self, image: Path, mask: Path, sensor: str | None, file_bands: Sequence[str] | None,
        wavelengths: Sequence[float] | None,
    ) -> tuple[Header, tuple[int, ...]]:  # fmt: skip
        """The header of an image that is right, and where its bands are."""
        header = read_header(image)
        channels = select_bands(
            str(image), self.bands, header.count, header.descriptions,
            colours=header.colours, sensor=sensor, file_bands=file_bands,
        )  # fmt: skip
        if header.dtype.kind not in "uif":
            raise UserError(
                f"{image}: pixels of type {header.dtype} are not supported, store integers or floats"
            )
        if wavelengths and header.states_wavelengths:
            stated = wavelengths_of_file(image)
            check_wavelengths(str(image), self.bands, [stated[channel] for channel in channels], wavelengths)
        if not mask.is_file():
            raise UserError(f"{image}: it has no mask {mask}, add the mask or correct data.mask_template")
        self.labels.check(image, header, mask)
        return header, channels

    def _divide(
        self, domain: str, name: str, image: Path, mask: Path, header: Header, channels: tuple[int, ...],
        tile: int | None,
    ) -> list[FileRecord]:  # fmt: skip
        """The records of an image: one, or its windows, whose sides differ by at most a pixel."""
        size = header.height * header.width * len(channels) * self.dtype.itemsize
        has_nodata = header.has_nodata or self.nodata is not None
        by_window = (header.random_access and not self._cache.admits(size)) or (
            header.random_access and size > _DECODED_WHOLE
        )
        shared = image, mask
        rows, cols = (ceil(side / tile) if tile else 1 for side in (header.height, header.width))
        records = []
        for row in range(rows):
            for col in range(cols):
                top, bottom = (header.height * n // rows for n in (row, row + 1))
                left, right = (header.width * n // cols for n in (col, col + 1))
                own = name if rows == cols == 1 else f"{name}_{top}_{left}"
                records.append(
                    FileRecord(
                        domain,
                        own,
                        bottom - top,
                        right - left,
                        *shared,
                        top,
                        left,
                        channels,
                        has_nodata,
                        by_window,
                    )
                )
        return records

    def _read(
        self, record: FileRecord, key: tuple[str, Path], window: Window | None,
        read: Callable[[Window | None], np.ndarray],
    ) -> np.ndarray:  # fmt: skip
        part = record.in_file(window)
        with self._files.used():
            if record.by_window:
                array = read(part)
                array.setflags(write=False)
                return array
            return crop(self._cache.get(key, lambda: read(None)), part)

    def _pixels(self, record: FileRecord, part: Window | None) -> np.ndarray:
        pixels, _ = read_pixels(record.image, part, record.channels, self.nodata)
        return pixels.astype(self.dtype, copy=False)

    def _labelled(self, record: FileRecord, part: Window | None) -> np.ndarray:
        label, _ = self.labels.read(record.image, record.mask, part)
        if record.has_nodata:
            missing = missing_pixels(record.image, part, record.channels, self.nodata)
            if missing is not None:
                label[missing] = IGNORE
        return label

    def _scan_labels(self) -> np.ndarray:
        """Reads every label: classes' pixels (records, K), and one warning on all unknown values."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            scans = list(pool.map(self._scan, self.records))
        unknown: Counter = sum((values for _, values in scans), Counter())
        class_pixels = np.stack([counts for counts, _ in scans])
        commonest = ", ".join(f"{value} x {count}" for value, count in unknown.most_common(5))
        if not class_pixels.any():
            raise UserError(
                f"{self.root}: no pixel of any mask is of a class"
                + (f", the masks hold {commonest}" if unknown else "")
                + ": correct classes.palette or data.label_values"
            )
        if unknown:
            log.warning(
                "%s: %d pixels in %d of %d masks have colours that are neither in classes.palette nor in "
                "data.ignore_colours and are ignored: %s%s",
                self.root,
                unknown.total(),
                sum(bool(values) for _, values in scans),
                len(scans),
                commonest,
                ", ..." if len(unknown) > 5 else "",
            )
        return class_pixels

    def _scan(self, record: FileRecord) -> tuple[np.ndarray, Counter]:
        counts = np.zeros(256, np.int64)
        unknown: Counter = Counter()
        rows = max(1, _SCANNED_PIXELS // record.width)
        for row in range(0, record.height, rows):
            part = record.in_file(Window(row, 0, min(rows, record.height - row), record.width))
            label, values = self.labels.read(record.image, record.mask, part)
            if values and self.labels.strict:
                value, count = values.most_common(1)[0]
                raise UserError(
                    f"{record.mask}: {count} pixels hold {value}, which is neither in data.label_values nor "
                    "in data.ignore_values: add it to one of them"
                )
            counts += np.bincount(label.ravel(), minlength=256)
            unknown += values
        return counts[: self.classes], unknown


def _common_dtype(paths: Sequence[Path], headers: Sequence[Header]) -> np.dtype:
    """The type that all pixels are read as."""
    eight_bit = {header.dtype == np.uint8: path for path, header in zip(paths, headers, strict=True)}
    if len(eight_bit) == 2:
        raise UserError(
            f"{eight_bit[False]}: not 8-bit, but {eight_bit[True]} is: "
            "store all images of a split in one type"
        )
    types = {header.dtype for header in headers}
    return types.pop() if len(types) == 1 and types <= set(AS_STORED) else np.dtype(np.float32)
