"""Virtual rasters, declared sizes, and what stands beside a raster: read as GDAL reads it, or refused."""

import struct

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.raster_file import open_as_stored, read_pixels
from data_pipelines.records import Window
from spectralmoe_jax.inference.catalogue import _is_whole, _tags_of
from tests.fuzzing.mutations import damaged
from tests.fuzzing.outcome import try_all
from tests.rasters import PLACE, write_raster
from tests.reference_pixels import is_undefined

COUNTS = [(0, 60), pytest.param(1, 400, marks=pytest.mark.slow)]
SECRET = 251  # of all pixels outside the folder, and of none inside


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 250, (16, 20, 1), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images/inside.tif", pixels, **PLACE)
    write_raster(tmp_path / "outside.tif", np.full_like(pixels, SECRET), **PLACE)
    (tmp_path / "outside.txt").write_bytes(bytes([SECRET]) * 1000)
    return tmp_path / "images"


def read_all(path):
    with open_as_stored(path) as opened:
        return opened.read()


def as_gdal(path, found):
    with rasterio.open(path) as opened:
        return np.array_equal(opened.read(), found)


def hostile(document, count, seed, outside):
    """Variants of a virtual raster that name what is not theirs, in every place."""
    random = np.random.default_rng(seed)
    names = (
        f"{outside}.tif", f"{outside}.txt", "../outside.tif", "./../outside.tif",
        "inside.tif/../../outside.tif",
        "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", f"/vsisubfile/0_320,{outside}.txt",
        f"vrt://{outside}.tif", f"GTIFF_DIR:1:{outside}.tif", "/vsimem/x", "/dev/zero", "/vsistdin/", "", ".",
        "a.vrt",
        f"&#47;..{outside}.tif", "<![CDATA[../outside.tif]]>", f"../../../../../../../..{outside}.tif",
        f"<VRTDataset/>{outside}.tif", "x" * 5000,
    )  # fmt: skip
    texts = (
        "SourceFilename",
        "SourceDataset",
        "sourcefilename",
        "PixelFunctionCode",
        "DEMPath",
        "IndexDataset",
    )
    for number in range(count):
        name = names[int(random.integers(len(names)))]
        kind = number % 4
        text = document
        if kind == 0:
            text = text.replace("inside.tif", name)
        elif kind == 1:
            tag = texts[int(random.integers(len(texts)))]
            places = [place for place in range(len(text)) if text.startswith("<", place)]
            place = places[int(random.integers(len(places)))]
            text = f"{text[:place]}<{tag} relativeToVRT='{number % 2}'>{name}</{tag}>{text[place:]}"
        elif kind == 2:
            places = [
                place for place in range(len(text)) if text.startswith(">", place) and text[place - 1] != "/"
            ]
            place = places[int(random.integers(len(places)))]
            text = f"{text[:place]} {texts[int(random.integers(3))]}='{name}'{text[place:]}"
        else:
            text = text.replace('relativeToVRT="1"', f'relativeToVRT="{number % 3}"').replace(
                "inside.tif", name
            )
        yield f"{name[:40]!r} (seed {seed}, number {number})", text.encode()


@pytest.mark.parametrize(("seed", "count"), COUNTS)
@pytest.mark.parametrize("kind", ["damaged", "hostile"])
def test_virtual_rasters(kind, seed, count, folder, record_property):
    rasterio.shutil.copy(folder / "inside.tif", folder / "good.vrt", driver="VRT")
    document = (folder / "good.vrt").read_text()
    outside = folder.parent / "outside"
    variants = (
        damaged(document.encode(), count, seed, headers=0.1)
        if kind == "damaged"
        else hostile(document, count, seed, outside)
    )
    path = folder / "a.vrt"

    def read(variant):
        path.write_bytes(variant)
        return read_all(path)

    def is_exact(variant, found):
        return not (found == SECRET).any() and as_gdal(path, found)

    try_all(variants, read, is_exact, record_property, f"virtual raster, {kind}")


def with_sizes(data, count, seed):
    """Copies of a TIFF whose header declares other sizes, types and tiles."""
    random = np.random.default_rng(seed)
    start = struct.unpack("<I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    entries = {struct.unpack_from("<H", data, place)[0]: place for place in range(start + 2, end, 12)}
    tags = [tag for tag in (256, 257, 258, 277, 278, 322, 323, 324, 325, 273, 279) if tag in entries]
    values = (0, 1, 2, 255, 65535, 65536, 10**6, 2**27, 2**31 - 1, 2**31, 2**32 - 1)
    for number in range(count):
        changed = bytearray(data)
        chosen = random.choice(tags, size=int(random.integers(1, 4)), replace=False)
        for tag in chosen:
            value = values[int(random.integers(len(values)))]
            place = entries[int(tag)]
            changed[place + 2 : place + 4] = struct.pack("<H", 4)
            changed[place + 8 : place + 12] = struct.pack("<I", value)
        yield f"tags {sorted(map(int, chosen))} (seed {seed}, number {number})", bytes(changed)


@pytest.mark.parametrize(("seed", "count"), COUNTS)
@pytest.mark.parametrize("tiled", [False, True])
def test_declared_sizes(tiled, seed, count, folder, record_property):
    pixels = np.random.default_rng(1).integers(1, 250, (64, 80, 3), dtype=np.uint8)
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    good = write_raster(folder / "good.tif", pixels, compress="deflate", **PLACE, **tiles).read_bytes()
    path = folder / "a.tif"

    def read(variant):
        path.write_bytes(variant)
        return read_pixels(path, Window(0, 0, 8, 8))[0]

    def is_exact(variant, found):
        # what a damaged block holds beyond a block's end depends on GDAL's decoder, another with threads
        for options in ({}, {"NUM_THREADS": 2}):
            with rasterio.open(path, **options) as opened:
                expected = opened.read(window=((0, 8), (0, 8)))
            if np.array_equal(np.moveaxis(expected, 0, -1).astype(found.dtype), found):
                return True
        return is_undefined(path, ((0, 8), (0, 8)))

    try_all(with_sizes(good, count, seed), read, is_exact, record_property, f"TIFF sizes, tiled {tiled}")


@pytest.mark.parametrize(("seed", "count"), COUNTS)
@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".aux.xml"])
def test_side_files(suffix, seed, count, folder, record_property):
    path = folder / "inside.tif"
    side = folder / f"inside.tif{suffix}"
    if suffix == ".aux.xml":
        band = b"<Description>red</Description><NoDataValue>3</NoDataValue>"
        good = b"<PAMDataset><Metadata><MDI key='a'>b</MDI></Metadata>"
        good += b"<PAMRasterBand band='1'>" + band + b"</PAMRasterBand></PAMDataset>"
    else:
        good = path.read_bytes()

    def read(variant):
        side.write_bytes(variant)
        return read_all(path)

    try_all(
        damaged(good, count, seed), read, lambda variant, found: as_gdal(path, found), record_property,
        f"{suffix} beside a raster",
    )  # fmt: skip


@pytest.mark.parametrize(("seed", "count"), COUNTS)
def test_maps_that_are_there(seed, count, folder, record_property):
    """What is found of an earlier map, to go on from it."""
    path = folder / "map.tif"
    tags = {"SPECTRALMOE_MODEL": "0123456789abcdef", "SPECTRALMOE_SCENE": "1234"}
    write_raster(path, np.full((64, 80), 3, np.uint8), compress="deflate", **PLACE)
    with rasterio.open(path, "r+") as made:
        made.update_tags(**tags)

    def read(variant):
        path.write_bytes(variant)
        return _tags_of(path), _is_whole(path, tags)

    def is_exact(variant, found):
        try:
            with rasterio.open(path) as opened:
                known = opened.tags()
        except rasterio.errors.RasterioError:
            known = {}
        return found[0] in ({}, known) and (not found[1] or tags.items() <= known.items())

    try_all(damaged(path.read_bytes(), count, seed), read, is_exact, record_property, "map that is there")
