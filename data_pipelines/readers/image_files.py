"""Images and labels read directly from files: GeoTIFFs, folders of pictures, and other formats of GDAL."""

from __future__ import annotations

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.address import as_path
from data_pipelines.readers.file_records import (
    ArrayCache,
    FileRecord,
    ValidatedFile,
    common_dtype,
    find_channels,
    to_records,
)
from data_pipelines.readers.file_search import find_images, mask_path, record_names
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.label_counts import count_labels, count_missing
from data_pipelines.readers.labels import Labels, RasterLabels, VectorLabels
from data_pipelines.readers.raster_file import OpenFiles, missing_pixels, read_pixels
from data_pipelines.readers.raster_header import read_header, stated_scaling, stated_wavelengths
from data_pipelines.readers.unreadable import check_corrupt, map_files
from data_pipelines.records import IGNORE, Window, crop
from data_pipelines.sensors import check_wavelengths
from data_pipelines.stored_values import scaling_words
from data_pipelines.tiles.label_grid import LabelGrid
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.sensors import find_sensor
from spectralmoe_jax.sensors import wavelengths as wavelengths_of

log = logging.getLogger(__name__)
_OPEN_FILES = 32  # in each thread


class GeoTiffTiles:
    """A `data_pipelines.records.Source` over folders or lists of image files.

    Files are read by window, through handles that stay open. Formats that can only be decoded from the start
    are decoded once and cached, and so are small files as long as later reads are likely to hit the cache.
    Images may differ in size, CRS and order of bands; nothing is reprojected. Pixels whose bands all have the
    nodata value, or that the file masks, are zero and unlabelled. An alpha band beside the wanted bands is a
    mask.

    Construction reads all headers and all labels once, in threads, so that a bad file or label is found here
    and not hours into a run.

    Args:
      root: the folder.
      bands: names of the bands to read, in this order; see `sensors.select_bands`.
      labels: reads labels.
      classes: number of classes.
      domains: domains to use; default all. Images come in this order, then by path.
      image_glob: pattern of the images below `root`, or several, or paths, or the name of a text file of
        these, with `{domain}` for the part that is the domain. See `file_search.find_images`.
      mask_template: path of the labels below `root`, from `{domain}` and the image's `{stem}`.
      tile: side of the windows that images are divided into, in pixels; each is a record of its own, so that
        parts of a single scene can be held out. Windows of one image differ by at most one pixel a side, and
        none is a small remainder. Default None, whole images.
      sensor: name of the sensor whose band aliases and nodata value hold where files state none.
      sensors: name of the sensor of single domains that differ.
      file_bands: names of all bands of the files in order, for files with other names or none.
      wavelengths: of `bands`, in micrometres, to compare with those that files state; default no comparison.
      corrupt: `stop` raises the error of a truncated or unreadable file; `skip` leaves image and labels out,
        and logs each such file and their number. Truncated pixels under a valid header are mostly found
        later, when they are read.
      cache_bytes: memory for decoded images and labels, in each process.

    Attributes:
      records: `FileRecord`s.
      label_grid: counts of the labels in coarse cells. `class_pixels` and `exact_label_grid` leave out pixels
        that are missing in the images, which have to be read for that.
      dtype: type of the pixels: uint8, int16 or uint16 if all files have it, else float32.
      scaling: scales and offsets that the files state for the bands, those of the first file; empty for none.

    Raises:
      UserError: names the file or the key. Reading raises it for a file that is truncated or has values that
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
            raise bad_value("config.data.tile", tile, "must be at least 1 pixel, or None for whole images")
        self.root, self.bands, self.labels, self.classes = as_path(root), tuple(bands), labels, classes
        self.sensor, self.sensors, self.corrupt = sensor, dict(sensors or {}), corrupt
        for name in filter(None, (sensor, *self.sensors.values())):
            find_sensor(name)  # fail on an unknown sensor before reading files
        self._cache = ArrayCache(cache_bytes)
        self._files = OpenFiles(_OPEN_FILES)
        found = find_images(self.root, image_glob, domains)
        names = record_names(self.root, found)

        def validate(file: tuple[tuple[str, Path], str]) -> ValidatedFile:
            """Validate one image and its labels."""
            (domain, image), name = file
            mask = mask_path(self.root, mask_template, domain, image)
            return self._validate(domain, name, image, mask, file_bands, wavelengths)

        validated = map_files(validate, zip(found, names, strict=True), corrupt)
        files = [file for file in validated if file is not None]
        self._require_some(files, len(found))
        self.dtype = common_dtype(files)
        self.scaling = self._common_scaling(files)
        self._set_records(to_records(files, tile, self._cache, self.dtype))
        self.label_grid = self._count_labels()
        skipped = len(found) - len(self._by_file)
        if skipped:
            log.warning(
                "%s: %d of %d images are left out, as data.corrupt=skip", self.root, skipped, len(found)
            )

    def read_image(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Read raw pixel values (H, W, C) of `dtype`, of the record or a window; read-only."""
        read = lambda part: self._pixels(record, part)
        return self._read(("image", record.image), record.by_window, record.in_file(window), read)

    def read_label(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Read training ids (H, W) uint8, 255 for no label, of the record or a window; read-only."""
        read = lambda part: self._labelled(record, part)
        return self._read(("label", record.image), record.label_by_window, record.in_file(window), read)

    @functools.cached_property
    def exact_label_grid(self) -> LabelGrid:
        """The label grid without labelled pixels that are missing in the images, as `read_label` has them.

        At the first request, the labelled parts of images in which pixels can be missing are read once. A
        file that is skipped then has no labels.
        """
        counts = self.label_grid.counts.copy()
        lossy = [of_file for of_file in self._by_file if self.records[of_file.start].has_nodata]

        def missing(of_file: slice) -> np.ndarray:
            """Count the labelled pixels of one file that the image lacks."""
            cells = self.label_grid.cells_of(of_file)
            return count_missing(self.labels, self.records[of_file], counts[cells])

        for of_file, lost in zip(lossy, map_files(missing, lossy, self.corrupt), strict=True):
            cells = self.label_grid.cells_of(of_file)
            counts[cells] -= counts[cells] if lost is None else lost
        return LabelGrid(self.records, counts)

    @property
    def class_pixels(self) -> np.ndarray:
        """Labelled pixels of each class in each record, (records, K) int64; see `exact_label_grid`."""
        return self.exact_label_grid.pixels(self.records)

    def describe(self) -> str:
        """Return a line for each domain: number of images, of pixels, and share of labelled pixels."""
        lines = []
        for domain in dict.fromkeys(record.domain for record in self.records):
            chosen = [i for i, record in enumerate(self.records) if record.domain == domain]
            pixels = sum(self.records[i].height * self.records[i].width for i in chosen)
            labelled = self.class_pixels[chosen].sum() / pixels
            lines.append(f"{domain}: {len(chosen)} images, {pixels / 1e6:.1f} Mpx, {labelled:.1%} labelled")
        return "\n".join(lines)

    def _validate(
        self,
        domain: str,
        name: str,
        image: Path,
        mask: Path,
        file_bands: Sequence[str] | None,
        wavelengths: Sequence[float] | None,
    ) -> ValidatedFile:
        header = read_header(image)
        sensor = self.sensors.get(domain, self.sensor)
        channels, alpha = find_channels(image, header, self.bands, sensor, file_bands, domain)
        header = header.with_type_of(channels)
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
        return ValidatedFile(domain, name, image, mask, header, channels, nodata, alpha, random_access)

    def _common_scaling(self, files: Sequence[ValidatedFile]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the scales and offsets of the first file, and warn if another states others."""
        found: dict[tuple[tuple[float, ...], tuple[float, ...]], Path] = {}
        for file in files:
            header = file.header
            found.setdefault(stated_scaling(header.scales, header.offsets, file.channels), file.image)
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            log.warning(
                "%s: files state different scale and offset, which are not applied: %s %s, %s %s: convert "
                "them to one, as with gdal_translate -unscale, unless stored values mean the same in all",
                self.root,
                one,
                scaling_words(*first),
                other,
                scaling_words(*second),
            )
        return next(iter(found))

    def has_binary_masks(self) -> bool:
        """Return whether the masks are of numbers, and these are 0 and 255 alone, the latter no label."""
        if not isinstance(self.labels, RasterLabels) or self.label_grid.counts[:, 1:].any():
            return False
        files = [self.records[of_file.start].mask for of_file in self._by_file]
        return any(map(self.labels.holds_255, dict.fromkeys(files)))

    def _wavelengths_in(self, domain: str, wavelengths: Sequence[float] | None) -> Sequence[float] | None:
        """Return the wavelengths to compare a domain's files with: its sensor's, or else `wavelengths`."""
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
        """Read a window from the file, or from the cache of decoded files; read-only."""
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
        self.records, self._by_file = records, _slices_by_file(records)

    def _require_some(self, files: Sequence[object], count: int) -> None:
        if not files:
            raise UserError(
                f"{self.root}: none of the {count} images can be read together with its labels, all were "
                "skipped as data.corrupt=skip: restore the files"
            )

    def _elsewhere(self, counts: np.ndarray) -> str:
        """Return where the first image without a label lies if its polygons lie elsewhere, or "".

        Args:
          counts: labelled pixels (cells, K).
        """
        if not isinstance(self.labels, VectorLabels):
            return ""
        grid = LabelGrid(self.records, counts)
        for of_file in self._by_file:
            if not counts[grid.cells_of(of_file)].any():
                record = self.records[of_file.start]
                return self.labels.elsewhere(record.image, record.mask)
        return ""

    def _count_labels(self) -> LabelGrid:
        """Count all labels in coarse cells, and warn once of all unknown values."""
        files = [self.records[of_file] for of_file in self._by_file]
        found = map_files(lambda of: count_labels(self.labels, of, self.classes), files, self.corrupt)
        scans = [scan for scan in found if scan is not None]
        self._require_some(scans, len(files))
        if len(scans) < len(files):
            kept = [of_file for of_file, scan in zip(files, found, strict=True) if scan is not None]
            self._set_records(tuple(itertools.chain.from_iterable(kept)))
        unknown: Counter = sum((values for _, values in scans), Counter())
        counts = np.concatenate([of_file for of_file, _ in scans])
        commonest = ", ".join(f"{value} x {count}" for value, count in unknown.most_common(5))
        apart = self._elsewhere(counts)
        if not counts.any():
            raise UserError(
                f"{self.root}: no pixel of any mask is of a class"
                + (f", the masks hold {commonest}" if unknown else "")
                + (f": {apart}: correct" if apart else ": correct classes.palette or data.label_values")
                + (" the coordinate system that a file states, or data.mask_template" if apart else "")
            )
        if apart:
            log.warning("%s: an image has no label: %s", self.root, apart)
        if unknown:
            log.warning(
                "%s: %d pixels in %d of %d masks have colours or values of no class, not in "
                "data.ignore_colours either, and are ignored: %s%s",
                self.root,
                unknown.total(),
                sum(bool(values) for _, values in scans),
                len(scans),
                commonest,
                ", ..." if len(unknown) > 5 else "",
            )
        return LabelGrid(self.records, counts, lossy=np.array([record.has_nodata for record in self.records]))


def _slices_by_file(records: Sequence[FileRecord]) -> list[slice]:
    """Return the slice of the records of each file."""
    counts = [len(list(group)) for _, group in itertools.groupby(r.image for r in records)]
    ends = list(itertools.accumulate(counts, initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


class ImageFolder(GeoTiffTiles):
    """Images with painted masks: JPEG, PNG, GeoTIFF and whatever else GDAL reads.

    A mask is one of
      - three or four 8-bit bands: colours of `palette`; transparent pixels are ignored;
      - one band with a colour table: colours of `palette`, through the table;
      - one band without a colour table: training ids 0..K-1, 255 for no label; with `label_values`, one band
        of these.
    Colours that are neither in `palette` nor in `ignore_colours` are ignored, counted and logged in one
    warning. Arguments without a description here are those of `GeoTiffTiles`.

    Args:
      palette: colour (r, g, b) of each class; the training id is the index.
      ignore_colours: colours that mean "no label".
      label_values: stored value, or values, of each class, for masks of one band of numbers.
      ignore_values: stored values that mean "no label".
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
        label_values: Sequence[Any] | None = None,
        ignore_values: Sequence[Any] = (),
        sensor: str | None = None,
        file_bands: Sequence[str] | None = None,
        corrupt: str = "stop",
        cache_bytes: int = 512 << 20,
    ):
        code: ColourCode | ValueCode
        if label_values is None:
            code = ColourCode(palette, ignore_colours)
        else:
            code = ValueCode(label_values, ignore_values)
        super().__init__(
            root,
            bands=bands,
            labels=RasterLabels(code),
            classes=len(palette),
            domains=domains,
            image_glob=image_glob,
            mask_template=mask_template,
            sensor=sensor,
            file_bands=file_bands,
            corrupt=corrupt,
            cache_bytes=cache_bytes,
        )
