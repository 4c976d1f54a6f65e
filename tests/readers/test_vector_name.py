"""Vector files whose names pyogrio would take for addresses: they hold what they hold under a plain name."""

import shutil

import numpy as np
import pyogrio
import pytest
import shapely

from data_pipelines.readers.vector_file import read_attributes, read_extent, read_layers, read_polygons
from spectralmoe_jax.inference.polygons import Outlines, write_polygons
from tests.inference.test_geotiff import write_scene
from tests.rasters import PLACE

FIELD = shapely.box(500_000, 4_999_900, 500_080, 4_999_980)
FOLDERS = ["a!b", "two\nlines", "x;y", "what?", "tab\t", " file:c", "zip:d", "e.zip"]
STEMS = ["land", "a!b", "two\nlines", "x;y", "what?", " land", "zip:land"]
NAMES = [(folder, "land") for folder in FOLDERS] + [("plain", stem) for stem in STEMS]


@pytest.mark.parametrize("suffix", [".gpkg", ".shp"])
@pytest.mark.parametrize(("folder", "stem"), [*NAMES, ("a!b", "c!d")])
def test_odd_names_are_read(folder, stem, suffix, tmp_path, monkeypatch):
    plain = tmp_path / f"land{suffix}"
    wheat = np.array(["wheat"], object)
    shapes = np.array([shapely.to_wkb(FIELD)], object)
    pyogrio.raw.write(plain, shapes, [wheat], ["kind"], geometry_type="Polygon", crs="EPSG:32633")
    (tmp_path / folder).mkdir()
    for file in list(tmp_path.glob("land.*")):
        shutil.copy(file, tmp_path / folder / f"{stem}{file.suffix}")
    monkeypatch.chdir(tmp_path / folder)
    odd = type(plain)(f"{stem}{suffix}")
    for file in (odd, odd.absolute()):
        bounds = (500_000, 4_999_800, 500_200, 5_000_000)
        (shape,), values = read_polygons(file, "", "kind", PLACE["crs"], bounds)
        assert values == ["wheat"]
        assert shape.equals(FIELD)
        assert read_extent(file) == read_extent(plain)
        assert read_attributes(file) == {"kind": ["wheat"]}
        assert len(read_layers(file)) == 1


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_odd_names_are_written(folder, suffix, tmp_path):
    (tmp_path / folder).mkdir()
    classes = write_scene(tmp_path / "map.tif", np.zeros((8, 8, 1), np.uint8), nodata=255)
    path = tmp_path / folder / f"map{suffix}"
    write_polygons(path, path, classes, None, ["wheat"], Outlines(1, 0))
    assert [file.name for file in (tmp_path / folder).iterdir()] == [path.name]
    assert read_attributes(path)["name"] == ["wheat"]
