"""Polygons of a map: areas and confidences against the pixels; files against other readers."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import rasterio.warp
import shapely
from rasterio.features import rasterize

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.polygons import Outlines, trace, write_polygons
from tests.inference.test_geotiff import NAMES, TRANSFORM, write_scene

EVERY = Outlines(min_pixels=1, simplify=0)


def blobs(height=60, width=80, side=10, seed=0):
    """Classes in squares, with single pixels of other classes, and a corner without data."""
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, 3, (height // side, width // side)), np.ones((side, side), int))
    classes = np.where(rng.random(classes.shape) < 0.02, rng.integers(0, 3, classes.shape), classes)
    classes[:15, :25] = 255
    return classes.astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    """A map and its confidence."""
    classes = blobs()
    sure = np.random.default_rng(1).uniform(0.3, 1, (*classes.shape, 1)).astype(np.float32)
    sure[classes == 255] = np.nan
    made = write_scene(tmp_path / "map.tif", classes[..., None], nodata=255)
    return made, write_scene(tmp_path / "map_confidence.tif", sure, nodata=np.nan)


def test_every_pixel_is_in_its_polygon(files):
    """Without joining or simplifying, the polygons painted again are the map."""
    classes = blobs()
    found = trace(classes, files[1], EVERY)
    painted = rasterize(
        zip(found.geometry, found.classes, strict=True), classes.shape, fill=255, dtype="uint8"
    )
    np.testing.assert_array_equal(painted, classes)
    np.testing.assert_array_equal(shapely.area(found.geometry), found.pixels)
    with rasterio.open(files[1]) as dataset:
        sure = dataset.read(1)
    for number in range(3):
        own = found.classes == number
        mean = (found.confidence * found.pixels)[own].sum() / found.pixels[own].sum()
        assert mean == pytest.approx(sure[classes == number].mean(), rel=1e-5)
    single = np.flatnonzero(found.pixels == 1)[0]
    column, row = (int(v) for v in found.geometry[single].bounds[:2])
    assert found.confidence[single] == pytest.approx(sure[row, column])


def test_a_minimum_beyond_the_map():
    """All joins the largest area; a map of a single pixel stays as it is."""
    found = trace(blobs(), outlines=Outlines(10**8, 0))
    assert found.pixels.sum() == (blobs() != 255).sum()
    assert trace(np.zeros((1, 1), np.uint8), outlines=Outlines(10, 1)).pixels.tolist() == [1]
    assert trace(blobs()[:3, 30:33]).pixels.sum() == 9


@pytest.mark.parametrize("simplify", [0, 1, 3])
def test_neighbours_share_their_edges(simplify):
    """Where three classes meet, too: the polygons are a coverage, and none of its area is lost or doubled."""
    classes = np.kron(np.random.default_rng(3).integers(0, 5, (20, 20)), np.ones((5, 5), int)).astype(
        np.uint8
    )
    found = trace(classes, outlines=Outlines(1, simplify))
    assert shapely.coverage_is_valid(found.geometry)
    union = shapely.union_all(found.geometry)
    assert union.area == pytest.approx(shapely.area(found.geometry).sum())
    assert len(getattr(union, "interiors", ())) == 0
    if not simplify:
        assert union.area == classes.size


def test_small_areas_join_their_neighbours():
    classes = blobs()
    found = trace(classes, outlines=Outlines(min_pixels=10, simplify=0))
    assert found.pixels.min() >= 10
    assert found.pixels.sum() == (classes != 255).sum()


def test_simplified_polygons_leave_no_gap():
    """A diagonal edge of two classes becomes a line; areas stay, and the union is the whole image."""
    rows, columns = np.mgrid[:60, :60]
    classes = (rows > columns).astype(np.uint8)
    exact, found = (trace(classes, outlines=Outlines(1, simplify)) for simplify in (0, 1.5))
    count = [shapely.get_num_coordinates(each.geometry).sum() for each in (exact, found)]
    assert count[1] < count[0] / 5
    assert shapely.coverage_is_valid(found.geometry)
    assert shapely.union_all(found.geometry).area == pytest.approx(3600, rel=0.01)
    np.testing.assert_array_equal(found.pixels, exact.pixels)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_layers_are_read_back(files, tmp_path, suffix):
    path = tmp_path / f"polygons{suffix}"
    write_polygons(path, path, *files, NAMES, EVERY)
    about, _, geometry, fields = pyogrio.raw.read(path)
    values = dict(zip(about["fields"], fields, strict=True))
    areas = shapely.area(shapely.from_wkb(geometry))
    np.testing.assert_allclose(areas, values["pixels"] * abs(TRANSFORM.a * TRANSFORM.e), rtol=1e-6)
    assert {(i, name) for i, name in zip(values["class"], values["name"], strict=True)} == set(
        enumerate(NAMES)
    )
    assert rasterio.crs.CRS.from_user_input(about["crs"]) == rasterio.crs.CRS.from_epsg(32633)
    bounds = shapely.total_bounds(shapely.from_wkb(geometry))
    with rasterio.open(files[0]) as dataset:
        np.testing.assert_allclose(bounds, dataset.bounds)
    assert ((values["confidence"] > 0.3) & (values["confidence"] < 1)).all()


@pytest.mark.parametrize("crs", ["EPSG:32633", "+proj=laea +lat_0=45 +lon_0=15 +datum=WGS84"])
def test_geojson_has_longitude_and_latitude(tmp_path, crs):
    """As RFC 7946 wants it, whatever the CRS; against GDAL's own transformation of the corners."""
    made = write_scene(tmp_path / "map.tif", blobs()[..., None], nodata=255, crs=crs)
    path = tmp_path / "polygons.geojson"
    write_polygons(path, path, made, None, NAMES, EVERY)
    content = json.loads(path.read_text())
    assert "crs" not in content
    layer = tmp_path / "polygons.gpkg"
    write_polygons(layer, layer, made, None, NAMES, EVERY)
    with rasterio.open(made) as dataset:
        stored = dataset.crs
    wanted = [
        rasterio.warp.transform_geom(stored, "EPSG:4326", shapely.geometry.mapping(polygon))
        for polygon in shapely.from_wkb(pyogrio.raw.read(layer)[2])
    ]
    for one, other in zip(content["features"], wanted, strict=True):
        found, expected = (np.array(each["coordinates"][0]) for each in (one["geometry"], other))
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".geojson", ".fgb", ".gpkg", ".parquet"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_full_disk_is_noticed(tmp_path, files, suffix, share):
    """A limit on the size of files stands for a full disk: one line, or all polygons."""
    path, whole = tmp_path / f"part{suffix}", tmp_path / f"whole{suffix}"
    write_polygons(whole, whole, *files, NAMES, EVERY)
    script = f"""
import resource, signal
from pathlib import Path
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.polygons import Outlines, write_polygons
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({int(whole.stat().st_size * share)}, resource.RLIM_INFINITY))
path, made, sure = map(Path, {[str(path), *map(str, files)]!r})
try:
    write_polygons(path, path, made, sure, {NAMES!r}, Outlines(1, 0))
    print("written")
except UserError as error:
    print("refused", len(str(error).splitlines()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() in ("written", "refused 1"), done.stderr
    if done.stdout.strip() == "written":  # a GeoPackage may do without its index
        assert suffix == ".gpkg"
        assert len(pyogrio.raw.read(path)[2]) == len(pyogrio.raw.read(whole)[2])


def test_geoparquet(files, tmp_path):
    path, layer = tmp_path / "polygons.parquet", tmp_path / "polygons.gpkg"
    for file in (path, layer):
        write_polygons(file, file, files[0], None, NAMES, EVERY)
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"geo"])
    column = about["columns"][about["primary_column"]]
    assert (about["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    geometry = shapely.from_wkb(table["geometry"].to_numpy())
    wanted = shapely.from_wkb(pyogrio.raw.read(layer)[2])
    assert shapely.equals(geometry, wanted).all()
    np.testing.assert_allclose(column["bbox"], shapely.total_bounds(wanted))
    assert all(ring.is_ccw for ring in shapely.get_exterior_ring(geometry))
    assert table.column_names == ["class", "name", "pixels", "geometry"]


def test_a_map_without_data_has_no_polygon(tmp_path):
    made = write_scene(tmp_path / "map.tif", np.full((9, 9, 1), 255, np.uint8), nodata=255)
    for suffix in (".gpkg", ".parquet"):
        path = tmp_path / f"polygons{suffix}"
        write_polygons(path, path, made, None, NAMES)
        assert path.exists()
    assert len(pyogrio.raw.read(tmp_path / "polygons.gpkg")[2]) == 0


def test_a_folder_that_is_not_there(files, tmp_path):
    path = tmp_path / "none" / "polygons.gpkg"
    with pytest.raises(UserError, match=r"polygons\.gpkg: cannot be written"):
        write_polygons(path, path, *files, NAMES)
