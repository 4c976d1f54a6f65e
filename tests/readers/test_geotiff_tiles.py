"""Windows read from GeoTIFFs: bands, types, labels as rasters and polygons, on real and written files."""

import json
import pickle

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from data_pipelines.readers.image_files import GeoTiffTiles, ImageFolder
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.labels import RasterLabels, VectorLabels
from data_pipelines.readers.raster_file import band_last
from data_pipelines.records import Window, examples, split_holdout
from data_pipelines.sensors import SENSORS, wavelengths
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_polygons, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
S2 = tuple(band.name for band in SENSORS["sentinel2"].bands)
LANDCOVER = ValueCode((1, 2, 3, 4, 8), ignore=(0,))


def open_sentinel2(root, labels=None, mask_template="landcover.tif", **changes):
    settings = {"bands": S2, "image_glob": "{domain}.tif", "domains": ("scene_2", "scene_0"), "classes": 5}
    labels = labels or RasterLabels(LANDCOVER)
    return GeoTiffTiles(
        root, labels=labels, mask_template=mask_template, sensor="sentinel2", **{**settings, **changes}
    )


def test_sentinel2_by_name(shared_data):
    root = shared_data / "sentinel2"
    with rasterio.open(root / "scene_2.tif") as file, rasterio.open(root / "landcover.tif") as mask:
        stored, stored_mask = file.read(), mask.read(1)
    whole = open_sentinel2(root)
    assert [record.domain for record in whole.records] == ["scene_2", "scene_0"]
    assert whole.dtype == np.uint16
    np.testing.assert_array_equal(whole.read_image(whole.records[0]), np.moveaxis(stored, 0, -1))
    chosen = open_sentinel2(root, bands=("nir", "red", "B03"))
    image = chosen.read_image(chosen.records[0], Window(7, 11, 30, 40))
    np.testing.assert_array_equal(image, np.moveaxis(stored[[7, 3, 2], 7:37, 11:51], 0, -1))
    label = whole.read_label(whole.records[0])
    for number, value in enumerate((1, 2, 3, 4, 8)):
        np.testing.assert_array_equal(label == number, stored_mask == value)
        assert whole.class_pixels[0][number] == (stored_mask == value).sum()


def test_polygons_equal_the_published_raster(shared_data):
    """The land cover of the example data was drawn from these polygons: all pixels agree."""
    root = shared_data / "sentinel2"
    raster = open_sentinel2(root)
    drawn = open_sentinel2(root, VectorLabels(LANDCOVER, "LULC_ID"), "landcover.gpkg")
    drawn = pickle.loads(pickle.dumps(drawn))
    for record in drawn.records:
        label = raster.read_label(raster.records[0])
        np.testing.assert_array_equal(drawn.read_label(record), label)
        np.testing.assert_array_equal(drawn.read_label(record, Window(60, 20, 33, 50)), label[60:93, 20:70])


def test_wavelengths_of_enmap_files_are_checked(shared_data):
    root = shared_data / "enmap"
    bands = tuple(band.name for band in SENSORS["enmap"].bands)
    settings = {
        "labels": RasterLabels(ValueCode(range(1, 7), ignore=(0,))), "classes": 6, "sensor": "enmap",
        "image_glob": "images/enmap_potsdam_tile_{domain}.tif", "mask_template": "labels/{stem}.tif",
    }  # fmt: skip
    source = GeoTiffTiles(root, bands=bands, wavelengths=wavelengths(bands, "enmap"), **settings)
    assert len(source.records) == 14
    assert source.records[0].domain == "128_0"
    image = source.read_image(source.records[0])
    assert image.shape == (32, 32, 224)
    assert (image[..., 129:135] == 0).all()  # the water vapour bands hold nodata alone
    assert image.min() > -2000
    with rasterio.open(source.records[0].image) as file:
        np.testing.assert_array_equal(image[..., 40], file.read(41))
    some = GeoTiffTiles(root, bands=("band 48", "band 1"), domains=("96_32",), **settings)
    with rasterio.open(some.records[0].image) as file:
        np.testing.assert_array_equal(some.read_image(some.records[0])[..., 0], file.read(48))
    with pytest.raises(UserError, match=r"128_0\.tif: band band 48 lies at 0\.66.. um, .* 0\.49 um"):
        GeoTiffTiles(root, bands=("band 48",), wavelengths=(0.49,), domains=("128_0",), **settings)


def test_one_scene_divides_into_windows(shared_data):
    """Windows cover every pixel once, whatever their size, and can be held out."""
    root = shared_data / "cloudshadow"
    with (
        rasterio.open(root / "landsat5_image.tif") as file,
        rasterio.open(root / "landsat5_label.tif") as mask,
    ):
        stored, stored_mask = np.moveaxis(file.read((4, 1)), 0, -1), mask.read(1)
    source = GeoTiffTiles(
        root, bands=("nir", "blue"), labels=RasterLabels(ValueCode((1, 2, 3))), classes=3, sensor="landsat5",
        image_glob="{domain}_image.tif", mask_template="{domain}_label.tif", domains=("landsat5",), tile=200,
    )  # fmt: skip
    assert len(source.records) == 9
    image, label = np.full_like(stored, np.nan), np.zeros_like(stored_mask)
    for record, pixels, ids in examples(source):
        place = slice(record.row, record.row + record.height), slice(record.col, record.col + record.width)
        assert np.isnan(image[place]).all()
        image[place], label[place] = pixels, ids + 1
    np.testing.assert_array_equal(image, stored)
    np.testing.assert_array_equal(label, stored_mask)
    train, held = split_holdout(source.records, 0.2, 0)
    assert (len(train), len(held)) == (7, 2)


@pytest.mark.parametrize("driver", ["GTiff", "COG"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", "int32"])
def test_types_and_layouts(tmp_path, driver, dtype):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (300, 280, 5)).astype(dtype)
    options = {"blocksize": 128, "overviews": "auto"} if driver == "COG" else {"tiled": True}
    write_raster(tmp_path / "a/images/x.tif", pixels, driver=driver, compress="deflate", **options)
    write_raster(tmp_path / "a/masks/x.tif", rng.integers(0, 2, (300, 280)).astype(np.uint8))
    for cache in (1 << 30, 0):  # decoded whole and kept, or window by window
        source = GeoTiffTiles(
            tmp_path,
            bands=tuple("vwxyz"),
            labels=RasterLabels(ValueCode((0, 1))),
            classes=2,
            cache_bytes=cache,
        )
        assert source.dtype == (dtype if dtype in ("uint8", "int16", "uint16") else "float32")
        record = source.records[0]
        np.testing.assert_array_equal(source.read_image(record), pixels)
        window = Window(100, 130, 77, 150)
        np.testing.assert_array_equal(source.read_image(record, window), pixels[100:177, 130:280])
        assert source.read_image(record, window).dtype == source.dtype


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.int32])
def test_bands_come_last(count, dtype):
    pixels = np.random.default_rng(count).integers(0, 99, (count, 13, 9)).astype(dtype)
    moved = band_last(pixels)
    np.testing.assert_array_equal(moved, np.moveaxis(pixels, 0, -1))
    assert moved.dtype == dtype


def test_four_samples_announced_as_cmyk_are_read_as_stored(tmp_path):
    """As the Gaofen-2 images of Five-Billion-Pixels are published."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    write_raster(
        tmp_path / "a/images/x.tif", pixels, photometric="CMYK", tiled=True, blockxsize=16, blockysize=16
    )
    write_raster(tmp_path / "a/masks/x.png", np.zeros((40, 50), np.uint8), driver="PNG")
    source = ImageFolder(
        tmp_path, palette=((0, 0, 0),), bands=("nir", "red", "green", "blue"), image_glob="*/images/*.tif"
    )
    np.testing.assert_array_equal(source.read_image(source.records[0]), pixels)


def test_nodata_of_the_sensor_where_the_file_says_nothing(tmp_path):
    pixels = np.full((20, 20, 13), 1000, np.uint16)
    pixels[:5] = 0
    pixels[7, 7, 3] = 0
    write_raster(tmp_path / "scene.tif", pixels, S2)
    write_raster(tmp_path / "landcover.tif", np.full((20, 20), 2, np.uint8))
    source = open_sentinel2(tmp_path, domains=("scene",))
    label = source.read_label(source.records[0])
    assert (label[:5] == 255).all()
    assert (label[5:] == 1).all()
    assert source.class_pixels.sum() == 300  # without what the image lacks


def test_classes_can_be_merged_and_images_differ_in_size_and_crs(tmp_path):
    for number, (size, epsg) in enumerate((((20, 30), 32633), ((25, 10), 3035))):
        place = {**PLACE, "crs": f"EPSG:{epsg}"}
        write_raster(tmp_path / f"{number}/images/x.tif", np.ones((*size, 1), np.float32), ("z",), **place)
        write_raster(
            tmp_path / f"{number}/masks/x.tif", np.tile(np.uint8([4, 7, 9]), (size[0], 10))[:, : size[1]]
        )
    labels = RasterLabels(ValueCode(((4, 9), 7)))
    source = GeoTiffTiles(tmp_path, bands=("z",), labels=labels, classes=2)
    assert [(r.height, r.width) for r in source.records] == [(20, 30), (25, 10)]
    np.testing.assert_array_equal(source.read_label(source.records[0])[0, :6], [0, 1, 0, 0, 1, 0])


def square(west, north, side):
    return [(west, north), (west + side, north), (west + side, north - side), (west, north - side)]


def test_polygons_of_another_crs_are_reprojected(tmp_path):
    """The same fields in degrees and in metres label the same pixels; later ones lie on top."""
    fields = [("wheat", square(500_050, 4_999_950, 300)), ("lake", square(500_200, 4_999_800, 200))]
    degrees = [
        (value, list(zip(*transform("EPSG:32633", "EPSG:4326", *zip(*ring, strict=True))[:2], strict=True)))
        for value, ring in fields
    ]
    write_raster(tmp_path / "a/images/x.tif", np.ones((64, 64, 1), np.uint8), **PLACE)
    write_polygons(tmp_path / "metres.geojson", fields, "kind", 32633)
    write_polygons(tmp_path / "degrees.geojson", degrees, "kind", 4326)
    expected = np.full((64, 64), 255)
    expected[5:35, 5:35] = 1
    expected[20:40, 20:40] = 0
    for name in ("metres", "degrees"):
        source = GeoTiffTiles(
            tmp_path, bands=("z",), classes=2, mask_template=f"{name}.geojson",
            labels=VectorLabels(ValueCode(("lake", "wheat")), "kind"),
        )  # fmt: skip
        np.testing.assert_array_equal(source.read_label(source.records[0]), expected)


@pytest.mark.parametrize(
    ("values", "attribute", "crs", "parts"),
    [
        (("wheat",), "kind", True, ["fields.geojson", "kind has the value 'lake'", "data.label_values"]),
        (("wheat", "lake"), "sort", True, ["no attribute 'sort'", "it has kind", "data.label_attribute"]),
        (("wheat", "lake"), "kind", False, ["x.tif: is not georeferenced", "fields.geojson"]),
    ],
)
def test_unusable_polygons(tmp_path, values, attribute, crs, parts):
    write_raster(tmp_path / "a/images/x.tif", np.ones((8, 8, 1), np.uint8), **(PLACE if crs else {}))
    fields = [("wheat", square(500_000, 5_000_000, 30)), ("lake", square(500_000, 5_000_000, 20))]
    write_polygons(tmp_path / "fields.geojson", fields, "kind", 32633)
    with pytest.raises(UserError) as error:
        GeoTiffTiles(
            tmp_path, bands=("z",), classes=len(values), mask_template="fields.geojson",
            labels=VectorLabels(ValueCode(values), attribute),
        )  # fmt: skip
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_indices_into_a_colour_table(tmp_path, dtype):
    """Several indices may have one colour; unknown ones are counted together."""
    mask = np.random.default_rng(0).integers(0, 6, (30, 40)).astype(dtype)
    path = write_raster(tmp_path / "a/masks/x.tif", mask, photometric="palette")
    table = {0: (9, 9, 9), 1: (200, 0, 0), 2: (0, 0, 200), 3: (200, 0, 0), 4: (1, 2, 3), 5: (1, 2, 3)}
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, table)
    code = ColourCode(((200, 0, 0), (0, 0, 200)), ignore=((9, 9, 9),))
    label, unknown = RasterLabels(code).read(path, path, None)
    np.testing.assert_array_equal(label, np.array([255, 0, 1, 0, 255, 255])[mask])
    assert unknown == {(1, 2, 3): ((mask == 4) | (mask == 5)).sum()}


def test_indices_beyond_a_colour_table_are_unknown():
    mask = np.array([[0, 1, 300, 300]], np.uint16)
    label, unknown = ColourCode(((200, 0, 0),)).from_indexed(mask, {0: (200, 0, 0, 255), 1: (200, 0, 0, 0)})
    assert label.tolist() == [[0, 255, 255, 255]]
    assert unknown == {300: 2}


def test_lines_and_points_among_polygons_are_left_out_with_one_warning(tmp_path, caplog):
    for name in "xy":
        write_raster(tmp_path / f"a/images/{name}.tif", np.ones((64, 64, 1), np.uint8), **PLACE)
    path = tmp_path / "fields.geojson"
    write_polygons(path, [("wheat", square(500_000, 5_000_000, 200))], "kind", 32633)
    collection = json.loads(path.read_text())
    line = [[500_300, 4_999_700], [500_400, 4_999_600]]
    for kind, coordinates in (("Point", line[0]), ("LineString", line), ("MultiPoint", line)):
        feature = {"type": "Feature", "properties": {"kind": "other"}}
        collection["features"].append({**feature, "geometry": {"type": kind, "coordinates": coordinates}})
    path.write_text(json.dumps(collection))
    source = GeoTiffTiles(
        tmp_path, bands=("z",), classes=1, mask_template="fields.geojson",
        labels=VectorLabels(ValueCode(("wheat",)), "kind"),
    )  # fmt: skip
    assert source.class_pixels.tolist() == [[400], [400]]
    told = [entry.getMessage() for entry in caplog.records if "lines and points" in entry.getMessage()]
    assert told == [f"{path}: 3 lines and points among its polygons label nothing and are left out"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("layout", ["pixel", "band"])
def test_many_bands_in_any_layout(tmp_path, dtype, layout):
    """Pixel by pixel, as GDAL decodes them in place, or band by band: windows, bands in any order, nodata."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (70, 90, 9)).astype(dtype)
    pixels[20:30, 40:60], pixels[5, 5, 3] = 7, 7  # nodata in all bands, and in one
    names = [f"b{n}" for n in range(9)]
    write_raster(
        tmp_path / "x/images/a.tif", pixels, names, tiled=True, blockxsize=32, blockysize=16, nodata=7,
        interleave=layout, compress="deflate", predictor=2, **PLACE,
    )  # fmt: skip
    write_raster(tmp_path / "x/masks/a.tif", np.ones((70, 90), np.uint8), **PLACE)
    expected = np.where(pixels == 7, 0, pixels).astype(dtype)
    for bands in (names, names[::-1], names[2:8:3]):
        source = GeoTiffTiles(
            tmp_path, bands=bands, labels=RasterLabels(ValueCode((1,))), classes=1, cache_bytes=0
        )
        (record,) = source.records
        assert record.by_window
        order = [names.index(name) for name in bands]
        for row, col, height, width in ((0, 0, 70, 90), (13, 30, 40, 60), (69, 89, 1, 1)):
            window = Window(row, col, height, width)
            image = source.read_image(record, window)
            assert image.flags.c_contiguous
            np.testing.assert_array_equal(image, expected[row : row + height, col : col + width, order])
            label = source.read_label(record, window)
            missing = (pixels == 7).all(axis=-1)[row : row + height, col : col + width]
            np.testing.assert_array_equal(label == 255, missing)
