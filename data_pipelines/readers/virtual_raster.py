"""What a virtual raster (VRT) may read: rasters in its folder or below.

A virtual raster is a text that names other files, whose pixels become its own. The text of a stranger could
name any file of this machine, an address or a program. It is opened if it has nothing but what GDAL's tools
write, and each file that it names is a raster in its folder or below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

from rasterio.errors import RasterioError

from data_pipelines.readers.address import is_remote
from data_pipelines.readers.unreadable import UnreadableFile
from spectralmoe_jax.errors import UserError

FOLDERS = "SPECTRALMOE_READ_FROM"
"""Environment variable with further folders that virtual rasters may read from, separated as in PATH."""

START = 1 << 16  # bytes of a file that tell what it is
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF. They hold a zero, at which GDAL ends a text, so it takes none for XML."""

_DESCRIPTIONS = re.compile(rb"<(VRTDataset|GDAL|OGR|MRF_META|WMS_|WCS_|TileMapService)", re.IGNORECASE)
_DRIVER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9+_.-]*:")  # as in NETCDF:file:variable
_BLANK = b"\xef\xbb\xbf \t\r\n"
_DEEPEST = 8  # virtual rasters that read each other
_FILE_NAMES = ("sourcefilename", "sourcedataset")  # elements that name a file
# Elements and attributes that gdalbuildvrt, gdal_translate and gdalwarp write, in lower case. Not among them
# are pixel functions in Python, transformers that read files, and options of drivers.
_ELEMENTS = frozenset((
    "approximate", "approxtransformer", "averagedsource", "bandlist", "bandmapping", "basetransformer",
    "blockxsize", "blockysize", "bucketcount", "bufferradius", "byteorder", "category", "categorynames",
    "coefs", "colorinterp", "colortable", "colortablecomponent", "complexsource", "description",
    "dstalphaband", "dstgeotransform", "dstinvgeotransform", "dstmax", "dstmin", "dstnodataimag",
    "dstnodatareal", "dstrect", "entry", "exponent", "f", "fielddefn", "gcp", "gcplist",
    "gdalrasterattributetable", "gdalwarpoptions", "genimgprojtransformer", "geotransform",
    "hidenodatavalue", "histcounts", "histitem", "histmax", "histmin", "histograms", "imageoffset",
    "includeoutofrange", "kernel", "kernelfilteredsource", "lineoffset", "lut", "maskband",
    "maskvaluethreshold", "maxerror", "mdi", "metadata", "multiband", "name", "nodata",
    "nodatafrommasksource", "nodatavalue", "offset", "option", "options", "overview", "overviewlist",
    "pixelfunctionarguments", "pixelfunctiontype", "pixeloffset", "remappedvalue",
    "reprojectiontransformer", "reprojecttransformer", "resamplealg", "reversed", "row", "scale",
    "scaleoffset", "scaleratio", "simplesource", "size", "skipnoncontributingsources", "sourceband",
    "sourcedataset", "sourcefilename", "sourceproperties", "sourcesrs", "sourcetransfertype",
    "srcalphaband", "srcgeotransform", "srcinvgeotransform", "srcmax", "srcmin", "srcnodataimag",
    "srcnodatareal", "srcrect", "srs", "targetsrs", "transformer", "type", "unittype", "usage",
    "usemaskband", "vrtdataset", "vrtrasterband", "warpmemorylimit", "workingdatatype",
))  # fmt: skip
_ATTRIBUTES = frozenset((
    "band", "binsize", "blockxsize", "blockysize", "c1", "c2", "c3", "c4", "coordinateepoch",
    "dataaxistosrsaxismapping", "datatype", "domain", "dst", "format", "id", "index", "info", "key",
    "line", "max", "min", "name", "normalized", "pixel", "projection", "rasterxsize", "rasterysize",
    "relativetovrt", "resampling", "row0min", "shared", "src", "subclass", "tabletype", "x", "xoff",
    "xsize", "y", "yoff", "ysize", "z",
))  # fmt: skip


def start_of(path: str | Path) -> bytes:
    """Return the first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(START)


def is_description(start: bytes) -> bool:
    """Return whether a file that starts so is, or could be taken for, a description of other files."""
    if start.startswith(TIFF):
        return False
    return start.lstrip(_BLANK)[:1] in (b"<", b"{", b"[") or _DESCRIPTIONS.search(start) is not None


def has_driver(name: str) -> bool:
    """Return whether a name chooses one of GDAL's drivers, as in NETCDF:file:variable."""
    return _DRIVER_NAME.match(name) is not None


def shown(name: str) -> str:
    """Return a name that a file holds, in one short line."""
    return repr(name if len(name) <= 200 else f"{name[:200]}...")


def check_virtual_raster(path: Path, open_source: Callable[[str], None], above: tuple[str, ...] = ()) -> None:
    """Check that a virtual raster reads rasters in its folder or below alone.

    Args:
      path: the virtual raster.
      open_source: opens a file and closes it again; raises an error if that reads others.
      above: virtual rasters that read it.

    Raises:
      UserError: it reads something else.
      UnreadableFile: it is damaged, or a file that it reads is missing.
    """
    for element in _parsed(path).iter():
        tag = str(element.tag).lower()
        odd = [key for key in element.attrib if key.lower() not in _ATTRIBUTES]
        if tag not in _ELEMENTS:
            odd = [str(element.tag), *odd]
        if odd:
            raise UserError(
                f"{path}: a virtual raster with {shown(odd[0])} is not read: write its pixels into a GeoTIFF "
                "with gdal_translate"
            )
    for source, is_relative in _named(path):
        _check_source(path, source, _place(path, source, is_relative), open_source, above)


def files_read_by(path: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the local files that a virtual raster reads, those that its virtual rasters read too.

    Args:
      path: the virtual raster.
      above: virtual rasters that read it.
    """
    for source, is_relative in _named(path):
        if is_remote(source) or has_driver(source):
            continue
        place = Path(os.path.realpath(path)).parent / source if is_relative else Path(source)
        yield place
        inner = (*above, os.path.realpath(path))
        if place.suffix.lower() == ".vrt" and place.is_file() and os.path.realpath(place) not in inner:
            yield from files_read_by(place, inner)


def _named(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the names of files in a virtual raster, and whether each starts from its folder."""
    for element in _parsed(path).iter():
        if str(element.tag).lower() in _FILE_NAMES:
            given = {key.lower(): value.strip() for key, value in element.attrib.items()}
            yield (element.text or "").strip(), given.get("relativetovrt", "0") not in ("", "0")


def _parsed(path: Path) -> ElementTree.Element:
    """Return the document of a virtual raster.

    Raises:
      UnreadableFile: it is none.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
            raise ValueError("it defines entities")
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
        if str(root.tag).lower() != "vrtdataset":
            raise ValueError(f"it is a {shown(str(root.tag))}")
    except (ElementTree.ParseError, ValueError, RecursionError) as problem:
        said = " ".join(str(problem).split())
        raise UnreadableFile(
            f"{path}: damaged, it is no virtual raster ({said}): write it anew with gdalbuildvrt"
        ) from problem
    return root


def _place(path: Path, source: str, is_relative: bool) -> str:
    """Return the absolute path of a file that a virtual raster names.

    Raises:
      UserError: it is no file of the folder or below.
    """
    if is_remote(source) or has_driver(source) or "\0" in source:
        raise UserError(
            f"{path}: reads {shown(source)}, which is no file of its folder: save it there as a GeoTIFF, and "
            "write the virtual raster anew"
        )
    # GDAL starts from where a link to a virtual raster leads to
    folders = (os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path)))
    place = os.path.join(folders[1], source) if is_relative else os.path.abspath(source)
    allowed = (*folders, *filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)))
    if not any(_is_below(place, folder) for folder in allowed):
        raise UserError(
            f"{path}: reads {shown(source)}, which is not in its folder or below: copy it there, or allow it "
            f"with {FOLDERS}={os.path.dirname(os.path.normpath(place))}"
        )
    return place


def _is_below(place: str, folder: str) -> bool:
    """Return whether a file is in a folder or below, by its name or by where links lead to."""
    if ".." not in Path(place).parts and Path(place).is_relative_to(os.path.abspath(folder)):
        return True
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def _check_source(
    path: Path, source: str, place: str, open_source: Callable[[str], None], above: tuple[str, ...]
) -> None:
    """Check that a file which a virtual raster reads is a raster that reads nothing else."""
    if not os.path.isfile(place):
        raise UnreadableFile(
            f"{path}: reads {shown(source)}, which is no file: restore it, or write the VRT anew"
        )
    start = start_of(place)
    if b"<VRTDataset" in start and place.lower().endswith(".vrt"):
        above = (*above, os.path.realpath(path))
        if os.path.realpath(place) in above or len(above) > _DEEPEST:
            raise UserError(
                f"{path}: reads {shown(source)}, which reads it in turn: write the virtual raster anew"
            )
        check_virtual_raster(Path(place), open_source, above)
        return
    if is_description(start):  # GDAL would open it with any of its drivers
        raise UserError(f"{path}: reads {shown(source)}, which is no raster: write the virtual raster anew")
    try:
        open_source(place)
    except RasterioError as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{path}: reads {shown(source)}, which is no raster ({said}): write the virtual raster anew"
        ) from error
