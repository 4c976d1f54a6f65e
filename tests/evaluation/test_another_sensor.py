"""A sensor that a run has never heard of, added by overrides alone: a transform of real Landsat-7 pixels."""

import json

import numpy as np
import pytest
import rasterio

from spectralmoe_jax.cli.main import main
from tests.rasters import PLACE, write_raster

RUN = [
    "--config.train.steps=2", "--config.train.warmup_steps=0", "--config.train.batch_size=2",
    "--config.train.evaluate_every=2", "--config.train.checkpoint_every=2", "--config.train.probe_tiles=16",
    "--config.data.workers=0",
]  # fmt: skip
LANDSAT = ("blue", "green", "red", "nir", "swir16", "swir22")
NAMES = ("B12", "B04", "B02", "B11", "B08", "B03")  # of Sentinel-2: swir22, red, blue, swir16, nir, green
ORDER = [5, 2, 0, 4, 3, 1]  # of the bands in Landsat's file


@pytest.mark.slow
def test_scores_equal_those_of_the_original(tmp_path, shared_data):
    """Other names and order of bands, integers x 10000 + 1000, pixels of 10 metres."""
    # 1. a quarter of the two real scenes, and the look-alike of the second
    weights = shared_data.parent / "weights" / "galileo_nano"
    if not weights.is_dir():
        pytest.skip("needs the weights in ../shared/weights, which this machine does not have")
    images = tmp_path / "images"
    for sensor in ("landsat5", "landsat7"):
        for kind, names in (("image", LANDSAT), ("label", ("class",))):
            with rasterio.open(shared_data / "cloudshadow" / f"{sensor}_{kind}.tif") as scene:
                pixels = np.moveaxis(scene.read(), 0, -1)[256:, :256]
            write_raster(images / f"{sensor}_{kind}.tif", pixels, descriptions=names)
            if (sensor, kind) == ("landsat7", "image"):
                stored = np.clip(np.rint(pixels[..., ORDER] * 10000 + 1000), 1, 65535).astype(np.uint16)
                write_raster(images / "fourth_image.tif", stored, descriptions=NAMES, **PLACE)
            elif sensor == "landsat7":
                write_raster(images / "fourth_label.tif", pixels, **PLACE)

    # 2. a run on Landsat 5, scored on Landsat 7
    workdir = tmp_path / "run"
    given = [f"--config.data.root={images}", f"--config.model.visual.weights={weights}"]
    assert main(["train", "--config", "configs/cloud_shadow.py:galileo", "--workdir", str(workdir), *given,
                 *RUN]) == 0  # fmt: skip
    scores = [tmp_path / "landsat7.json", tmp_path / "fourth.json"]
    command = ["evaluate", "--workdir", str(workdir), "--output"]
    assert main([*command, str(scores[0])]) == 0

    # 3. the fourth sensor
    overrides = [
        "--config.data.target=fourth", "--config.data.sensors=landsat5=landsat5,fourth=sentinel2",
        "--config.model.visual.stored_as=x10000+1000",
    ]  # fmt: skip
    assert main([*command, str(scores[1]), *overrides]) == 0
    wanted, found = (json.loads(path.read_text()) for path in scores)
    assert list(found["domains"]) == ["fourth"]
    assert wanted["miou"] > 0.4
    assert found["miou"] == pytest.approx(wanted["miou"], abs=0.01)
