"""Images stored turned or mirrored are read upright: pixels, masks, windows and georeference."""

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image, ImageOps
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.image_files import ImageFolder
from data_pipelines.readers.raster_file import open_as_stored, open_image, read_mask, read_pixels
from data_pipelines.readers.raster_header import find_truncation, read_header
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import Scene, open_scene
from tests.rasters import write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = ("red", "green", "blue")
ORIENTATION = 274
SHAPE = (40, 56, 3)


def picture(seed=0):
    """Smooth, so that a JPEG of it is no noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8))
    return np.asarray(coarse.resize(SHAPE[1::-1], Image.Resampling.BICUBIC))


def save(path, pixels, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def upright(path, orientation):
    """The pixels that plain rasterio reads, turned by Pillow."""
    with rasterio.open(path) as dataset:
        image = Image.fromarray(np.moveaxis(dataset.read(), 0, -1).squeeze())
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_images_are_read_upright(suffix, orientation, tmp_path):
    path = save(tmp_path / f"x.{suffix}", picture(), orientation)
    expected = upright(path, orientation)
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]
    assert (header.height > header.width) == (orientation > 4)
    np.testing.assert_array_equal(read_pixels(path)[0], expected)
    part = Window(5, 9, 17, 21)
    np.testing.assert_array_equal(read_pixels(path, part, (2, 0))[0], expected[5:22, 9:30][..., [2, 0]])
    with open_scene(path) as dataset:
        scene = Scene(dataset, path, RGB, None, None)
        assert (scene.height, scene.width) == expected.shape[:2]
        np.testing.assert_array_equal(scene.read(8, 31)[0], expected[8:31])
    with open_as_stored(path) as dataset:  # as pictures of scenes are read
        half = (header.height // 2, header.width // 2)
        small = dataset.read((1, 2, 3), out_shape=half, resampling=Resampling.nearest)
        assert small.shape == (3, *half)


@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_masks_and_nodata_turn_with_the_pixels(orientation, tmp_path):
    transparent = np.dstack([picture(), np.where(picture()[..., 0] > 120, 255, 0).astype(np.uint8)])
    path = save(tmp_path / "x.png", transparent, orientation)
    expected = upright(path, orientation)
    pixels, missing = read_pixels(path, bands=(0, 1, 2), alpha=(3,))
    np.testing.assert_array_equal(missing, expected[..., 3] == 0)
    np.testing.assert_array_equal(pixels, np.where(missing[..., None], 0, expected[..., :3]))
    grey = save(tmp_path / "grey.tif", picture()[..., 0], orientation)
    with rasterio.open(grey, "r+") as file:
        file.write_mask(picture()[..., 1] > 100)
    assert read_header(grey).has_nodata
    turned = upright(
        write_raster(tmp_path / "mask.tif", (picture()[..., 1] > 100).astype(np.uint8)), orientation
    )
    np.testing.assert_array_equal(read_pixels(grey)[1], turned == 0)


@pytest.mark.parametrize(("image", "mask"), [(6, 6), (6, 1), (1, 8)])
def test_training_on_turned_images_and_masks(image, mask, tmp_path):
    """Each is read as it is meant: a mask drawn over the upright image fits it, whatever its own tag."""
    colours = ((255, 0, 0), (0, 0, 255))
    for number in range(2):
        path = save(tmp_path / f"a/images/{number}.jpg", picture(number), image)
        shape = upright(path, image).shape[:2]
        ids = np.random.default_rng(number).integers(0, 2, shape)
        drawn = np.array(colours, np.uint8)[ids]
        undone = {1: 1, 6: 8, 8: 6}[mask]  # the turn back
        stored = Image.fromarray(drawn)
        stored.getexif()[ORIENTATION] = undone
        save(tmp_path / f"a/masks/{number}.png", np.asarray(ImageOps.exif_transpose(stored)), mask)
    source = ImageFolder(tmp_path, palette=colours, bands=RGB)
    for number, record in enumerate(source.records):
        ids = np.random.default_rng(number).integers(0, 2, (record.height, record.width))
        np.testing.assert_array_equal(source.read_label(record), ids)
        np.testing.assert_array_equal(source.read_label(record, Window(3, 4, 10, 20)), ids[3:13, 4:24])
        expected = upright(record.image, image)
        np.testing.assert_array_equal(source.read_image(record), expected)
        assert read_mask(record.mask)[0].shape == expected.shape


def georeferenced(path, pixels, orientation):
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    place = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True),
        (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True),
        (34735, "H", 16, keys, True),
    ]
    tifffile.imwrite(path, pixels, extratags=[(ORIENTATION, "H", 1, orientation, True), *place])
    return path


@pytest.mark.parametrize("orientation", range(2, 9))
def test_pixels_stay_in_their_place_on_the_ground(orientation, tmp_path):
    pixels = np.arange(6 * 9, dtype=np.uint16).reshape(6, 9)
    path = georeferenced(tmp_path / "x.tif", pixels, orientation)
    found, _ = read_pixels(path)
    with open_image(path) as dataset, rasterio.open(path) as stored:
        assert dataset.crs == stored.crs
        assert not stored.transform.is_identity
        part = dataset.window_transform(RasterWindow(2, 1, 3, 3))
        for row, column in np.ndindex(dataset.shape):
            place = dataset.transform * (column + 0.5, row + 0.5)
            assert pixels[stored.index(*place)] == found[row, column, 0]
            np.testing.assert_allclose(part * (column - 1.5, row - 0.5), place)


def test_control_points_beside_the_tag_are_refused(tmp_path):
    path = save(tmp_path / "x.tif", picture(), 6)
    points = [rasterio.control.GroundControlPoint(row, col, col, row, 0) for row in (0, 9) for col in (0, 9)]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, "EPSG:4326"
    with pytest.raises(UserError, match=r"x\.tif: has an orientation tag beside control points"):
        read_pixels(path)
    with pytest.raises(UserError, match="orientation tag"), open_scene(path):
        pass


def test_a_truncated_turned_file_is_found(tmp_path):
    path = save(tmp_path / "x.tif", picture(), 6)
    assert find_truncation(path) == ""
    path.write_bytes(path.read_bytes()[:-10])
    assert find_truncation(path)
    tall = tmp_path / "tall.tif"
    tifffile.imwrite(
        tall, np.zeros((96, 32), np.uint8), tile=(16, 16), extratags=[(ORIENTATION, "H", 1, 6, True)]
    )
    assert read_header(tall).width == 96
    assert find_truncation(tall) == ""
    with open_image(tall) as dataset:
        end = int(dataset.get_tag_item("BLOCK_OFFSET_1_5", "TIFF", bidx=1)) + 256
    tall.write_bytes(tall.read_bytes()[: end - 1])
    assert find_truncation(tall) == "1 bytes short"


def test_tags_that_say_nothing(tmp_path):
    for orientation in (0, 1, 9, 500):
        path = save(tmp_path / f"{orientation}.png", picture(), orientation)
        assert read_header(path).height == SHAPE[0]
    endless = tmp_path / "fill.jpg"  # fill bytes in place of a segment, a million of them
    stored = save(tmp_path / "x.jpg", picture(), 6).read_bytes()
    endless.write_bytes(stored[:2] + b"\xff" * (1 << 20) + stored[2:])
    assert read_header(endless).height == SHAPE[0]
