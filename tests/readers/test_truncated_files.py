"""Truncated images are named before their pixels are read; complete ones are accepted."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from data_pipelines.readers.raster_header import find_truncation, require_complete
from data_pipelines.sources import open_source
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from tests.rasters import write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (130, 150, 3), np.uint8)


def jpeg(path, **options):
    """With a thumbnail in its header, a whole JPEG that ends before the image begins."""
    Image.fromarray(PIXELS[:20, :20]).save(path.with_suffix(".thumbnail"), "JPEG")
    exif = Image.Exif()
    exif[0x9286] = path.with_suffix(".thumbnail").read_bytes()  # UserComment
    Image.fromarray(PIXELS).save(path, "JPEG", exif=exif, **options)


def png(path):
    Image.fromarray(PIXELS).save(path, "PNG")


def tiff(**profile):
    return lambda path: write_raster(path, PIXELS, **profile)


FORMATS = {
    "jpeg": (jpeg, 1),
    "progressive jpeg": (lambda path: jpeg(path, progressive=True), 1),
    "png": (png, 1),
    "tiff in strips": (tiff(), 1),
    "tiff in tiles": (tiff(tiled=True, blockxsize=64, blockysize=64, compress="deflate"), 1),
    "tiff by band": (tiff(interleave="band", compress="lzw"), 1),
    "big tiff": (tiff(bigtiff="yes"), 1),
    # the last tile is followed by four bytes that repeat its end
    "cog": (tiff(driver="COG", blocksize=128, overviews="none"), 5),
}


@pytest.fixture(params=FORMATS)
def image(request, tmp_path):
    path = tmp_path / "image"
    write, least = FORMATS[request.param]
    write(path)
    return path, least


def test_a_complete_file_is_accepted(image):
    path, _ = image
    require_complete([path])
    path.write_bytes(path.read_bytes() + b"what a camera adds" * 5000)
    require_complete([path])


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 1.0])
def test_a_truncated_file_is_named(image, share):
    path, least = image
    content = path.read_bytes()
    path.write_bytes(content[: min(int(share * len(content)), len(content) - least)])
    with pytest.raises(UserError, match=r"image: truncated or not a readable image .*: restore the file"):
        require_complete([path])


def test_a_header_without_data_is_truncated(tmp_path):
    jpeg(tmp_path / "image")
    content = (tmp_path / "image").read_bytes()
    for length in (4, 20, content.index(b"\xff\xda")):
        (tmp_path / "image").write_bytes(content[:length])
        assert find_truncation(tmp_path / "image")


def test_sparse_blocks_are_not_truncation(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=64, width=64, count=1, dtype="uint8",
                       tiled=True, blockxsize=16, blockysize=16, sparse_ok=True) as sink:  # fmt: skip
        sink.write(np.ones((1, 16, 16), np.uint8), window=((0, 16), (0, 16)))
    require_complete([tmp_path / "a.tif"])


def test_real_images_are_complete(shared_data):
    paths = [p for p in shared_data.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".tif")]
    paths = [p for p in paths if "odd" not in p.parts]  # that folder holds files that are broken on purpose
    assert len(paths) > 70
    require_complete(paths)


def test_truncation_is_found_at_opening_unless_files_are_skipped(tmp_path):
    for name in ("a", "b"):
        for folder, image in (("images", PIXELS), ("masks", np.full((130, 150, 3), (60, 16, 152), np.uint8))):
            (tmp_path / "tile_1" / folder).mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if folder == "images" else "png"
            Image.fromarray(image).save(tmp_path / "tile_1" / folder / f"{name}.{suffix}")
    config = load_config("configs/dubai.py", [f"--config.data.root={tmp_path}"])
    assert len(open_source(config, ("tile_1",)).records) == 2
    path = tmp_path / "tile_1/images/b.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"tile_1/images/b\.jpg: truncated"):
        open_source(config, ("tile_1",))
    skipping = config.replaced({"data.corrupt": "skip"})
    assert len(open_source(skipping, ("tile_1",)).records) == 2
