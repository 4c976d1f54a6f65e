"""Training data on a server: the same records and pixels as from files, retries included."""

import pickle
import shutil

import numpy as np
import pytest

from data_pipelines.readers.address import Address, as_path
from data_pipelines.sources import open_source
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from tests.range_server import serving
from tests.rasters import write_raster

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")


@pytest.fixture
def folder(tmp_path):
    """Images and labels of two domains, named as configs/cloud_shadow.py names them."""
    rng = np.random.default_rng(0)
    for domain in ("landsat5", "landsat7"):
        pixels = rng.uniform(0.01, 0.6, (140, 150, 6)).astype(np.float32)
        write_raster(tmp_path / f"{domain}_image.tif", pixels, BANDS)
        write_raster(tmp_path / f"{domain}_label.tif", rng.integers(0, 4, (140, 150, 1)).astype(np.uint8))
    return tmp_path


def opened(root, **changes):
    config = load_config("configs/cloud_shadow.py", [f"--config.data.root={root}"])
    config = config.replaced({f"data.{key}": value for key, value in changes.items()})
    return open_source(config, ("landsat7", "landsat5"))


def test_a_shipped_configuration_reads_from_a_server(folder, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    local = opened(folder)
    with serving(folder) as address:
        remote = pickle.loads(pickle.dumps(opened(address)))
        assert [(r.domain, r.name, r.row, r.col) for r in remote.records] == [
            (r.domain, r.name, r.row, r.col) for r in local.records
        ]
        for one, other in zip(remote.records, local.records, strict=True):
            np.testing.assert_array_equal(remote.read_image(one), local.read_image(other))
            np.testing.assert_array_equal(remote.read_label(one), local.read_label(other))


def test_a_local_list_names_addresses(folder, tmp_path, monkeypatch):
    """Images of a folder a domain; their labels are local."""
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    for domain in ("landsat5", "landsat7"):
        (tmp_path / domain).mkdir()
        shutil.move(tmp_path / f"{domain}_image.tif", tmp_path / domain / "scene.tif")
    with serving(folder) as address:
        lines = [f"{address}/{domain}/scene.tif" for domain in ("landsat5", "landsat7")]
        (tmp_path / "images.txt").write_text("\n".join(lines))
        source = opened(tmp_path, image_glob="images.txt")
        assert {record.domain for record in source.records} == {"landsat5", "landsat7"}
        assert source.read_image(source.records[0]).any()


def test_what_cannot_be_read_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    with serving(folder) as address:
        with pytest.raises(UserError, match="addresses cannot be searched"):
            opened(address, image_glob="{domain}*.tif")
        with pytest.raises(UserError, match=r"landsat7_none\.tif") as error:
            opened(address, image_glob="{domain}_none.tif")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["https://host:8000/a/b.tif", "s3://bucket/a.tif", "/vsicurl/https://host/a.tif", "/vsizip/a.zip/b.tif"],
)
def test_an_address_stays_as_it_is(text):
    path = as_path(text)
    assert isinstance(path, Address)
    assert str(pickle.loads(pickle.dumps(path))) == str(path) == text
    assert str(path.parent / path.name) == text
    assert path.stem in ("a", "b")
    assert not isinstance(as_path("folder/a.tif"), Address)
