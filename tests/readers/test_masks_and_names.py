"""Masks that lie elsewhere or lost values, and names as lists, archives and file systems write them."""

import unicodedata

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine, from_origin

from data_pipelines.readers.file_search import find_images, mask_path
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.readers.virtual_raster import files_read_by
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.geotiff import _check_sources

PLACE = from_origin(500000, 5100000, 10, 10)
IDS = np.random.default_rng(0).integers(0, 3, (16, 16)).astype(np.uint8)


def write(path, array, transform=PLACE, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    count, (height, width) = len(array), array.shape[1:]
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype,
        transform=transform, **more,
    ) as sink:  # fmt: skip
        sink.write(array)


def opened(root, mask, code):
    write(root / "a/s.tif", np.stack([IDS + 1] * 3), crs="EPSG:32633")
    return GeoTiffTiles(
        root, bands=("red", "green", "blue"), labels=RasterLabels(code), classes=3, image_glob="a/s.tif",
        mask_template=mask,
    )  # fmt: skip


@pytest.mark.parametrize(
    "transform", [from_origin(600000, 5100000, 10, 10), Affine(10, 0, 500000, 0, 10, 5099840)]
)
def test_a_mask_without_coordinate_system_that_lies_elsewhere_is_refused(tmp_path, transform):
    write(tmp_path / "m/s.tif", IDS[None], transform)
    with pytest.raises(UserError, match="lies elsewhere than its image"):
        opened(tmp_path, "m/{stem}.tif", ValueCode((0, 1, 2)))


@pytest.mark.parametrize("transform", [PLACE, Affine(1, 0, 0, 0, -1, 0), Affine(1, 0, 0, 0, -1, 16)])
def test_a_mask_without_coordinate_system_may_have_pixel_numbers(tmp_path, transform):
    write(tmp_path / "m/s.tif", IDS[None], transform)
    source = opened(tmp_path, "m/{stem}.tif", ValueCode((0, 1, 2)))
    np.testing.assert_array_equal(source.read_label(source.records[0]), IDS)


def test_lossy_masks_are_said(tmp_path, caplog):
    (tmp_path / "m").mkdir()
    Image.fromarray(IDS * 100).save(tmp_path / "m/s.jpg", quality=60)
    with pytest.raises(UserError, match="compression is lossy"):
        opened(tmp_path, "m/{stem}.jpg", ValueCode((0, 100, 200)))
    assert "compression is lossy" in caplog.text


def test_a_table_of_greys_in_a_mask_of_numbers_is_none(tmp_path):
    (tmp_path / "m").mkdir()
    Image.fromarray(IDS).save(tmp_path / "m/s.bmp")
    source = opened(tmp_path, "m/{stem}.bmp", ColourCode(((0, 0, 255), (0, 255, 0), (255, 0, 0))))
    np.testing.assert_array_equal(source.read_label(source.records[0]), IDS)


@pytest.mark.parametrize(
    "text", ["# train\na/s.tif\n", '"a/s.tif"\n', "'a/s.tif'\n", "./a/s.tif\n", "~/a/s.tif"]
)
def test_lines_of_lists(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/s.tif").touch()
    (tmp_path / "L.TXT").write_text(text)
    assert find_images(tmp_path, "L.TXT", ("a",)) == [("a", tmp_path / "a/s.tif")]


def test_a_missing_line_names_its_list(tmp_path):
    (tmp_path / "list.txt").write_text("a/s.tif\n")
    with pytest.raises(UserError, match=r"'a/s\.tif' \(a line of list\.txt\)"):
        find_images(tmp_path, "list.txt", None)


def test_what_programs_keep_beside_images_is_left_out(tmp_path):
    names = (
        "s.tif", "s.tif.aux.xml", "s.tif.ovr", "s.tif.msk", "s.tfw", "Thumbs.db", "desktop.ini", ".DS_Store",
        ".ipynb_checkpoints/s.tif", "__MACOSX/s.tif",
    )  # fmt: skip
    for name in names:
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    for pattern in ("{domain}/*", "{domain}/*.tif*", "a/**/*", f"{tmp_path}/a/*"):
        assert find_images(tmp_path, pattern, ("a",)) == [("a", tmp_path / "a/s.tif")], pattern
    (tmp_path / "a/gone.tif").symlink_to(tmp_path / "nowhere.tif")  # is not left out without a word
    assert len(find_images(tmp_path, "{domain}/*.tif", ("a",))) == 2


def test_names_in_either_form_of_unicode(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    image, mask = tmp_path / apart / "é.tif", tmp_path / "m" / f"{composed}.Tif"
    for path in (image, mask):
        path.parent.mkdir()
        path.touch()
    assert find_images(tmp_path, "{domain}/*.tif", (composed,)) == [(composed, image)]
    assert mask_path(tmp_path, "m/{domain}.tif", apart, image) == mask


def test_no_output_replaces_what_a_virtual_raster_reads(tmp_path):
    source = "<VRTDataset><VRTRasterBand><SimpleSource><SourceFilename relativeToVRT='1'>{}</SourceFilename>"
    end = "</SimpleSource></VRTRasterBand></VRTDataset>"
    (tmp_path / "v.vrt").write_text(source.format("w.vrt") + end)
    (tmp_path / "w.vrt").write_text(source.format("s.tif") + end)
    (tmp_path / "s.tif").touch()
    assert list(files_read_by(tmp_path / "v.vrt")) == [tmp_path / "w.vrt", tmp_path / "s.tif"]
    with pytest.raises(UserError, match="would replace a file that"):
        _check_sources(str(tmp_path / "v.vrt"), (), {"map": tmp_path / "s.tif"})
    _check_sources(str(tmp_path / "v.vrt"), (), {"map": tmp_path / "t.tif"})
