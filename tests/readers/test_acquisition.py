"""Month and ground resolution that files state, and their way into an encoder that takes them."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from data_pipelines.readers.raster_header import read_header
from data_pipelines.sources import resolve_run_wavelengths, resolve_stream_wavelengths
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.models.build import segmenter_config


def write(path, *, crs="EPSG:32633", side=20.0, tags=None, imagery=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 6, "dtype": "float32"}
    where = {} if crs is None else {"crs": crs, "transform": from_origin(0, 0, side, side)}
    with rasterio.open(path, "w", **profile, **where) as file:
        file.write(np.full((6, 8, 8), 0.2, np.float32))
        file.descriptions = ("blue", "green", "red", "nir", "swir16", "swir22")
        file.update_tags(**(tags or {}))
        file.update_tags(ns="IMAGERY", **(imagery or {}))
    return path


@pytest.mark.parametrize(
    ("tags", "imagery", "month"),
    [
        ({"start_time": "2022-07-24T10:45:26"}, {}, 7),
        ({"ACQUISITION_DATE": "20191102"}, {}, 11),
        ({}, {"ACQUISITIONDATETIME": "2020-02-01 10:00:00"}, 2),
        ({"DATE_ACQUIRED": "unknown"}, {}, None),
        ({"TIFFTAG_DATETIME": "2024:05:01 00:00:00"}, {}, None),  # when the file was written
    ],
)
def test_month_of_the_acquisition(tmp_path, tags, imagery, month):
    assert read_header(write(tmp_path / "a.tif", tags=tags, imagery=imagery)).month == month


@pytest.mark.parametrize(
    ("crs", "side", "metres"),
    [("EPSG:32633", 20.0, 20.0), ("EPSG:2263", 100.0, 30.48), ("EPSG:4326", 0.01, None), (None, 1.0, None)],
)
def test_metres_of_a_pixel(tmp_path, crs, side, metres):
    found = read_header(write(tmp_path / "a.tif", crs=crs, side=side)).resolution
    assert found == (None if metres is None else pytest.approx(metres, rel=1e-4))


def test_each_stream_has_its_own(tmp_path):
    """A stream on other files is not given what those of the main stream state."""
    write(tmp_path / "a" / "1.tif", side=20.0, tags={"start_time": "2022-09-24"})
    write(tmp_path / "c" / "1.tif", side=60.0)
    config = galileo(tmp_path, "--config.model.visual.resolution=0").replaced({
        "streams": {"other": {"sensor": "landsat7", "data": {"source": ("c",)}}}
    })  # fmt: skip
    run = resolve_run_wavelengths(config)
    found = [segmenter_config(stream).visual for stream in run.every_stream.values()]
    assert [(visual.month, visual.resolution) for visual in found] == [(9, 20.0), (6, 60.0)]
    # a run that is stored has the same without its files
    again = config.with_statements_of_run(run)
    assert segmenter_config(again).visual == found[0]


def galileo(root, *overrides):
    options = [f"--config.data.root={root}", "--config.data.image_glob={domain}/*.tif"]
    config = load_config("configs/cloud_shadow.py:galileo", [*options, *overrides])
    return config.replaced({"data.source": ("a",), "data.target": ("b",)})


def test_files_fill_what_is_not_given(tmp_path):
    for name, month in (("1", 3), ("2", 9), ("3", 9)):
        write(tmp_path / "a" / f"{name}.tif", tags={"start_time": f"2022-0{month}-24"})
    config = galileo(tmp_path, "--config.model.visual.resolution=0")
    visual = segmenter_config(resolve_stream_wavelengths(config, ("a",))).visual
    assert (visual.month, visual.resolution) == (9, 20.0)
    given = galileo(tmp_path, "--config.model.visual.resolution=0", "--config.model.visual.month=5")
    visual = segmenter_config(resolve_stream_wavelengths(given, ("a",))).visual
    assert (visual.month, visual.resolution) == (5, 20.0)


def test_without_a_statement_sensor_and_june_hold(tmp_path):
    write(tmp_path / "a" / "1.tif", crs=None)
    config = galileo(tmp_path, "--config.model.visual.resolution=0")
    visual = segmenter_config(resolve_stream_wavelengths(config, ("a",))).visual
    assert (visual.month, visual.resolution) == (6, 30.0)
