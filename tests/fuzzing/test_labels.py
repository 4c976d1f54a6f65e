"""Label rasters, polygons and lists of images: read as another library reads them, or refused in one line."""

import io
import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import tifffile
from PIL import Image
from rasterio.features import rasterize
from rasterio.transform import from_origin

from data_pipelines.readers.file_search import find_images
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.labels import RasterLabels, VectorLabels
from data_pipelines.readers.raster_header import read_header
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all
from tests.rasters import PLACE, write_polygons, write_raster
from tests.reference_pixels import is_undefined

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # GDAL's remarks on damage
]
SIZES = [(0, 60), pytest.param(1, 600, marks=pytest.mark.slow)]
SIDE, PALETTE = 24, ((200, 0, 0), (0, 200, 0), (0, 0, 200))
IDS = np.kron(np.random.default_rng(0).integers(0, 3, (6, 6)), np.ones((4, 4), int)).astype(np.uint8)


@pytest.fixture
def image(tmp_path):
    return write_raster(tmp_path / "a/images/x.tif", np.ones((SIDE, SIDE, 1), np.uint8), **PLACE)


def masks(kind):
    """The bytes of a mask, the code that reads it, and a decoder of another library."""
    if kind == "png of values":
        decode = lambda data: np.array(Image.open(io.BytesIO(data)))
        file = io.BytesIO()
        Image.fromarray(IDS + 1).save(file, "PNG")
        return file.getvalue(), ValueCode((1, 2, 3)), decode
    if kind == "png of colours":
        file = io.BytesIO()
        Image.fromarray(np.array(PALETTE, np.uint8)[IDS]).save(file, "PNG")
        return file.getvalue(), ColourCode(PALETTE), lambda data: np.array(Image.open(io.BytesIO(data)))
    file = io.BytesIO()
    values = (IDS + 1).astype(np.float32 if kind == "tiff of floats" else np.int16)
    values[:4, :4] = np.nan if kind == "tiff of floats" else 0
    tifffile.imwrite(file, values, compression="zlib")
    return file.getvalue(), ValueCode((1, 2, 3), (0,)), lambda data: tifffile.imread(io.BytesIO(data))


def ids_of(code, pixels):
    """The labels of what another library decodes, value by value."""
    known = (1, 2, 3) if isinstance(code, ValueCode) else PALETTE
    label = np.full(pixels.shape[:2], 255, np.uint8)
    for number, value in enumerate(known):
        same = pixels == value
        label[same.all(axis=-1) if pixels.ndim == 3 else same] = number
    return label


@pytest.mark.parametrize(("seed", "count"), SIZES)
@pytest.mark.parametrize("kind", ["png of values", "png of colours", "tiff of floats", "tiff of integers"])
def test_damaged_masks(kind, seed, count, image, tmp_path, record_property):
    good, code, decode = masks(kind)
    mask, labels = tmp_path / f"mask.{kind[:3]}", RasterLabels(code)
    header = read_header(image)

    def read(variant):
        mask.write_bytes(variant)
        labels.check(image, header, mask)
        return labels.read(image, mask, None)[0]

    def is_exact(variant, label):
        expected = ids_of(code, masks(kind)[2](good))
        if np.array_equal(label, expected):
            return True
        try:
            pixels = decode(variant)
        except Exception:  # the other library refuses what GDAL reads, such as a wrong checksum
            return label.shape == (SIDE, SIDE) and (_gdal(mask, code, label) or is_undefined(mask))
        return np.array_equal(label, ids_of(code, np.squeeze(pixels))) or _gdal(mask, code, label)

    try_all(damaged(good, count, seed), read, is_exact, record_property, f"mask, {kind}")


def _gdal(mask, code, label):
    """Whether the labels are those of the values and the validity that rasterio reads, asked directly."""
    with rasterio.open(mask) as dataset:
        pixels, valid = dataset.read(), dataset.read_masks(1) != 0
        table = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else None
    if table is not None and not isinstance(code, ValueCode):
        pixels = np.moveaxis(np.array([table[i] for i in range(256)], np.uint8)[pixels[0]], -1, 0)
    colours = pixels[:3] if pixels.shape[0] >= 3 else pixels
    expected = ids_of(code, np.moveaxis(colours, 0, -1) if len(colours) > 1 else colours[0])
    same = (label == expected) | ~valid
    return bool(same.all())


POLYGONS = [
    (1, [(500_000, 5_000_000), (500_120, 5_000_000), (500_120, 4_999_800), (500_000, 4_999_800)]),
    (2, [(500_100, 4_999_900), (500_230, 4_999_900), (500_230, 4_999_770)]),
]


def drawn(geometries, values):
    """Labels as rasterio draws polygons that are read by another way; one without a class hides others."""
    label = np.full((SIDE, SIDE), 255, np.uint8)
    shapes = [
        (shape, 255 if value is None else int(value) - 1)
        for shape, value in zip(geometries, values, strict=True)
        if shape is not None and not shape.is_empty and shape.geom_type.endswith("Polygon")
    ]
    if shapes:
        rasterize(shapes, out=label, transform=from_origin(500_000, 5_000_000, 10, 10))
    return label


def polygon_reader(image, file):
    header = read_header(image)

    def read(variant):
        file.write_bytes(variant)
        labels = VectorLabels(ValueCode((1, 2)), "kind")  # keeps what it read: a new one each time
        labels.check(image, header, file)
        return labels.read(image, file, None)[0]

    return read


@pytest.mark.parametrize(("seed", "count"), SIZES)
@pytest.mark.parametrize("kind", ["damaged", "reshaped"])
def test_geojson(kind, seed, count, image, tmp_path, record_property):
    file = write_polygons(tmp_path / "polygons.geojson", POLYGONS, "kind", 32633)
    good = file.read_bytes()
    variants = damaged(good, count, seed) if kind == "damaged" else reshaped(json.loads(good), count, seed)

    def is_exact(variant, label):
        """Draw what `pyogrio` and shapely make of the whole file, without a filter."""
        meta, _, geometry, columns = pyogrio.raw.read(file)
        if not len(meta["fields"]):  # no feature at all
            return len(geometry) == 0 and np.array_equal(label, drawn((), ()))
        values = columns[list(meta["fields"]).index("kind")].tolist()
        values = [None if value is None or value != value else value for value in values]
        shapes = shapely.from_wkb(geometry)
        if meta["crs"] != "EPSG:32633":
            return True  # reprojected: compared in the tests of the reader
        return np.array_equal(label, drawn(shapes, values))

    try_all(variants, polygon_reader(image, file), is_exact, record_property, f"GeoJSON, {kind}")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_geopackage(seed, count, image, tmp_path, record_property):
    file = tmp_path / "polygons.gpkg"
    shapes = [shapely.Polygon(ring) for _, ring in POLYGONS]
    wkb = np.array([shapely.to_wkb(shape) for shape in shapes], object)
    pyogrio.raw.write(
        file, wkb, [np.array([1, 2])], ["kind"], driver="GPKG", geometry_type="Polygon", crs="EPSG:32633"
    )
    good = file.read_bytes()

    def is_exact(variant, label):
        meta, _, geometry, columns = pyogrio.raw.read(file)
        values = columns[list(meta["fields"]).index("kind")].tolist()
        return meta["crs"] != "EPSG:32633" or np.array_equal(label, drawn(shapely.from_wkb(geometry), values))

    read = polygon_reader(image, file)
    try_all(damaged(good, count, seed, headers=0.1), read, is_exact, record_property, "GeoPackage, damaged")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_lists_of_images(seed, count, tmp_path, record_property):
    names = [f"{domain}/{stem}.tif" for domain in "ab" for stem in ("one", "two", "söm")]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file = tmp_path / "list.txt"
    good = b"\xef\xbb\xbf" + "\r\n".join(names).encode()

    def read(variant):
        file.write_bytes(variant)
        return find_images(tmp_path, "list.txt", None)

    def is_exact(variant, found):
        """Every line is a file, or a pattern whose matches are files; none is read twice."""
        encoding = "utf-16" if variant[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        lines = [line.strip() for line in variant.decode(encoding).splitlines()]
        paths = [path for _, path in found]
        named = {tmp_path / line for line in lines if line and (tmp_path / line).is_file()}
        return len(set(paths)) == len(paths) and all(p.is_file() for p in paths) and named <= set(paths)

    try_all(damaged(good, count, seed), read, is_exact, record_property, "list of images")
