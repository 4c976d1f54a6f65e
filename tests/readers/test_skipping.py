"""`data.corrupt=skip`: truncated files, from opening a configuration to its batches."""

from itertools import islice

import numpy as np
import pytest

from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.splits import open_splits, training_batches
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")


@pytest.fixture
def root(tmp_path):
    """Six images of 96 x 96 with a nodata value, and their labels."""
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.integers(1, 3000, (96, 96, 6)).astype(np.int16)
        options = {"tiled": True, "blockxsize": 32, "blockysize": 32, **PLACE}
        header_first = {"driver": "COG", "blocksize": 128, "overviews": "none", **PLACE}
        write_raster(tmp_path / f"landsat5/images/{number}.tif", image, BANDS, nodata=0, **header_first)
        mask = rng.integers(1, 4, (96, 96)).astype(np.uint8)
        write_raster(tmp_path / f"landsat5/masks/{number}.tif", mask, **options)
    return tmp_path


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def open_tiles(root, **changes):
    labels = RasterLabels(ValueCode((1, 2, 3), ignore=(0,)))
    settings = {"bands": BANDS, "labels": labels, "classes": 3, "corrupt": "skip"}
    return GeoTiffTiles(root, **{**settings, **changes})


def configuration(root, **values):
    config = load_config("configs/cloud_shadow.py", [
        f"--config.data.root={root}", "--config.data.image_glob={domain}/images/*.tif",
        "--config.data.mask_template={domain}/masks/{stem}.tif", "--config.data.tile=none",
        "--config.data.crop=32", "--config.data.holdout=0", "--config.train.batch_size=4",
    ])  # fmt: skip
    return config.replaced({f"data.{key}": value for key, value in {"corrupt": "skip", **values}.items()})


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_training_continues_without_truncated_files(root, caplog, temperature):
    """A header, a mask and the pixels of an image, which are found in the check, the scan, and when read."""
    cut(root / "landsat5/images/1.tif", 0.001)
    cut(root / "landsat5/masks/2.tif", 0.6)
    cut(root / "landsat5/images/3.tif", 0.5)
    config = configuration(root, class_temperature=temperature)
    splits = open_splits(config, only="train")
    assert [record.name[-1] for record in splits.train] == ["0", "3", "4", "5"]
    stream = training_batches(config, splits, 0)
    batches = list(islice(stream, 8))
    stream.close()
    assert all(batch["image"].shape == (4, 32, 32, 6) for batch in batches)
    assert all((batch["label"] < 3).any() for batch in batches)
    told = [record.getMessage() for record in caplog.records]
    for name in ("images/1.tif", "masks/2.tif", "images/3.tif"):
        (line,) = {line for line in told if f"landsat5/{name}: truncated or not a readable image" in line}
        assert line.startswith("skipped: ")
    assert f"{root}: 2 of 6 images are left out, as data.corrupt=skip" in told


def test_skipping_equals_removing_the_files(root, caplog):
    cut(root / "landsat5/images/1.tif", 0.001)
    cut(root / "landsat5/masks/2.tif", 0.6)
    some = open_tiles(root)
    for number in (1, 2):
        (root / f"landsat5/images/{number}.tif").unlink()
    other = open_tiles(root)
    assert some.records == other.records
    np.testing.assert_array_equal(some.class_pixels, other.class_pixels)
    np.testing.assert_array_equal(some.read_label(some.records[2]), other.read_label(other.records[2]))


def test_a_truncated_image_counts_as_unlabelled(root):
    cut(root / "landsat5/images/3.tif", 0.5)
    source = open_tiles(root)
    assert source.label_grid.pixels(source.records)[3].sum() == 96 * 96
    assert source.class_pixels[3].sum() == 0
    assert (source.class_pixels.sum(axis=1)[[0, 1, 2, 4, 5]] == 96 * 96).all()


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_nothing_left_is_an_error(root, kind):
    for path in (root / "landsat5" / kind).iterdir():
        cut(path, 0.001)
    with pytest.raises(UserError, match=r"none of the 6 images can be read .* data\.corrupt=skip"):
        open_tiles(root)


def test_by_default_a_truncated_file_stops(root):
    cut(root / "landsat5/masks/2.tif", 0.6)
    with pytest.raises(UserError, match=r"masks/2\.tif: truncated"):
        open_tiles(root, corrupt="stop")


def test_a_wrong_configuration_is_not_skipped(root):
    with pytest.raises(UserError, match="no band 'thermal'"):
        open_tiles(root, bands=(*BANDS[:5], "thermal"))
    with pytest.raises(UserError, match=r"data\.corrupt = 'ignore': must be one of stop, skip"):
        open_tiles(root, corrupt="ignore")


def test_an_error_is_not_attributed_to_the_next_file(root):
    """GDAL keeps its last error; a file that is whole must not be blamed for it."""
    cut(root / "landsat5/images/3.tif", 0.5)
    source = open_tiles(root, cache_bytes=0)
    for _ in range(3):
        with pytest.raises(UserError, match=r"images/3\.tif: truncated"):
            source.read_image(source.records[3])
        assert source.read_label(source.records[4]).shape == (96, 96)
