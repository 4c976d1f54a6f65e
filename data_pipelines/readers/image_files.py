"""Labelled windows of GeoTIFFs, or of whatever GDAL reads, straight from the files.

A folder of images with colour-coded masks, one sub-folder a domain.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data_pipelines.readers.file_records import (
    ArrayCache,
    Checked,
    FileRecord,
    common_dtype,
    find_channels,
    to_records,
)
from data_pipelines.readers.file_search import find_images, mask_path, record_names
from data_pipelines.readers.label_counts import count_labels, count_missing
from data_pipelines.readers.labels import ColourCode, Labels, RasterLabels
from data_pipelines.readers.raster_file import OpenFiles, missing_pixels, read_header, read_pixels
from data_pipelines.readers.skipping import check_corrupt, over_files
from data_pipelines.records import IGNORE, Window, crop
from data_pipelines.sensors.band_selection import check_wavelengths
from data_pipelines.sensors.file_tags import stated_wavelengths
from data_pipelines.tiles.label_grid import LabelGrid
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import find_sensor
from spectralmoe_jax.sensors import wavelengths as wavelengths_of

log = logging.getLogger(__name__)
_OPEN_FILES = 32  # a thread


class GeoTiffTiles:
    """A `data_pipelines.records.Source` over folders or lists of GeoTIFFs, or of whatever GDAL reads.

    Files are read by window, through handles that stay open. Decoded once and kept are those of formats that
    can only be decoded from the start, and small ones as long as the cache finds them again often enough.
    Images may differ in size, CRS and order of bands; nothing is reprojected. Pixels in which every band
    holds the nodata value, or that the file masks, are zero and unlabelled. An alpha beside the bands masks.

    Construction reads all headers and all labels once, in threads: a bad file or label stops here rather than
    hours into a run.

    Args:
      root: the folder.
      bands: the bands to read, in this order; see `sensors.select_bands`.
      labels: how labels are read.
      classes: number of classes.
      domains: the domains to use, default all; images come in this order, then by path.
      image_glob: pattern of the images below `root`, or several, or paths, or the name of a text file of
        these; with `{domain}` for the part that names the domain. See `files.find_images`.
      mask_template: path of the labels below `root`, of `{domain}` and the image's file `{stem}`.
      tile: images are divided evenly into windows of at most this side, each a record of its own, so that
        those of a single scene can be split into training and held-out ones; no small remainder is left at
        the edges, as sides differ by at most a pixel. Default None, whole images.
      sensor: whose names of bands and nodata value hold where files say nothing.
      sensors: of single domains, where it is another one.
      file_bands: names of the bands of files that name none.
      wavelengths: of `bands`, in micrometres, to be compared with those that files state; default none.
      corrupt: what a file that is truncated or no readable image leads to: `stop` raises it; `skip` leaves
        the image and its labels out, logs each such file once and their number. Truncated pixels, whose
        header is whole, are found when they are read, which is after this in most cases.
      cache_bytes: memory for decoded images and labels, in each process.

    Attributes:
      records: `FileRecord`s.
      label_grid: where which classes are, as the labels alone say: `class_pixels` and `exact_label_grid` take
        out pixels that the images lack, which has them read.
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
        image_glob: str | Sequence[str] = "*/images/*.tif",
        mask_template: str = "{domain}/masks/{stem}.tif",
        tile: int | None = None,
        sensor: str | None = None,
        sensors: Mapping[str, str] | None = None,
        file_bands: Sequence[str] | None = None,
        wavelengths: Sequence[float] | None = None,
        corrupt: str = "stop",
        cache_bytes: int = 512 << 20,
    ):
        check_corrupt(corrupt)
        if tile is not None and tile < 1:
            raise UserError(f"data.tile={tile}: give at least 1 pixel, or None for whole images")
        self.root, self.bands, self.labels, self.classes = Path(root), tuple(bands), labels, classes
        self.sensor, self.sensors, self.corrupt = sensor, dict(sensors or {}), corrupt
        for name in filter(None, (sensor, *self.sensors.values())):
            find_sensor(name)  # an unknown one is said before any file is read
        self._cache = ArrayCache(cache_bytes)
        self._files = OpenFiles(_OPEN_FILES)
        found = find_images(self.root, image_glob, domains)
        names = record_names(self.root, found)

        def check(file: tuple[tuple[str, Path], str]) -> Checked:
            (domain, image), name = file
            mask = mask_path(self.root, mask_template, domain, image)
            return self._check(domain, name, image, mask, file_bands, wavelengths)

        checked = over_files(check, zip(found, names, strict=True), corrupt)
        files = [file for file in checked if file is not None]
        self._require_some(files, len(found))
        self.dtype = common_dtype(files)
        self._set_records(to_records(files, tile, self._cache, self.dtype))
        self.label_grid = self._scan_labels()
        skipped = len(found) - len(self._files_rows)
        if skipped:
            log.warning(
                "%s: %d of %d images are left out, as data.corrupt=skip", self.root, skipped, len(found)
            )

    def read_image(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Raw pixel values (H, W, C) of `dtype`, of the record or of `window`. Read-only."""
        read = lambda part: self._pixels(record, part)
        return self._read(("image", record.image), record.by_window, record.in_file(window), read)

    def read_label(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Training ids (H, W) uint8, 255 for ignore, of the record or of `window`. Read-only."""
        read = lambda part: self._labelled(record, part)
        return self._read(("label", record.image), record.label_by_window, record.in_file(window), read)

    @functools.cached_property
    def exact_label_grid(self) -> LabelGrid:
        """`label_grid` without the labelled pixels that images lack, as `read_label` gives them.

        Where pixels can be missing, the labelled parts of images are read for it once, when first asked for;
        one that is skipped then has no labels.
        """
        counts = self.label_grid.counts.copy()
        lossy = [rows for rows in self._files_rows if self.records[rows.start].has_nodata]

        def missing(rows: slice) -> np.ndarray:
            cells = self.label_grid.cells_of(rows)
            return count_missing(self.labels, self.records[rows], counts[cells])

        for rows, lost in zip(lossy, over_files(missing, lossy, self.corrupt), strict=True):
            cells = self.label_grid.cells_of(rows)
            counts[cells] -= counts[cells] if lost is None else lost
        return LabelGrid(self.records, counts)

    @property
    def class_pixels(self) -> np.ndarray:
        """Labelled pixels of each class in each record, (records, K) int64; see `exact_label_grid`."""
        return self.exact_label_grid.pixels(self.records)

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
        self,
        domain: str,
        name: str,
        image: Path,
        mask: Path,
        file_bands: Sequence[str] | None,
        wavelengths: Sequence[float] | None,
    ) -> Checked:
        """What is known of an image that is right, and of its labels."""
        header = read_header(image)
        sensor = self.sensors.get(domain, self.sensor)
        channels, alpha = find_channels(image, header, self.bands, sensor, file_bands, domain)
        if header.dtype.kind not in "uif":
            raise UserError(
                f"{image}: pixels of type {header.dtype} are not supported, store integers or floats"
            )
        if header.states_wavelengths and (wanted := self._wavelengths_in(domain, wavelengths)):
            stated = stated_wavelengths(image)
            check_wavelengths(str(image), self.bands, channels, stated, wanted, sensor)
        if not mask.is_file():
            raise UserError(f"{image}: it has no mask {mask}, add the mask or correct data.mask_template")
        nodata = None if sensor is None else find_sensor(sensor).nodata
        random_access = self.labels.check(image, header, mask)
        return Checked(domain, name, image, mask, header, channels, nodata, alpha, random_access)

    def _wavelengths_in(self, domain: str, wavelengths: Sequence[float] | None) -> Sequence[float] | None:
        """What the files of a domain are compared with: its own sensor's table, or else `wavelengths`."""
        if domain not in self.sensors:
            return wavelengths
        sensor = self.sensors[domain]
        return None if find_sensor(sensor).nominal else wavelengths_of(self.bands, sensor)

    def _read(
        self,
        key: tuple[str, Path],
        by_window: bool,
        part: Window,
        read: Callable[[Window | None], np.ndarray],
    ) -> np.ndarray:
        with self._files.used():
            if by_window:
                array = read(part)
                array.setflags(write=False)
                return array
            return crop(self._cache.get(key, lambda: read(None)), part)

    def _pixels(self, record: FileRecord, part: Window | None) -> np.ndarray:
        pixels, _ = read_pixels(record.image, part, record.channels, record.nodata, record.alpha)
        return pixels.astype(self.dtype, copy=False)

    def _labelled(self, record: FileRecord, part: Window | None) -> np.ndarray:
        label, _ = self.labels.read(record.image, record.mask, part)
        if record.has_nodata:
            missing = missing_pixels(record.image, part, record.channels, record.nodata, record.alpha)
            if missing is not None:
                label[missing] = IGNORE
        return label

    def _set_records(self, records: tuple[FileRecord, ...]) -> None:
        self.records, self._files_rows = records, _rows_of_files(records)

    def _require_some(self, files: Sequence[object], count: int) -> None:
        if not files:
            raise UserError(
                f"{self.root}: none of the {count} images can be read together with its labels, all were "
                "skipped as data.corrupt=skip: restore the files"
            )

    def _scan_labels(self) -> LabelGrid:
        """Reads every label: where which classes are, and one warning on all unknown values."""
        files = [self.records[rows] for rows in self._files_rows]
        found = over_files(lambda of: count_labels(self.labels, of, self.classes), files, self.corrupt)
        scans = [scan for scan in found if scan is not None]
        self._require_some(scans, len(files))
        if len(scans) < len(files):
            kept = [of_file for of_file, scan in zip(files, found, strict=True) if scan is not None]
            self._set_records(tuple(itertools.chain.from_iterable(kept)))
        unknown: Counter = sum((values for _, values in scans), Counter())
        counts = np.concatenate([of_file for of_file, _ in scans])
        commonest = ", ".join(f"{value} x {count}" for value, count in unknown.most_common(5))
        if not counts.any():
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
        return LabelGrid(self.records, counts, lossy=np.array([record.has_nodata for record in self.records]))


def _rows_of_files(records: Sequence[FileRecord]) -> list[slice]:
    """Which records are of each file; they follow each other."""
    counts = [len(list(group)) for _, group in itertools.groupby(r.image for r in records)]
    ends = list(itertools.accumulate(counts, initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


class ImageFolder(GeoTiffTiles):
    """`GeoTiffTiles` for masks that people painted: JPEG, PNG, GeoTIFF and whatever GDAL reads.

    Masks are one of
      - three or four 8-bit bands: colours of `palette`; transparent pixels are ignored;
      - one band with a colour table: the same, through the table;
      - one band without: training ids 0..K-1, 255 for ignore.
    Colours that are neither in `palette` nor in `ignore_colours` are ignored, counted and logged in one
    warning, whatever the worker count.

    Args:
      palette: colour (r, g, b) of each class; the training id is the index.
      ignore_colours: colours that mean "no label".
      others: as `GeoTiffTiles`'s.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        palette: Sequence[Sequence[int]],
        bands: Sequence[str],
        domains: Sequence[str] | None = None,
        image_glob: str = "*/images/*.jpg",
        mask_template: str = "{domain}/masks/{stem}.png",
        ignore_colours: Sequence[Sequence[int]] = (),
        sensor: str | None = None,
        file_bands: Sequence[str] | None = None,
        corrupt: str = "stop",
        cache_bytes: int = 512 << 20,
    ):
        super().__init__(
            root,
            bands=bands,
            labels=RasterLabels(ColourCode(palette, ignore_colours)),
            classes=len(palette),
            domains=domains,
            image_glob=image_glob,
            mask_template=mask_template,
            sensor=sensor,
            file_bands=file_bands,
            corrupt=corrupt,
            cache_bytes=cache_bytes,
        )
