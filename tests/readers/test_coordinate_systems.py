"""Coordinate systems: one in several words is one, systems that differ are two, and names are short."""

import itertools

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from data_pipelines.readers.coordinate_systems import crs_name, same_crs
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels, VectorLabels
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_polygons, write_raster

WORDS = ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2015", "WKT2_2019")
SAME = [
    ("EPSG:25833", "+proj=utm +zone=33 +ellps=GRS80 +towgs84=0,0,0,0,0,0,0 +units=m +no_defs"),
    ("EPSG:25833", "EPSG:25833+7837"),
    ("EPSG:4326", "EPSG:4979"),
    ("EPSG:4326", "OGC:CRS84"),
    ("EPSG:3857", "ESRI:102100"),
    (
        "EPSG:31467",
        "+proj=tmerc +lat_0=0 +lon_0=9 +k=1 +x_0=3500000 +y_0=0 +ellps=bessel "
        "+towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7 +units=m +no_defs",
    ),
]
OTHER = [
    ("EPSG:25833", "EPSG:32633"), ("EPSG:32633", "EPSG:32632"), ("EPSG:32633", "EPSG:32733"),
    ("EPSG:4326", "EPSG:4258"), ("EPSG:26917", "EPSG:26717"), ("EPSG:2263", "EPSG:32118"),
    ("EPSG:27700", "EPSG:32630"), ("EPSG:4326", "EPSG:3857"), ("EPSG:3857", "EPSG:3395"),
]  # fmt: skip


def local(name):
    return CRS.from_wkt(f'LOCAL_CS["{name}",UNIT["metre",1]]')


@pytest.mark.parametrize(
    "code", [25833, 32633, 31467, 3857, 3035, 27700, 2263, 3413, 4258, 28992, 2056, 31468]
)
def test_one_system_in_all_words(code):
    crs = CRS.from_epsg(code)
    forms = [crs, *(CRS.from_wkt(crs.to_wkt(version=words)) for words in WORDS)]
    forms += [CRS.from_string(crs.to_proj4()), CRS.from_user_input(crs.to_dict(projjson=True))]
    assert all(same_crs(one, other) for one, other in itertools.combinations(forms, 2))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_other_words_for_the_same(one, other):
    one, other = CRS.from_user_input(one), CRS.from_user_input(other)
    assert same_crs(one, other)
    assert same_crs(other, one)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_systems_that_differ(one, other):
    one, other = CRS.from_user_input(one), CRS.from_user_input(other)
    around = transform_bounds("EPSG:4326", one, 14, 48, 14.1, 48.1)
    assert not same_crs(one, other)
    assert not same_crs(one, other, around)


def test_local_systems():
    """By name, unless a name says nothing."""
    assert same_crs(local("site grid"), local("Site_grid"))
    assert not same_crs(local("site grid"), local("another grid"))
    assert same_crs(local("unnamed"), CRS.from_epsg(32633))
    assert not same_crs(local("site grid"), CRS.from_epsg(32633))
    assert same_crs(None, None)
    assert not same_crs(None, CRS.from_epsg(32633))


def test_names_are_short():
    assert crs_name(CRS.from_epsg(25833)) == "EPSG:25833"
    assert crs_name(None) == "no coordinate reference system"
    assert crs_name(CRS.from_string("EPSG:25833+7837")) == "ETRS89 / UTM zone 33N + DHHN2016 height"
    own = "+proj=laea +lat_0=1 +lon_0=2 +ellps=bessel"
    for crs in (CRS.from_string(own), local("a" * 500)):
        assert 0 < len(crs_name(crs)) <= 60
        assert "[" not in crs_name(crs)


def scene(root, mask_crs, crs="EPSG:25833"):
    place = {"crs": crs, "transform": PLACE["transform"]}
    write_raster(root / "a/images/x.tif", np.ones((8, 8, 1), np.uint8), **place)
    write_raster(root / "a/masks/x.tif", np.ones((8, 8), np.uint8), **{**place, "crs": mask_crs})
    return GeoTiffTiles(root, bands=("z",), classes=1, labels=RasterLabels(ValueCode((1,))))


@pytest.mark.parametrize(("one", "other"), SAME[:2])
def test_masks_in_the_same_system_in_other_words(one, other, tmp_path):
    assert scene(tmp_path, other, one).label_grid.counts.sum() == 64


def test_masks_in_another_system_by_their_names(tmp_path):
    own = CRS.from_string("+proj=laea +lat_0=1 +lon_0=2 +ellps=bessel")
    with pytest.raises(UserError, match=r"lies in EPSG:32632, its image .* in EPSG:25833") as error:
        scene(tmp_path, "EPSG:32632")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="lies in unknown, its image"):
        scene(tmp_path, own)


def test_polygons_that_lie_elsewhere_name_both_systems(tmp_path, caplog):
    """Refused if no image has a label, else a warning."""
    write_raster(tmp_path / "a/images/x.tif", np.ones((8, 8, 1), np.uint8), **PLACE)
    ring = [(10, 45), (11, 45), (11, 46)]
    write_polygons(tmp_path / "labels.geojson", [(1, ring)], "kind", 4326)
    labels = VectorLabels(ValueCode((1,)), "kind")
    settings = {"bands": ("z",), "classes": 1, "mask_template": "labels.geojson", "labels": labels}
    with pytest.raises(UserError, match=r"lie elsewhere \(EPSG:4326, x 10 to 11, y 45 to 46\)") as error:
        GeoTiffTiles(tmp_path, **settings)
    assert "EPSG:32633, x 500000 to 500080, y 4999920 to 5000000" in str(error.value)
    there = {"crs": "EPSG:4326", "transform": from_origin(10.8, 45.5, 0.01, 0.01)}
    write_raster(tmp_path / "b/images/y.tif", np.ones((8, 8, 1), np.uint8), **there)
    with caplog.at_level("WARNING"):
        GeoTiffTiles(tmp_path, **settings)
    assert "an image has no label: the polygons of" in caplog.text
