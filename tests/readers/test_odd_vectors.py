"""Vector files of odd content: read as rasterio draws their polygons, or refused in one line."""

import json

import numpy as np
import pytest
import shapely
from rasterio.features import rasterize

from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import VectorLabels
from data_pipelines.readers.raster_header import read_header
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

WEST, NORTH, SIDE = 500_000, 5_000_000, 16


def square(west, north, side):
    return shapely.box(WEST + west, NORTH - north - side, WEST + west + side, NORTH - north)


A, B = square(0, 0, 80), square(40, 40, 100)
BOW = shapely.Polygon([(WEST, NORTH), (WEST + 90, NORTH - 90), (WEST + 90, NORTH), (WEST, NORTH - 90)])


@pytest.fixture
def image(tmp_path):
    return write_raster(tmp_path / "x.tif", np.ones((SIDE, SIDE, 1), np.uint8), **PLACE)


def feature(kind, shape):
    geometry = None if shape is None else json.loads(shapely.to_geojson(shape))
    return {"type": "Feature", "properties": {"kind": kind}, "geometry": geometry}


def read(image, features, change=lambda text: text):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    file = image.with_name("polygons.geojson")
    text = json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})
    file.write_bytes(change(text.encode()))
    labels = VectorLabels(ValueCode((1, 2)), "kind")
    labels.check(image, read_header(image), file)
    return labels.read(image, file, None)[0]


def drawn(*shapes):
    label = np.full((SIDE, SIDE), 255, np.uint8)
    if shapes:
        rasterize([(shape, number) for number, shape in shapes], out=label, transform=PLACE["transform"])
    return label


READ = {
    "no geometry": ([feature(1, A), feature(2, None)], [(0, A)]),
    "an empty geometry": ([feature(1, A), feature(2, shapely.Polygon())], [(0, A)]),
    "numbers with a point": ([feature(1.0, A), feature(2.0, B)], [(0, A), (1, B)]),
    "no value": ([feature(1, A), feature(None, B)], [(0, A), (255, B)]),
    "true": ([feature(True, A)], [(0, A)]),
    "crossing itself": ([feature(1, BOW)], [(0, BOW)]),
    "points and lines": (
        [feature(1, A), feature(2, shapely.Point(WEST, NORTH)), feature(2, B.exterior)], [(0, A)],
    ),
    "a collection": (
        [feature(2, shapely.GeometryCollection([A, B.exterior, shapely.GeometryCollection([B])]))],
        [(1, A), (1, B)],
    ),
    "several parts": ([feature(2, shapely.MultiPolygon([A, square(120, 120, 20)]))],
                      [(1, A), (1, square(120, 120, 20))]),
    "as large as a continent": ([feature(1, square(-3e6, -3e6, 9e6))], [(0, square(0, 0, 160))]),
    "of three dimensions": (
        [feature(1, shapely.Polygon([(x, y, 7) for x, y in A.exterior.coords]))], [(0, A)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_as_drawn(name, image):
    features, shapes = READ[name]
    np.testing.assert_array_equal(read(image, features), drawn(*shapes))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ([1, 2], "kind holds lists, such as"),
        (["a"], "kind holds lists"),
        ({"a": 1}, "has the value"),
        ("1", "has the value '1', which is neither in data.label_values"),
        (1.5, "has the value 1.5"),
        ("x" * 10_000, "has the value 'xxx"),
    ],
)
def test_values_that_are_no_class(kind, said, image):
    with pytest.raises(UserError) as error:
        read(image, [feature(kind, A)])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("huge", [1e13, 1e300])
def test_coordinates_beyond_all_maps(huge, image):
    with pytest.raises(UserError, match="2 coordinates of its polygons are NaN, infinite or beyond all maps"):
        read(image, [feature(1, shapely.Polygon([(WEST, NORTH), (huge, NORTH), (huge, NORTH - 90)]))])


def test_no_feature(image):
    """As tools write the polygons of an image that shows none."""
    np.testing.assert_array_equal(read(image, []), drawn())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"kind"', b'"\xb1x": 1, "kind"', "is not UTF-8"),
        (b"500080.0", b"NaN", "polygons.geojson"),
        (b"500080.0", b"1e999", "polygons.geojson"),
        (b'"kind"', b'"other"', "no attribute 'kind', it has other: correct data.label_attribute"),
    ],
)
def test_damage_is_one_line(old, new, said, image):
    with pytest.raises(UserError) as error:
        read(image, [feature(1, A), feature(2, B)], lambda text: text.replace(old, new))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
