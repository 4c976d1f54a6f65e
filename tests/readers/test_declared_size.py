"""A header that declares more pixels than the file can hold is refused before anything is allocated."""

import struct
import zlib

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.raster_file import open_as_stored, read_pixels
from data_pipelines.readers.unreadable import UnreadableFile
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from tests.inference.test_geotiff import map_scene


def tiff(width, height, block, blocks):
    """A TIFF of 8 bits in tiles, of 100 KB, whose tables have `blocks` entries."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, block), (323, 4, 1, block), (324, 4, blocks, 8), (325, 4, blocks, 8),
    ]  # fmt: skip
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + fields + bytes(100_000)


def png(width, height):
    """A PNG whose header declares a size, with a row of data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(3 * 100 + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tif", tiff(1_000_000, 1_000_000, 256, 3907**2)),
        ("a.tif", tiff(1_000_000, 1_000_000, 1_000_000, 1)),
        ("a.tif", tiff(2_000_000_000, 2_000_000_000, 1 << 20, 1908**2)),
        ("a.tif", tiff(80, 65_536, 1 << 15, 2)),
        ("a.png", png(60_000, 60_000)),
    ],
)
def test_more_pixels_than_the_file_holds(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as error:
        read_pixels(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / "maps").mkdir()
    with pytest.raises(UserError):
        map_scene(path, tmp_path / "maps/map.tif")
    assert not any((tmp_path / "maps").iterdir())


def test_sparse_files_are_read(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": 50_000, "height": 50_000, "count": 1, "dtype": "uint8"}
    profile["tiled"] = True
    with rasterio.open(path, "w", **profile, blockxsize=512, blockysize=512, sparse_ok=True) as file:
        file.write(np.full((1, 512, 512), 7, np.uint8), window=((0, 512), (0, 512)))
    assert path.stat().st_size < 1_000_000
    with open_as_stored(path) as opened:
        assert opened.shape == (50_000, 50_000)
    assert read_pixels(path, Window(0, 500, 1, 24))[0].ravel().tolist() == [7] * 12 + [0] * 12


def test_a_row_of_windows_that_does_not_fit(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": 900_000_000, "height": 1024, "count": 3, "dtype": "uint8"}
    profile |= {"tiled": True, "bigtiff": "YES"}
    with rasterio.open(path, "w", **profile, blockxsize=1 << 16, blockysize=1024, sparse_ok=True):
        pass
    with pytest.raises(UserError, match="a row of windows takes"):
        map_scene(path, tmp_path / "map.tif")
    assert list(tmp_path.iterdir()) == [path]
