"""`spectralmoe predict`: map a scene of any size to a georeferenced raster.

Windowed read, blended prediction, windowed write. The scene is read once, from top to bottom. Memory holds
the pixels and the blended scores of one row of windows, so it grows with the scene's width, not its height.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what copying raises; no public module has it
from rasterio.errors import RasterioError
from rasterio.windows import Window

from data_pipelines.readers.address import container_of, is_remote
from data_pipelines.readers.virtual_raster import files_read_by
from data_pipelines.sheet import display_bands
from spectralmoe_jax.config.schema import EvaluateConfig, StatedValues
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import replace_file
from spectralmoe_jax.host_memory import physical_memory
from spectralmoe_jax.inference.libtiff import keep_libtiff_quiet
from spectralmoe_jax.inference.polygons import DRIVERS, OUTLINES, Outlines, check_vector, write_polygons
from spectralmoe_jax.inference.preview import write_preview
from spectralmoe_jax.inference.products import Product, product_file
from spectralmoe_jax.inference.scene import NODATA, Scene, open_scene, reading
from spectralmoe_jax.inference.sliding_window import (
    Predict,
    Tile,
    blending_weight,
    fitted_batch,
    padded_tile,
    predict_tiles,
)
from spectralmoe_jax.models.windows import window_starts
from spectralmoe_jax.part_files import hidden_part
from spectralmoe_jax.read_ahead import read_ahead

_BLOCK = 256  # pixels, side of a block of the GeoTIFF while it is written
_COG_BLOCK = 512  # of the cloud-optimised one
_ROWS_BEHIND = 2  # parts of a map that wait to be written, at most


def predict_scene(
    predict: Predict,
    input: str | os.PathLike[str],
    output: Path,
    *,
    settings: EvaluateConfig,
    names: Sequence[str],
    palette: Sequence[Sequence[int]] | np.ndarray,
    bands: Sequence[str],
    sensor: str | None = None,
    file_bands: Sequence[str] | None = None,
    values: StatedValues | None = None,
    check_values: str = "stop",
    products: Sequence[Product] = (),
    preview: Path | None = None,
    vector: Path | None = None,
    outlines: Outlines = OUTLINES,
    tags: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda pixels: None,
) -> dict[str, Any]:
    """Write the class map of a scene, with the scene's size, CRS, transform and nodata area.

    The map is a cloud-optimised, deflated GeoTIFF of uint8 class ids, 255 = nodata, with `palette` as its
    colour table and the class names as the tags CLASS_0, CLASS_1, ... (not as GDAL category names, which are
    stored in a second file, MAP.tif.aux.xml, that gets lost). All files appear together and complete, or none
    does.

    Args:
      predict: from (B, S, S, bands) pixels, uint8 if the scene is uint8 and float32 otherwise, to scores
        (B, S, S, C) that are not negative, which `products` may want further channels behind; S is that of
        `settings`, and B too, unless the scene has fewer windows. Pixels without data are 0, and windows
        without any data are skipped.
      input: scene file, or a name that GDAL opens; see `inference.scene`.
      output: map to write.
      settings: side and overlap of the windows, windows in a call.
      names: of the classes.
      palette: colours of the classes, (C, 3) in 0..255.
      bands: of the model, found in the scene as `data_pipelines.sensors.choose_bands` does.
      sensor: gives the aliases of band names, and the nodata value of a scene that states none.
      file_bands: names of all bands of a scene that names none.
      values: how images stored their values in training; None if that is not known.
      check_values: what to do if the scene's differ, as `config.data.check_values`.
      products: also write `<output stem>_<product>.tif`, float32 with nan = nodata. They are no further bands
        of the map, as all bands of a GeoTIFF have one data type, and only a single band can have a colour
        table.
      preview: PNG of scene and map to write, or None.
      vector: file of the map's polygons to write, or None; see `inference.polygons`. Their confidence is that
        of the product of this name.
      outlines: which polygons are written, and how coarse.
      tags: further metadata of all rasters.
      progress: called with the number of pixels that were finished since the last call.

    Returns:
      `shape` (rows, columns), `pixels` (those with data), `shares` (class name to its share of them) and
      `files` (the paths written).

    Raises:
      UserError: the input is missing, unreadable or truncated, has other bands than `bands` or non-finite
        pixels; an output is the input or cannot be written.
    """
    # 1. check the paths before anything is read
    name, output = os.fspath(input), Path(output)
    targets = {"map": output}
    targets |= {product.name: product_file(output, product.name) for product in products}
    if vector is not None:
        targets["vector"] = Path(vector)
    if preview is not None:
        targets["preview"] = Path(preview)
    if not is_remote(name) and not Path(name).is_file() and container_of(name) is None:
        raise UserError(f"{name}: no such file; give --input an existing scene")
    _check_targets(name, targets)

    keep_libtiff_quiet()
    with _temporary_names(targets) as temporary:
        # 2. predict and write, row of windows by row of windows
        with reading(name), open_scene(name) as dataset:
            _check_sources(name, dataset.files, targets)
            scene = Scene(dataset, name, bands, sensor, file_bands, values, check_values)
            if vector is not None:
                check_vector(targets["vector"], dataset)
            settings = fitted_batch(settings, (scene.height, scene.width))
            _check_memory(scene, settings.window, len(names) + _further(products))
            sinks = [_open_map(temporary["map"], output, dataset, names, palette)]
            try:
                for product in products:
                    part = product.name
                    sinks.append(_open_product(temporary[part], targets[part], dataset, product.bands))
                for sink in sinks:
                    sink.update_tags(**(tags or {}))
                counts = _predict_rows(
                    predict, scene, settings, len(names), output, sinks, products, progress
                )
            finally:
                for sink in sinks:
                    sink.close()
            # 3. rewrite with overviews, and read back, so that a full disk does not go unnoticed
            for part in ("map", *(product.name for product in products)):
                _make_cloud_optimised(temporary[part], targets[part])
                _check_written(temporary[part], targets[part], int(counts.sum()))
        # 4. polygons and preview
        if vector is not None:
            sure = temporary.get("confidence")
            write_polygons(temporary["vector"], targets["vector"], temporary["map"], sure, names, outlines)
        if preview is not None:
            shown = [scene.indexes[place] for place in display_bands(bands, sensor)] if sensor else None
            try:
                write_preview(temporary["preview"], name, temporary["map"], names, palette, shown)
            except RasterioError as error:
                raise UserError(f"{name}: cannot be read for the preview, it may be truncated") from error
            except OSError as error:
                raise _unwritable(targets["preview"]) from error

    pixels = int(counts.sum())
    shares = {name: int(count) / max(pixels, 1) for name, count in zip(names, counts, strict=True)}
    return {
        "shape": (scene.height, scene.width),
        "pixels": pixels,
        "shares": shares,
        "files": list(targets.values()),
    }


def _further(products: Sequence[Product]) -> int:
    """Return the number of channels behind the classes that products want."""
    return max((product.further for product in products), default=0)


def _check_memory(scene: Scene, window: int, channels: int) -> None:
    """Check that a row of windows fits into the memory, before a file is written.

    Raises:
      UserError: it does not.
    """
    pixel = channels * np.dtype(np.float32).itemsize + 2 * len(scene.bands) * np.dtype(scene.dtype).itemsize
    needed = scene.width * window * pixel
    if needed > physical_memory():
        raise UserError(
            f"{scene.name}: is {scene.width} pixels wide: a row of windows takes {needed / 1e9:.0f} GB, more "
            "than this machine's memory; cut it into parts (gdal_translate -srcwin) and map these"
        )


def _predict_rows(
    predict: Predict,
    scene: Scene,
    settings: EvaluateConfig,
    classes: int,
    output: Path,
    sinks: list[Any],
    products: Sequence[Product],
    progress: Callable[[int], None],
) -> np.ndarray:
    """Predict all windows and write rows as soon as they are finished.

    Returns:
      Pixels by class (C,).
    """
    size, width = settings.window, scene.width
    weight = blending_weight(size)[..., None]
    valid_rows = _ValidRows(width)
    # Weighted scores of the rows [first, first + S). Neither the best class nor its share of the scores
    # depends on the sum of weights, so that is not kept.
    channels = classes + _further(products)
    total = np.zeros((size, width, channels), np.float32)
    first = 0
    counts = np.zeros(classes, np.int64)

    def finish(until: int) -> None:
        """Write the rows before `until`, which no further window touches."""
        nonlocal first, counts
        while first < until:
            rows = min(until - first, size)
            valid = valid_rows.take(rows)
            chosen = total[:rows, :, :classes].argmax(-1)
            counts += np.bincount(chosen[valid], minlength=classes)
            results = [np.where(valid, chosen, NODATA).astype(np.uint8)[None]]
            for product in products:
                results.append(np.where(valid, product.values(total[:rows]), np.float32(np.nan)))
            pending.append(writer.submit(_write_rows, sinks, results, first, output))
            if len(pending) > _ROWS_BEHIND:
                pending.popleft().result()
            total[: size - rows] = total[rows:]
            total[size - rows :] = 0
            first += rows
            progress(rows * width)

    # a thread reads ahead and another writes behind, while this one predicts
    pending: deque[Future[None]] = deque()
    tiles = read_ahead(_tiles(scene, settings, valid_rows), settings.batch_size)
    with contextlib.closing(tiles), ThreadPoolExecutor(max_workers=1) as writer:
        for (row, column), scores in predict_tiles(tiles, predict, settings.batch_size):
            finish(row)
            columns = min(size, width - column)
            total[:, column : column + columns] += (scores * weight)[:, :columns]
        # Windows without data at the bottom are read only when the loop ends.
        finish(scene.height)
        for written in pending:
            written.result()
    return counts


def _tiles(scene: Scene, settings: EvaluateConfig, valid_rows: _ValidRows) -> Iterator[Tile]:
    """Yield the windows that hold data; each row of the file is read once."""
    size = settings.window
    columns = window_starts(scene.width, size, settings.overlap)
    pixels = np.zeros((0, scene.width, len(scene.bands)), scene.dtype)
    valid = np.zeros((0, scene.width), bool)
    first = done = 0  # the strip in memory holds rows [first, done) of the file
    for row in window_starts(scene.height, size, settings.overlap):
        stop = min(row + size, scene.height)
        new_pixels, new_valid = scene.read(done, stop)
        valid_rows.append(new_valid)
        pixels = np.concatenate([pixels[row - first :], new_pixels])
        valid = np.concatenate([valid[row - first :], new_valid])
        first, done = row, stop
        for column in columns:
            if valid[:, column : column + size].any():
                yield (row, column), padded_tile(pixels, 0, column, size)


class _ValidRows:
    """Data masks of the rows read but not yet written.

    Rows without any data take no memory, however many of them are read before the next window is predicted.
    """

    def __init__(self, width: int):
        self.width = width
        self.pending: deque[tuple[int, np.ndarray | None]] = deque()

    def append(self, valid: np.ndarray) -> None:
        """Add the mask of rows just read, (rows, W) bool."""
        self.pending.append((len(valid), valid if valid.any() else None))

    def take(self, rows: int) -> np.ndarray:
        """Remove and return the first `rows` rows, (rows, W) bool."""
        taken = np.zeros((rows, self.width), bool)
        done = 0
        while done < rows:
            count, valid = self.pending.popleft()
            now = min(count, rows - done)
            if valid is not None:
                taken[done : done + now] = valid[:now]
            if now < count:
                self.pending.appendleft((count - now, None if valid is None else valid[now:]))
            done += now
        return taken


def _write_rows(sinks: list[Any], results: list[np.ndarray], first: int, output: Path) -> None:
    for sink, values in zip(sinks, results, strict=True):
        try:
            sink.write(values, window=Window(0, first, values.shape[2], values.shape[1]))
        except (RasterioError, OSError) as error:
            raise _unwritable(output) from error


def _check_targets(scene: str, targets: dict[str, Path]) -> None:
    input = container_of(scene) or Path(scene)
    for text in (scene, *map(str, targets.values())):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{text}: the name is not UTF-8, which GDAL needs: rename it")
    for name, path in targets.items():
        suffixes = {"preview": (".png",), "vector": tuple(DRIVERS)}.get(name, (".tif", ".tiff"))
        if path.suffix.lower() not in suffixes:
            allowed = suffixes if name == "vector" else suffixes[:1]
            raise UserError(f"{path}: the {name} is written as {', '.join(allowed)}; let its name end so")
        if not is_remote(scene) and _is_same(path, input):
            raise UserError(f"{path}: the {name} would replace the input scene; choose another name")
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name the file of the {name}")
        if not path.parent.is_dir():
            raise UserError(f"{path}: the folder {path.parent} does not exist; create it first")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise _unwritable(path)


def _check_sources(scene: str, files: Sequence[str], targets: dict[str, Path]) -> None:
    """Check that no output replaces a file that the scene reads, as virtual rasters do.

    Args:
      scene: name of the scene, which was opened.
      files: names of its files, as GDAL lists them.
      targets: files to write.

    Raises:
      UserError: an output would.
    """
    if is_remote(scene):
        return
    read = {Path(file) for file in files if not is_remote(file)}
    if scene.lower().endswith(".vrt"):
        read |= set(files_read_by(Path(scene)))
    for name, path in targets.items():
        if any(_is_same(path, file) for file in read):
            raise UserError(f"{path}: the {name} would replace a file that {scene} reads; name another")


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths are of one file, through links too."""
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _unwritable(path: Path) -> UserError:
    return UserError(f"{path}: cannot be written; choose a folder that is writable and has room")


@contextlib.contextmanager
def _temporary_names(targets: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Provide temporary names beside the targets, moved onto them at the end if all went well.

    They are in a hidden folder of each target's folder, which takes the temporary files of GDAL too.
    """
    with contextlib.ExitStack() as held:
        folders: dict[Path, Path] = {}
        for path in targets.values():
            if path.parent not in folders:
                # the map's name, or the first one's there, without its suffix
                folders[path.parent] = held.enter_context(hidden_part(path.with_suffix("")))
                try:
                    folders[path.parent].mkdir()
                except OSError as error:
                    raise _unwritable(path) from error
        temporary = {name: folders[path.parent] / f"{name}{path.suffix}" for name, path in targets.items()}
        yield temporary
        for name, path in reversed(targets.items()):  # the map last: it tells that all is there
            try:
                replace_file(temporary[name], path)
            except OSError as error:
                raise _unwritable(path) from error


def _open_map(path: Path, target: Path, scene: Any, names: Sequence[str], palette: Any) -> Any:
    sink = _open_like(path, target, scene, dtype="uint8", nodata=NODATA, count=1)
    try:
        colours = {i: (*map(int, colour), 255) for i, colour in enumerate(palette)}
        sink.write_colormap(1, {**colours, NODATA: (0, 0, 0, 0)})
        sink.update_tags(**{f"CLASS_{i}": name for i, name in enumerate(names)})
        sink.set_band_description(1, "class: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)))
    except BaseException:
        sink.close()
        raise
    return sink


def _open_product(path: Path, target: Path, scene: Any, bands: Sequence[str]) -> Any:
    options = {"dtype": "float32", "nodata": float("nan"), "predictor": 3, "count": len(bands)}
    sink = _open_like(path, target, scene, **options)
    for number, description in enumerate(bands, 1):
        sink.set_band_description(number, description)
    return sink


def _open_like(path: Path, target: Path, scene: Any, **profile: Any) -> Any:
    """Create a GeoTIFF with the scene's georeference: transform, control points or camera model."""
    if not scene.transform.is_identity:
        profile["transform"] = scene.transform
    try:
        sink = rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=scene.height,
            width=scene.width,
            crs=scene.crs,
            tiled=True,
            blockxsize=_BLOCK,
            blockysize=_BLOCK,
            compress="deflate",
            bigtiff="IF_SAFER",
            sparse_ok=True,
            **profile,
        )
    except (RasterioError, OSError) as error:
        raise _unwritable(target) from error
    points, points_crs = scene.gcps
    if points:
        sink.gcps = (points, points_crs)
    if scene.rpcs:
        sink.rpcs = scene.rpcs
    if "AREA_OR_POINT" in scene.tags():
        sink.update_tags(AREA_OR_POINT=scene.tags()["AREA_OR_POINT"])
    return sink


def _make_cloud_optimised(path: Path, target: Path) -> None:
    """Rewrite a GeoTIFF as a cloud-optimised one, with overviews and statistics.

    Overviews have the most frequent class, or the mean of a continuous quantity.
    """
    aside = path.with_name(f"{path.name}.cog")
    try:
        with rasterio.open(path) as dataset:
            is_classes = dataset.dtypes[0] == "uint8"
        rasterio.shutil.copy(
            path, aside, driver="COG", compress="deflate", predictor="NO" if is_classes else "YES",
            blocksize=_COG_BLOCK, overview_resampling="mode" if is_classes else "average",
            bigtiff="IF_SAFER", statistics="YES", sparse_ok="YES",
        )  # fmt: skip
        os.replace(aside, path)
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise _unwritable(target) from error
    finally:
        aside.unlink(missing_ok=True)


def _check_written(path: Path, target: Path, pixels: int) -> None:
    """Read a file back and count its pixels with data.

    GDAL writes its last blocks while it closes the file, and does not report a disk that is full by then.
    """
    found = 0
    try:
        with rasterio.open(path) as dataset:
            for _, window in dataset.block_windows(1):
                found += int(np.count_nonzero(dataset.read_masks(1, window=window)))
    except RasterioError as error:
        raise _unwritable(target) from error
    if found != pixels:
        raise _unwritable(target)
