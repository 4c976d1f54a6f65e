"""Maps of scenes with pixels or masks out of the ordinary: upright, refused, or one raster of several."""

import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.catalogue import find_scenes
from spectralmoe_jax.inference.scene import files_of_others, open_scene
from tests.inference.test_geotiff import map_scene, random_pixels, read, write_scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize("orientation", [2, 5, 6, 8])
def test_the_map_of_a_turned_photo_is_upright(orientation, tmp_path):
    image = Image.fromarray(random_pixels(50, 90))
    image.getexif()[274] = orientation
    path = tmp_path / "photo.png"
    image.save(path, exif=image.getexif())
    done = map_scene(path, tmp_path / "map.tif", preview=tmp_path / "map.png")
    expected = np.asarray(ImageOps.exif_transpose(image)).argmax(-1)
    assert done["shape"] == expected.shape
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
    with files_of_others(), open_scene(path) as dataset:
        assert dataset.shape == expected.shape


def test_alpha_first_and_nodata_in_one_map(tmp_path):
    pixels = random_pixels(bands=4)
    pixels[..., 0] = 255
    pixels[10:30, 20:50, 0] = 0
    pixels[40:50, :15, 1:] = 7
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=7)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.alpha, ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    map_scene(path, tmp_path / "map.tif")
    lost = (pixels[..., 0] == 0) | (pixels[..., 1:] == 7).all(-1)
    classes = np.where(pixels == 7, 0, pixels)[..., 1:].argmax(-1)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), np.where(lost, 255, classes))


@pytest.fixture
def container(tmp_path):
    """A GeoPackage of two rasters."""
    path = tmp_path / "two.gpkg"
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 5.1e6, 10, 10)}
    for number, table in enumerate(("one", "two")):
        more = {"append_subdataset": "yes"} if number else {}
        with rasterio.open(path, "w", driver="GPKG", count=3, height=64, width=64, dtype="uint8",
                           raster_table=table, tile_format="PNG", **more, **place) as file:  # fmt: skip
            file.write(np.moveaxis(random_pixels(64, 64, seed=number), -1, 0))
    return path


def test_one_raster_of_a_container(container, tmp_path):
    with pytest.raises(UserError, match=r"two\.gpkg: holds 2 rasters.*GPKG:.*:one, GPKG:.*:two") as error:
        map_scene(container, tmp_path / "map.tif")
    assert "\n" not in str(error.value)
    name = f"GPKG:{container}:two"
    map_scene(name, tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), random_pixels(64, 64, seed=1).argmax(-1))
    assert [(scene, str(stem)) for scene, stem in find_scenes([name])] == [(name, "two_two")]
    with pytest.raises(UserError, match="no such file"):
        map_scene(f"GPKG:{tmp_path / 'other.gpkg'}:two", tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("complex", "are complex numbers"),
        ("P", "numbers of a colour table"),
        ("CMYK", "CMYK: cyan"),
        ("L", "gray"),
    ],
)
def test_refused_in_one_line(kind, said, tmp_path):
    scene = tmp_path / "scene.tif"
    if kind == "complex":
        write_scene(scene, random_pixels().astype(np.complex64))
    else:
        Image.fromarray(random_pixels()).convert(kind).save(scene)
    bands = ("red",) if kind == "P" else ("red", "green", "blue")
    with pytest.raises(UserError) as error:
        map_scene(scene, tmp_path / "map.tif", bands=bands)
    assert str(error.value).startswith(f"{scene}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_cmyk_jpeg_is_mapped_in_the_colours_that_gdal_gives(tmp_path):
    Image.fromarray(random_pixels()).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    with rasterio.open(tmp_path / "x.jpg") as dataset:
        expected = dataset.read().argmax(0)
    map_scene(tmp_path / "x.jpg", tmp_path / "map.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
