"""A folder of images with colour-coded masks, one sub-folder a domain."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.sources.arrays import crop
from data_pipelines.sources.cache import ArrayCache
from data_pipelines.sources.colours import ColourCode
from data_pipelines.sources.raster_file import Header, read_header, read_mask, read_pixels
from data_pipelines.sources.records import IGNORE, Record, Window
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)
_SCANNED_PIXELS = 1 << 23  # of a mask at a time, so that one larger than memory can be counted


@dataclass(frozen=True)
class FileRecord(Record):
    """A `Record` with its two files, and whether the image declares a nodata value."""

    image: Path
    mask: Path
    has_nodata: bool


class ImageFolder:
    """Labelled images under `root`, read through rasterio: JPEG, PNG, GeoTIFF and whatever GDAL reads.

    The domain of an image is the first folder of its path below `root`; its name is its path below
    `root` without the ending. Masks are one of
      - three or four 8-bit bands: colours of `palette`; transparent pixels are ignored;
      - one band with a colour table: the same, through the table;
      - one band without: training ids 0..K-1, 255 for ignore.
    Pixels in which every band holds the file's nodata value are ignored too.

    Construction reads all headers and decodes all masks once, in threads of this process: a bad mask
    stops here rather than hours into a run, `class_pixels` is known, and colours that are neither in
    `palette` nor in `ignore_colours` are counted and logged in one warning, whatever the worker count.
    Images are decoded on demand and cached, per process; those too large for the cache are read by window.

    Args:
      root: the folder.
      palette: colour (r, g, b) of each class; the training id is the index.
      bands: names of the bands in file order.
      domains: the domains to use, default all; images come in this order, then by path.
      image_glob: pattern of the images below `root`.
      mask_template: path of a mask below `root`, of `{domain}` and the image's file `{stem}`.
      ignore_colours: colours that mean "no label".
      cache_bytes: memory for decoded images and labels, in each process.

    Attributes:
      records: the images, `FileRecord`s.
      class_pixels: labelled pixels of each class in each image, (images, K) int64.

    Raises:
      UserError: naming the file or the key; see the checks below. Reading raises it for an image that is
        truncated or has values that are not finite.
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
        cache_bytes: int = 512 << 20,
    ):
        self.root = Path(root)
        self.colours = ColourCode(palette, ignore_colours)
        self.bands = tuple(bands)
        self._cache = ArrayCache(cache_bytes)
        images = _find_images(self.root, image_glob, domains)
        self.records, self.dtype = _check_files(self.root, images, mask_template, self.bands)
        self.class_pixels = self._scan_masks()

    def read_image(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Raw pixel values (H, W, C), uint8 or float32, of the image or of `window`. Read-only."""
        size = record.height * record.width * len(self.bands) * self.dtype.itemsize
        return self._cached(record.image, size, window, lambda part: read_pixels(record.image, part)[0])

    def read_label(self, record: FileRecord, window: Window | None = None) -> np.ndarray:
        """Training ids (H, W) uint8, 255 for ignore, of the image or of `window`. Read-only."""
        size = record.height * record.width
        return self._cached(record.mask, size, window, lambda part: self._labelled(record, part))

    def describe(self) -> str:
        """One line a domain: how many images, how many pixels, how much of them is labelled."""
        lines = []
        for domain in dict.fromkeys(record.domain for record in self.records):
            chosen = [i for i, record in enumerate(self.records) if record.domain == domain]
            pixels = sum(self.records[i].height * self.records[i].width for i in chosen)
            labelled = self.class_pixels[chosen].sum() / pixels
            lines.append(f"{domain}: {len(chosen)} images, {pixels / 1e6:.1f} Mpx, {labelled:.1%} labelled")
        return "\n".join(lines)

    def _cached(
        self, path: Path, size: int, window: Window | None, read: Callable[[Window | None], np.ndarray]
    ) -> np.ndarray:
        if window is not None and not self._cache.admits(size):
            array = read(window)
            array.setflags(write=False)
            return array
        return crop(self._cache.get(path, lambda: read(None)), window)

    def _labelled(self, record: FileRecord, window: Window | None) -> np.ndarray:
        label, _ = self._decode(record, window)
        missing = read_pixels(record.image, window)[1] if record.has_nodata else None
        if missing is not None:
            label[missing] = IGNORE
        return label

    def _decode(self, record: FileRecord, window: Window | None) -> tuple[np.ndarray, Counter]:
        mask, table = read_mask(record.mask, window)
        if mask.shape[-1] >= 3:
            return self.colours.from_rgb(mask)
        return (
            self.colours.from_indexed(mask[..., 0], table) if table else self.colours.from_ids(mask[..., 0])
        )

    def _scan_masks(self) -> np.ndarray:
        """Decodes every mask: classes' pixels (images, K), and one warning on all unknown colours."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            scans = list(pool.map(self._scan_mask, self.records))
        unknown: Counter = sum((colours for _, colours in scans), Counter())
        class_pixels = np.stack([counts for counts, _ in scans])
        commonest = ", ".join(f"{colour} x {count}" for colour, count in unknown.most_common(5))
        if not class_pixels.any():
            raise UserError(
                f"{self.root}: no pixel of any mask has a colour of classes.palette"
                + (f", the masks hold {commonest}" if unknown else "")
                + ": correct classes.palette"
            )
        if unknown:
            log.warning(
                "%s: %d pixels in %d of %d masks have colours that are neither in classes.palette nor in "
                "data.ignore_colours and are ignored: %s%s",
                self.root,
                unknown.total(),
                sum(bool(colours) for _, colours in scans),
                len(scans),
                commonest,
                ", ..." if len(unknown) > 5 else "",
            )
        return class_pixels

    def _scan_mask(self, record: FileRecord) -> tuple[np.ndarray, Counter]:
        counts = np.zeros(256, np.int64)
        unknown: Counter = Counter()
        rows = max(1, _SCANNED_PIXELS // record.width)
        for row in range(0, record.height, rows):
            part = Window(row, 0, min(rows, record.height - row), record.width)
            label, colours = self._decode(record, part)
            counts += np.bincount(label.ravel(), minlength=256)
            unknown += colours
        return counts[: len(self.colours.palette)], unknown


def _find_images(root: Path, image_glob: str, domains: Sequence[str] | None) -> list[tuple[str, Path]]:
    """(domain, path) of every image of `domains`, or of all of them, in a fixed order."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, set data.root to where the images are")
    try:
        paths = sorted(path for path in root.glob(image_glob) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_glob={image_glob!r} is no pattern below data.root: {error}") from error
    if not paths:
        raise UserError(
            f"{root}: no image matches data.image_glob={image_glob!r}, correct the pattern or the root"
        )
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(path.relative_to(root).parts[0] if path.parent != root else root.name, []).append(
            path
        )
    wanted = tuple(found) if domains is None else tuple(dict.fromkeys(domains))
    if not wanted:
        raise UserError(f"{root}: the split is empty, name at least one of its domains: {', '.join(found)}")
    for domain in wanted:
        if domain not in found:
            raise UserError(f"{root}: no images of domain {domain!r}, there are {', '.join(found)}")
    return [(domain, path) for domain in wanted for path in found[domain]]


def _check_files(
    root: Path, images: Sequence[tuple[str, Path]], mask_template: str, bands: tuple[str, ...]
) -> tuple[tuple[FileRecord, ...], np.dtype]:
    """The records of `images` and the type their pixels are read as, once all headers are right."""
    records = []
    eight_bit: dict[bool, Path] = {}
    for domain, path in images:
        header = read_header(path)
        mask = _mask_path(root, mask_template, domain, path)
        _check_image(path, header, bands)
        _check_mask(path, header, mask)
        eight_bit[header.dtype == np.uint8] = path
        name = path.relative_to(root).with_suffix("").as_posix()
        records.append(FileRecord(domain, name, header.height, header.width, path, mask, header.has_nodata))
    if len(eight_bit) == 2:
        raise UserError(
            f"{eight_bit[False]}: not 8-bit, but {eight_bit[True]} is: "
            "store all images of a split in one type"
        )
    return tuple(records), np.dtype(np.uint8 if True in eight_bit else np.float32)


def _mask_path(root: Path, mask_template: str, domain: str, image: Path) -> Path:
    try:
        return root / mask_template.format(domain=domain, stem=image.stem)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data.mask_template={mask_template!r}: only {{domain}} and {{stem}} can stand in it"
        ) from error


def _check_image(path: Path, image: Header, bands: tuple[str, ...]) -> None:
    if image.count != len(bands):
        raise UserError(
            f"{path}: {image.count} bands, the configuration names {len(bands)} ({', '.join(bands)}): "
            "set bands to what the file holds"
        )
    if image.dtype.kind not in "uif":
        raise UserError(f"{path}: pixels of type {image.dtype} are not supported, store integers or floats")
    named = [name.strip().lower() for name in image.descriptions if name]
    wanted = [band.lower() for band in bands]
    if sorted(named) == sorted(wanted) and named != wanted:
        raise UserError(
            f"{path}: its bands are in the order {', '.join(named)}, the configuration says "
            f"{', '.join(bands)}: put bands in the order of the file"
        )


def _check_mask(image_path: Path, image: Header, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{image_path}: it has no mask {path}, add the mask or correct data.mask_template")
    mask = read_header(path)
    if (mask.height, mask.width) != (image.height, image.width):
        raise UserError(
            f"{path}: {mask.height} x {mask.width} pixels, its image {image_path} has "
            f"{image.height} x {image.width}: give a mask of the image's size"
        )
    coloured = mask.count in (3, 4) and mask.dtype == np.uint8
    if not coloured and not (mask.count == 1 and mask.dtype.kind in "ui"):
        raise UserError(
            f"{path}: {mask.count} bands of {mask.dtype}: "
            "a mask has 1 band of integers, or 3 or 4 bands of 8 bits"
        )
