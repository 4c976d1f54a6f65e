"""Polygons as labels: layers, order, grids, and files that cannot be read."""

import json

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform

from data_pipelines.readers import labels
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import VectorLabels
from data_pipelines.readers.vector_file import read_polygons
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_polygons, write_raster

CODE = ValueCode(("wheat", "lake"))
NORTH_WEST = 500_000, 5_000_000


def square(west, north, side):
    return [(west, north), (west + side, north), (west + side, north - side), (west, north - side)]


def closed(ring):
    return [*ring, ring[0]]


def write_layers(path, crs="EPSG:32633", driver="GPKG", **layers):
    """Writes layers of {name: [(value, geometry)]} of one attribute, `kind`."""
    for name, features in layers.items():
        values, shapes = zip(*features, strict=True)
        pyogrio.raw.write(
            path, np.array([shapely.to_wkb(shape) for shape in shapes], object), [np.array(values, object)],
            ["kind"], layer=name, driver=driver, geometry_type="Polygon", crs=crs, append=path.exists(),
        )  # fmt: skip
    return path


def wheat(west=NORTH_WEST[0], north=NORTH_WEST[1], side=100, value="wheat"):
    return value, shapely.Polygon(square(west, north, side))


def open_tiles(root, file, layer="", code=CODE, **changes):
    settings = {"bands": ("z",), "classes": 2, "mask_template": file, **changes}
    return GeoTiffTiles(root, labels=VectorLabels(code, "kind", layer), **settings)


@pytest.fixture
def root(tmp_path):
    write_raster(tmp_path / "a/images/x.tif", np.ones((64, 64, 1), np.uint8), **PLACE)
    return tmp_path


def label_of(source, number=0):
    return source.read_label(source.records[number])


def test_a_named_layer_or_the_first(root):
    write_layers(root / "f.gpkg", fields=[wheat()], lakes=[wheat(value="lake", side=50)])
    assert np.unique(label_of(open_tiles(root, "f.gpkg")), return_counts=True)[1].tolist() == [100, 3996]
    label = label_of(open_tiles(root, "f.gpkg", "lakes"))
    assert (label[:5, :5] == 1).all()
    assert (label != 255).sum() == 25
    with pytest.raises(UserError) as error:
        open_tiles(root, "f.gpkg", "lake")
    message = f"{root}/f.gpkg: no layer 'lake', it has fields, lakes: correct data.label_layer"
    assert str(error.value) == message


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b'{"type": "Feature'])
def test_a_file_that_is_not_a_vector_file(root, content):
    (root / "f.gpkg").write_bytes(content)
    with pytest.raises(UserError, match=r"f\.gpkg: cannot be read as vector data \(.*\): restore the file"):
        open_tiles(root, "f.gpkg")


def test_a_file_without_a_crs(root):
    write_layers(root / "f.gpkg", crs=None, fields=[wheat()])
    with pytest.raises(UserError, match=r"f\.gpkg: has no coordinate reference system"):
        open_tiles(root, "f.gpkg")


@pytest.mark.parametrize(("driver", "name"), [("GPKG", "f.gpkg"), ("GeoJSON", "f.geojson")])
def test_the_last_polygon_lies_on_top(root, driver, name):
    """With a spatial index the file gives its features in another order than they were written in."""
    rng = np.random.default_rng(0)
    expected = np.full((64, 64), 255)
    features = []
    for number in range(60):
        row, col, side = (int(value) for value in rng.integers((0, 0, 3), 50))
        value = ("wheat", "lake")[number % 2]
        features.append(wheat(NORTH_WEST[0] + 10 * col, NORTH_WEST[1] - 10 * row, 10 * side, value))
        expected[row : row + side, col : col + side] = number % 2
    write_layers(root / name, driver=driver, f=features)
    np.testing.assert_array_equal(label_of(open_tiles(root, name)), expected)


def test_missing_values_are_unlabelled(root):
    features = [wheat(), wheat(side=50, value=None)]
    write_layers(root / "f.gpkg", f=features)
    label = label_of(open_tiles(root, "f.gpkg"))
    assert (label[:5, :5] == 255).all()  # it lies on top, and says nothing
    assert (label == 0).sum() == 75
    collection = write_polygons(root / "n.geojson", [(7, square(*NORTH_WEST, 100))], "kind", 32633)
    text = json.loads(collection.read_text())
    text["features"].append({**text["features"][0], "properties": {"kind": None}})
    text["features"][1]["geometry"] = {"type": "Polygon", "coordinates": [closed(square(*NORTH_WEST, 50))]}
    collection.write_text(json.dumps(text))
    label = label_of(open_tiles(root, "n.geojson", code=ValueCode((7, 8))))  # None among numbers reads as NaN
    assert ((label[:5, :5] == 255).all(), (label == 0).sum()) == (True, 75)


def test_features_without_geometry_are_ignored(root):
    write_layers(root / "f.gpkg", f=[wheat(), ("lake", shapely.Polygon())])
    assert (label_of(open_tiles(root, "f.gpkg")) == 0).sum() == 100


@pytest.mark.parametrize("angle", [0, 30, 90, 200])
def test_rotated_grids(tmp_path, angle):
    """A pixel is of the polygon that its centre lies in, as shapely says."""
    turned = Affine.translation(*NORTH_WEST) @ Affine.rotation(angle) @ Affine.scale(10, -10)
    write_raster(
        tmp_path / "a/images/x.tif", np.ones((40, 60, 1), np.uint8), crs="EPSG:32633", transform=turned
    )
    middle = turned @ (30, 20)
    ring = [(middle[0] + 171 * np.cos(t), middle[1] + 93 * np.sin(t)) for t in np.linspace(0, 6, 23)]
    write_polygons(tmp_path / "f.geojson", [("lake", ring)], "kind", 32633)
    source = open_tiles(tmp_path, "f.geojson")
    cols, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(40) + 0.5)
    xs = turned.c + turned.a * cols + turned.b * rows
    ys = turned.f + turned.d * cols + turned.e * rows
    expected = np.where(shapely.contains_xy(shapely.Polygon(ring), xs, ys), 1, 255)
    np.testing.assert_array_equal(label_of(source), expected)
    part = source.read_label(source.records[0], Window(11, 13, 20, 30))
    np.testing.assert_array_equal(part, expected[11:31, 13:43])


def test_an_image_across_the_date_line(tmp_path):
    """Its bounds in degrees go from 179.9 to -179.9: all polygons are read, and each lies where it should."""
    place = {"crs": "EPSG:32660", "transform": from_origin(820_000, 10_000, 100, 100)}
    write_raster(tmp_path / "a/images/x.tif", np.ones((100, 300, 1), np.uint8), **place)
    rings = {"wheat": square(822_000, 8_000, 3_000), "lake": square(842_000, 8_000, 3_000)}
    ends = {
        name: list(zip(*transform("EPSG:32660", "EPSG:4326", *zip(*ring, strict=True))[:2], strict=True))
        for name, ring in rings.items()
    }
    assert min(x for x, _ in ends["wheat"]) > 179
    assert max(x for x, _ in ends["lake"]) < -179
    write_polygons(tmp_path / "f.geojson", list(ends.items()), "kind", 4326)
    label = label_of(open_tiles(tmp_path, "f.geojson"))
    expected = np.full((100, 300), 255)
    expected[20:50, 20:50], expected[20:50, 220:250] = 0, 1
    assert (label != expected).sum() <= 4 * 30  # the edges are bent by less than a pixel
    assert {*np.unique(label[22:48, 22:48]), *np.unique(label[22:48, 222:248])} == {0, 1}


def test_only_polygons_around_an_image_are_read(root):
    far = [wheat(NORTH_WEST[0] + 10_000 * n, value="far") for n in range(1, 40)]
    write_layers(root / "f.gpkg", f=[*far, wheat(), wheat(NORTH_WEST[0] + 600, side=500, value="lake")])
    label = label_of(open_tiles(root, "f.gpkg"))  # "far" is a value that is unknown
    assert ((label == 0).sum(), (label == 1).sum()) == (100, 50 * 4)
    bounds = (NORTH_WEST[0], NORTH_WEST[1] - 640, NORTH_WEST[0] + 640, NORTH_WEST[1])
    polygons, values = read_polygons(root / "f.gpkg", "", "kind", "EPSG:32633", bounds)
    assert (len(polygons), sorted(values)) == (2, ["lake", "wheat"])


def test_polygons_of_recent_images_are_cached(tmp_path, monkeypatch):
    """Each image's once while it is among the last ones, again when it has been pushed out."""
    monkeypatch.setattr(labels, "_IMAGES_KEPT", 2)
    for number in range(3):
        write_raster(tmp_path / f"a/images/{number}.tif", np.ones((64, 64, 1), np.uint8), **PLACE)
    write_layers(tmp_path / "f.gpkg", f=[wheat()])
    reads = []
    monkeypatch.setattr(
        labels, "read_polygons", lambda *given: reads.append(given[0]) or read_polygons(*given)
    )
    vector = VectorLabels(CODE, "kind")
    mask = tmp_path / "f.gpkg"
    for number, total in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        label, _ = vector.read(tmp_path / f"a/images/{number}.tif", mask, None)
        assert (label == 0).sum() == 100
        assert len(reads) == total


def test_an_unclosed_ring(root):
    path = write_polygons(root / "n.geojson", [("wheat", square(*NORTH_WEST, 100))], "kind", 32633)
    text = json.loads(path.read_text())
    text["features"][0]["geometry"]["coordinates"] = [square(*NORTH_WEST, 100)]
    path.write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"n\.geojson: cannot be read as vector data \(.*closed linestring\)"):
        open_tiles(root, "n.geojson")
