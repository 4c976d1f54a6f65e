"""STAC items as scenes: the assets of an item, one or several bands each, stacked by the names of bands.

Reads items, item collections, collections and catalogs with pystac (https://stacspec.org). An item becomes a
GDAL virtual raster (VRT) on the grid of its finest band; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin
from xml.etree import ElementTree

import rasterio
from rasterio.errors import RasterioError

from data_pipelines.readers.address import is_remote
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import reading
from spectralmoe_jax.sensors import place_of

SUFFIX = ".json"
"""Of the files that are taken for STAC; addresses may have a query behind it."""
_PREFIXES = {
    "https://": "/vsicurl/https://", "http://": "/vsicurl/http://", "s3://": "/vsis3/", "gs://": "/vsigs/",
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
    """

    inputs: list[str]
    failed: list[tuple[str, str]]


class _Source(NamedTuple):
    """A band of an asset: what is known of it before it is opened.

    Attributes:
      name: name of the band.
      common: common name of the band, or an empty text.
      key: of the asset.
      href: address of the asset.
      number: of the band in the asset, from 1.
    """

    name: str
    common: str
    key: str
    href: str
    number: int


@contextlib.contextmanager
def without_stac(inputs: Sequence[str], bands: Sequence[str], sensor: str | None) -> Iterator[Scenes]:
    """Replace STAC items among inputs by virtual rasters, which exist inside the block.

    Args:
      inputs: files ending in .json are STAC; others stay as they are.
      bands: of the model.
      sensor: gives the aliases of their names.

    Raises:
      UserError: pystac is missing, a file is no STAC, or two items have one name.
    """
    with tempfile.TemporaryDirectory(prefix="spectralmoe-") as folder:
        scenes = Scenes([], [])
        for text in inputs:
            if not _is_stac(text):
                scenes.inputs.append(text)
                continue
            for item in _items(text):
                path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', item.id)}.vrt"
                if path.exists():
                    raise UserError(f"{text}: has several items {item.id!r}; map them in calls of their own")
                try:
                    path.write_bytes(_virtual_raster(item, bands, sensor, text))
                except UserError as problem:
                    scenes.failed.append((f"{text}: {item.id}", str(problem)))
                else:
                    scenes.inputs.append(str(path))
        yield scenes


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
        href = asset.get_absolute_href() or urljoin(place, asset.href)
        fields = asset.to_dict()
        stated = fields.get("bands") or fields.get("eo:bands") or [{}]
        for number, band in enumerate(stated, 1):
            common = band.get("eo:common_name") or band.get("common_name") or ""
            yield _Source(band.get("name") or "", common, key, href, number)


def _choose(band: str, known: Sequence[_Source], sensor: str | None) -> _Source:
    """Return the source of a band: by its common name, else by its own name, else by the key of its asset.

    Raises:
      UserError: there is none, or several.
    """
    for field in ("common", "name", "key"):
        if field == "key":
            known = [source for source in known if source.number == 1]
        found = [source for source in known if place_of(band, [getattr(source, field)], sensor) == 0]
        exact = [source for source in found if getattr(source, field).lower() == band.lower()]
        found = exact if len(found) > 1 else found
        if len(found) == 1:
            return found[0]
        if found and field != "common":
            raise UserError(
                f"several assets have a band {band!r}: {', '.join(source.key for source in found)}"
            )
    names = sorted({source.common or source.name or source.key for source in known})
    raise UserError(f"has no band {band!r}, only {', '.join(names)}")


def _header(href: str) -> dict[str, Any]:
    """Return size, grid, type and nodata of an asset.

    Raises:
      UserError: it cannot be read, or has no type that a scene can have.
    """
    name = _for_gdal(href)
    try:
        with reading(name), rasterio.open(name) as dataset:
            profile = {key: dataset.profile[key] for key in ("width", "height", "crs", "transform", "nodata")}
            profile |= {"dtype": dataset.dtypes[0], "bounds": dataset.bounds}
    except RasterioError as problem:
        raise UserError(f"{href}: cannot be opened ({' '.join(str(problem).split())})") from problem
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
    if header["crs"] != finest["crs"] or apart > pixel:
        raise UserError(f"asset {source.key!r} covers another area than the others; stack them yourself")


def _for_gdal(href: str) -> str:
    """Return the name that GDAL opens an address by inside a virtual raster."""
    for prefix, ours in _PREFIXES.items():
        if href.startswith(prefix):
            return ours + href.removeprefix(prefix)
    return href if is_remote(href) else os.path.abspath(href.removeprefix("file://"))
