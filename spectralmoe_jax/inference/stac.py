"""STAC items as scenes: the assets of an item, one or several bands each, stacked by the names of bands.

Reads items, item collections, collections and catalogs with pystac (https://stacspec.org). An item becomes a
GDAL virtual raster (VRT) on the grid of its finest band; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

from rasterio.errors import RasterioError

from data_pipelines.readers.address import is_remote
from data_pipelines.readers.coordinate_systems import same_crs
from data_pipelines.readers.raster_file import open_as_stored
from data_pipelines.readers.sealed_raster import virtual_raster_of_ours
from data_pipelines.readers.validity import has_mask
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import reading
from spectralmoe_jax.part_files import scratch_folder
from spectralmoe_jax.sensors import place_of

SUFFIX = ".json"
"""Of the files that are taken for STAC; addresses may have a query behind it."""
_PREFIXES = {
    "https://": "/vsicurl/https://", "http://": "/vsicurl/http://", "s3://": "/vsis3/", "gs://": "/vsigs/",
    "az://": "/vsiaz/",
}  # fmt: skip
_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32",
    "int32": "Int32", "float32": "Float32", "float64": "Float64",
}  # fmt: skip


class Scenes(NamedTuple):
    """Inputs without STAC.

    Attributes:
      inputs: as `catalogue.find_scenes` takes them, a virtual raster for every item.
      failed: items that cannot be scenes, with the reason.
      names: the item of every virtual raster, for messages.
    """

    inputs: list[str]
    failed: list[tuple[str, str]]
    names: dict[str, str]

    def said(self, text: str) -> str:
        """Return a message with the names of items in place of those of virtual rasters."""
        for path, name in self.names.items():
            text = text.replace(path, name)
        return text


class _Source(NamedTuple):
    """A band of an asset: what is known of it before it is opened.

    Attributes:
      name: name of the band.
      common: common name of the band, or an empty text.
      key: of the asset.
      href: address of the asset.
      number: of the band in the asset, from 1.
      rank: of assets with the same band, the lowest is taken: 0 for one that is this band alone, 1 for one
        with further bands, such as a picture in natural colours, 2 for a copy in JPEG 2000.
    """

    name: str
    common: str
    key: str
    href: str
    number: int
    rank: int


@contextlib.contextmanager
def without_stac(inputs: Sequence[str], bands: Sequence[str], sensor: str | None) -> Iterator[Scenes]:
    """Replace STAC items among inputs by virtual rasters, which exist inside the block.

    Args:
      inputs: files ending in .json are STAC, and may be a pattern; others stay as they are.
      bands: of the model.
      sensor: gives the aliases of their names.

    Raises:
      UserError: pystac is missing, or a file is no STAC.
    """
    with scratch_folder() as folder, contextlib.ExitStack() as held:
        scenes = Scenes([], [], {})
        for text in inputs:
            if not _is_stac(text):
                scenes.inputs.append(text)
                continue
            for place in _matching(text):
                for item in _items(place):
                    _add(scenes, folder, item, place, bands, sensor)
        for path in scenes.names:
            held.enter_context(virtual_raster_of_ours(path))
        yield scenes


def _matching(text: str) -> list[str]:
    """Return the files of a pattern; a name as it is."""
    if is_remote(text) or os.path.exists(text) or not glob.has_magic(text):
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise UserError(f"{text}: no such file; give --input existing scenes")
    return found


def _add(
    scenes: Scenes, folder: Path, item: Any, place: str, bands: Sequence[str], sensor: str | None
) -> None:
    """Add an item to the scenes, or to those that failed."""
    name = f"{place}: {item.id}"
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', str(item.id))[:200]}.vrt"
    try:
        if path.exists():
            raise UserError("there are several items of this name; map them in calls of their own")
        path.write_bytes(_virtual_raster(item, bands, sensor, place))
    except UserError as problem:
        scenes.failed.append((name, str(problem)))
    except (AttributeError, KeyError, TypeError, ValueError) as problem:  # fields of other types
        scenes.failed.append((name, f"is no valid STAC item ({' '.join(str(problem).split())})"))
    else:
        scenes.inputs.append(str(path))
        scenes.names[str(path)] = name


def _is_stac(text: str) -> bool:
    return text.partition("?")[0].lower().endswith(SUFFIX)


def _items(text: str) -> list[Any]:
    """Return the items of a STAC file, in order.

    Raises:
      UserError: pystac is missing, or the file is no STAC.
    """
    try:
        import pystac
    except ImportError:
        raise UserError(f"{text}: STAC needs pystac: pip install 'spectralmoe-jax[stac]'") from None
    try:
        found = pystac.StacIO.default().read_json(text)
        if found.get("type") == "FeatureCollection":
            items = list(pystac.ItemCollection.from_file(text).items)
        else:
            opened: Any = pystac.read_file(text)
            is_item = not isinstance(opened, pystac.Catalog)
            items = [opened] if is_item else list(opened.get_items(recursive=True))
    except Exception as problem:  # pystac raises what its JSON and network libraries do
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(f"{text}: no STAC item, collection or catalog ({said})") from problem
    if not items:
        raise UserError(f"{text}: has no items")
    return items


def _virtual_raster(item: Any, bands: Sequence[str], sensor: str | None, place: str) -> bytes:
    """Return the virtual raster of an item's bands as XML.

    Raises:
      UserError: a band is missing or ambiguous, an asset cannot be read, or covers another area.
    """
    known = list(_sources(item, place))
    chosen = [_choose(band, known, sensor) for band in bands]
    opened = {source.href: _header(source.href) for source in chosen}
    finest = min(opened.values(), key=lambda header: abs(header["transform"].a))
    root = ElementTree.Element(
        "VRTDataset", rasterXSize=str(finest["width"]), rasterYSize=str(finest["height"])
    )
    if finest["crs"] is not None:
        ElementTree.SubElement(root, "SRS").text = finest["crs"].to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, finest["transform"].to_gdal()))
    for number, (name, source) in enumerate(zip(bands, chosen, strict=True), 1):
        header = opened[source.href]
        _check_area(source, header, finest)
        band = ElementTree.SubElement(
            root, "VRTRasterBand", dataType=_TYPES[header["dtype"]], band=str(number)
        )
        ElementTree.SubElement(band, "Description").text = name
        if header["nodata"] is not None:
            ElementTree.SubElement(band, "NoDataValue").text = repr(header["nodata"])
        from_pixels = ElementTree.SubElement(band, "SimpleSource")
        if header is not finest:
            from_pixels.set("resampling", "bilinear")
        ElementTree.SubElement(from_pixels, "SourceFilename", relativeToVRT="0").text = _for_gdal(source.href)
        ElementTree.SubElement(from_pixels, "SourceBand").text = str(source.number)
        for kind, size in (("SrcRect", header), ("DstRect", finest)):
            sides = {"xSize": str(size["width"]), "ySize": str(size["height"])}
            ElementTree.SubElement(from_pixels, kind, {"xOff": "0", "yOff": "0", **sides})
    return ElementTree.tostring(root)


def _sources(item: Any, place: str) -> Iterator[_Source]:
    """Yield the bands of an item's assets; an asset that states none counts as one band of its key's name."""
    for key, asset in item.assets.items():
        if (asset.media_type or "").split(";")[0] in ("application/json", "text/html", "application/xml"):
            continue
        if {"thumbnail", "overview", "metadata"} & set(asset.roles or ()):
            continue
        href = asset.get_absolute_href() or urljoin(place, asset.href)
        if is_remote(place) and not is_remote(_for_gdal(href)):
            raise UserError(
                f"names the file {href!r} of this machine, from afar: download the item, and correct it"
            )
        fields = asset.to_dict()
        stated = fields.get("bands") or fields.get("eo:bands") or [{}]
        is_copy = "jp2" in (asset.media_type or "") or href.lower().endswith(".jp2")
        rank = 2 if is_copy else int(len(stated) > 1)
        for number, band in enumerate(stated, 1):
            common = band.get("eo:common_name") or band.get("common_name") or ""
            yield _Source(str(band.get("name") or ""), str(common), key, href, number, rank)


def _choose(band: str, known: Sequence[_Source], sensor: str | None) -> _Source:
    """Return the source of a band: by its common name, else by its own name, else by the key of its asset.

    Raises:
      UserError: there is none, or several.
    """
    several: list[_Source] = []
    for field in ("common", "name", "key"):
        if field == "key":
            known = [source for source in known if source.number == 1]
        found = [source for source in known if place_of(band, [getattr(source, field)], sensor) == 0]
        exact = [source for source in found if getattr(source, field).lower() == band.lower()]
        found = exact or found
        found = [source for source in found if source.rank == min(each.rank for each in found)]
        if len(found) == 1:
            return found[0]
        several = several or found
    if several:
        keys = ", ".join(source.key for source in several)
        raise UserError(f"several assets have a band {band!r}: {keys}; give the model's bands other names")
    names = sorted({source.common or source.name or source.key for source in known})
    raise UserError(f"has no band {band!r}, only {', '.join(names)}")


def _header(href: str) -> dict[str, Any]:
    """Return size, grid, type and nodata of an asset.

    Raises:
      UserError: it cannot be read, or has no type that a scene can have.
    """
    name = _for_gdal(href)
    try:
        with reading(name), open_as_stored(name) as dataset:
            profile = {key: dataset.profile[key] for key in ("width", "height", "crs", "transform", "nodata")}
            profile |= {"dtype": dataset.dtypes[0], "bounds": dataset.bounds}
            is_placed = not dataset.transform.is_identity or not dataset.gcps[0]
            is_masked = has_mask(dataset)
    except RasterioError as problem:
        raise UserError(f"{href}: cannot be opened ({' '.join(str(problem).split())})") from problem
    if not is_placed or is_masked:
        what = "a mask" if is_masked else "control points"
        raise UserError(f"{href}: has {what}, which a stack of assets would lose; map the file itself")
    if profile["dtype"] not in _TYPES:
        raise UserError(f"{href}: stores {profile['dtype']} values, which are no reflectance")
    return profile


def _check_area(source: _Source, header: dict[str, Any], finest: dict[str, Any]) -> None:
    """Check that an asset covers the area of the finest one, within a pixel of its own.

    Raises:
      UserError: it does not.
    """
    pixel = max(abs(header["transform"].a), abs(header["transform"].e))
    apart = max(abs(one - other) for one, other in zip(header["bounds"], finest["bounds"], strict=True))
    if not same_crs(header["crs"], finest["crs"], tuple(finest["bounds"])) or apart > pixel:
        raise UserError(f"asset {source.key!r} covers another area than the others; stack them yourself")


def _for_gdal(href: str) -> str:
    """Return the name that GDAL opens an address by inside a virtual raster."""
    for prefix, ours in _PREFIXES.items():
        if href.startswith(prefix):
            return ours + href.removeprefix(prefix)
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    return href if is_remote(href) else os.path.abspath(href)
