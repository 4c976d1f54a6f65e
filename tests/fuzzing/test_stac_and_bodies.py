"""STAC items and bodies of requests: the pixels that they name, or an error of one line."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.raster_file import open_as_stored
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.stac import without_stac
from spectralmoe_jax.serving.answers import answer_image
from spectralmoe_jax.serving.limits import Limits
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all
from tests.inference.test_geotiff import NAMES, PALETTE, SETTINGS, map_scene
from tests.inference.test_stac import by_common_name, write_item
from tests.serving.images import file_of, pixels_of

COUNTS = [(0, 60), pytest.param(1, 300, marks=pytest.mark.slow)]
ORDER = ("red", "green")


@pytest.mark.parametrize(("seed", "count"), COUNTS)
@pytest.mark.parametrize("kind", ["damaged", "reshaped"])
@pytest.mark.parametrize("form", ["item", "collection of items"])
def test_stac(form, kind, seed, count, tmp_path, record_property):
    path, _ = write_item(tmp_path, "one", by_common_name)
    document = json.loads(path.read_bytes())
    if form != "item":
        document = {"type": "FeatureCollection", "features": [document]}
    variants = (
        damaged(json.dumps(document).encode(), count, seed, headers=0.0)
        if kind == "damaged"
        else reshaped(document, count, seed)
    )

    def read(variant):
        path.write_bytes(variant)
        with without_stac([str(path)], ORDER, None) as scenes:
            if scenes.failed:
                raise UserError(": ".join(scenes.failed[0]))
            with open_as_stored(scenes.inputs[0]) as opened:
                return opened.read()

    def is_exact(variant, found):
        item = json.loads(variant)
        item = item["features"][0] if "features" in item else item
        expected = []
        for band in ORDER:
            for asset in item["assets"].values():
                if (asset.get("eo:bands") or [{}])[0].get("common_name") == band:
                    with rasterio.open(tmp_path / asset["href"]) as opened:
                        expected.append(opened.read(1))
        return np.array_equal(np.array(expected), found)

    try_all(variants, read, is_exact, record_property, f"STAC {form}, {kind}")


@pytest.mark.parametrize(("seed", "count"), COUNTS)
@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_bodies(driver, seed, count, tmp_path, record_property):
    good = file_of(tmp_path, pixels_of(40, 50), driver)
    model = SimpleNamespace(
        map=map_scene, classes=NAMES, config=SimpleNamespace(evaluate=SETTINGS, palette=PALETTE)
    )
    image = tmp_path / "image"

    def read(variant):
        image.write_bytes(variant)
        answer = answer_image(model, image, "tif", Limits())
        with rasterio.MemoryFile(answer) as file, file.open() as made:
            return made.read(1)

    def is_exact(variant, found):
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False), rasterio.open(image) as opened:
            expected = np.where(opened.dataset_mask() > 0, opened.read()[:3].argmax(0), 255)
        return np.array_equal(expected, found)

    try_all(damaged(good, count, seed), read, is_exact, record_property, f"body of a request, {driver}")
