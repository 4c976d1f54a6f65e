"""What commands that end early leave beside their files, and what belonged to a former file of a name."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.part_files import hidden_part
from tests.inference.test_geotiff import CONFIDENCE, map_scene, random_pixels, write_scene

MAPPING = """
import sys, time
from pathlib import Path
from spectralmoe_jax.inference.products import make_products
from tests.inference.test_geotiff import NAMES, map_scene

def slow(tiles):
    time.sleep(0.2)
    return tiles[..., :3].astype("float32") + 1

scene, output, preview = sys.argv[1:]
map_scene(scene, Path(output), slow, products=make_products(("confidence",), NAMES), preview=Path(preview))
"""
WRITING = """
import sys, time
from pathlib import Path
from spectralmoe_jax.files import atomic_write

with atomic_write(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    time.sleep(60)
"""


def start(code, folder, *arguments):
    """Runs a program and returns once it has written something to a folder."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    deadline = time.monotonic() + 60
    while not any(folder.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "maps"
    path.mkdir()
    return path


def test_sigterm_to_a_mapping_leaves_nothing(tmp_path, folder):
    scene = write_scene(tmp_path / "scene.tif", random_pixels(200, 200))
    (tmp_path / "pictures").mkdir()
    process = start(MAPPING, folder, scene, folder / "map.tif", tmp_path / "pictures" / "map.png")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM  # ended by the signal, as a shell expects
    assert not any(folder.iterdir())
    assert not any((tmp_path / "pictures").iterdir())


def test_parts_of_a_killed_process_go_with_the_next_one(tmp_path, folder):
    process = start(WRITING, folder, folder / "a.txt")
    with atomic_write(folder / "b.txt") as aside:
        aside.write_text("b")
    (former,) = [path for path in folder.iterdir() if path.name != "b.txt"]
    assert former.name.startswith(".a.part-")  # its process lives
    process.kill()
    process.wait(60)
    scene = write_scene(tmp_path / "scene.tif", random_pixels(40, 40))
    command = [sys.executable, "-c", MAPPING, scene, folder / "map.tif", tmp_path / "map.png"]
    subprocess.run(command, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "map.tif", "map_confidence.tif"]


def test_parts_of_other_hosts_stay_until_they_are_old(folder):
    names = (
        ".a.part-00000000-1-0.tif",
        ".b.part-00000000-1-0",
        ".c.part-00000000-1-0.txt",
        ".part-1",
        "x.part-1",
    )
    for name in names:
        (folder / name).write_text("")
    os.utime(folder / names[0], (0, 0))
    (folder / names[1]).unlink()
    (folder / names[1]).mkdir()
    (folder / names[1] / "map.tif").write_text("")
    os.utime(folder / names[1], (0, 0))
    with hidden_part(folder / "new.tif"):
        pass
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[2:])


def test_a_part_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    """A read-only file system refuses to remove even what is not there."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as error, atomic_write(tmp_path / "map.tif") as part:
        refuse(part)
    assert error.value.filename == str(tmp_path / "map.tif")


@pytest.mark.parametrize("suffix", [".aux.xml", ".ovr", ".msk", ".msk.ovr", ".aux"])
def test_a_map_over_an_old_one_has_nothing_of_it(tmp_path, folder, suffix):
    scene = write_scene(tmp_path / "scene.tif", random_pixels(64, 64), crs=None, transform=None)
    files = [folder / name for name in ("map.tif", "map_confidence.tif", "map.png")]
    for path in files:
        path.write_text("former")
        path.with_name(path.name + suffix).write_text("former")
    for name in ("map.tfw", "map.pgw", "map.gpkg-wal", "map.gpkg-shm", "map.gpkg-journal"):
        (folder / name).write_text("1\n0\n0\n-1\n7\n7\n")
    (folder / "map.aux").write_bytes(b"EHFA_HEADER_TAG")
    (folder / "other.tif.ovr").write_text("of another map")
    map_scene(scene, folder / "map.tif", products=CONFIDENCE, preview=files[2])
    names = {path.name for path in folder.iterdir()} - {"map.gpkg-journal", "map.gpkg-shm", "map.gpkg-wal"}
    assert names == {"map.png", "map.tif", "map_confidence.tif", "other.tif.ovr"}
    map_scene(scene, folder / "map.tif", vector=folder / "map.gpkg")
    assert not list(folder.glob("map.gpkg-*"))
    with rasterio.open(folder / "map.tif") as made:
        assert made.transform.is_identity
        np.testing.assert_array_equal(made.read(1), random_pixels(64, 64).argmax(-1))


def test_a_map_without_data_takes_no_room(tmp_path, folder):
    pixels = np.zeros((2048, 2048, 3), np.uint8)
    pixels[:40, :40] = random_pixels(40, 40)
    scene = write_scene(
        tmp_path / "scene.tif", pixels, nodata=0, tiled=True, compress="deflate", sparse_ok=True
    )
    map_scene(scene, folder / "map.tif", products=CONFIDENCE)
    with rasterio.open(folder / "map_confidence.tif") as made:
        stored = [
            made.get_tag_item(f"BLOCK_SIZE_{i}_{j}", "TIFF", bidx=1) for i in range(4) for j in range(4)
        ]
        assert [size is None for size in stored] == [False] + 15 * [True]
        assert np.isnan(made.read(1)[64:]).all()


def test_temporary_folders_of_a_killed_process_go_with_the_next_one(tmp_path):
    code = """
import os, signal
from spectralmoe_jax.part_files import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_text("x")
    os.kill(os.getpid(), signal.{})
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    for name, left in (("SIGTERM", 0), ("SIGKILL", 1), ("SIGTERM", 0)):
        command = [sys.executable, "-c", code.format(name)]
        subprocess.run(command, env=environment, check=False, timeout=60)
        assert len(list(tmp_path.iterdir())) == left


def test_errors_of_writing_name_the_file_and_not_its_part(tmp_path):
    """NumPy's and those of a full disk name none; others name the hidden part."""
    path = tmp_path / "scores.npy"

    def full(aside):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    def of_numpy(aside):
        with open("/dev/full", "wb") as file:
            np.ones(10**6).tofile(file)

    writers = [full, of_numpy, lambda aside: (aside / "none").write_text("x")]
    for write in writers:
        with pytest.raises(OSError, match="scores") as caught, atomic_write(path) as aside:
            write(aside)
        assert caught.value.filename == str(path)
        assert caught.value.strerror
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_does_not_fit_prints_one_line():
    """libtiff prints by itself what GDAL reports."""
    code = """
import logging, resource, sys
import numpy as np, rasterio
from spectralmoe_jax.inference.libtiff import keep_libtiff_quiet
logging.disable()
keep_libtiff_quiet()
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    with rasterio.open(sys.argv[1], "w", driver="GTiff", height=300, width=300, count=1, dtype="uint8",
                       transform=rasterio.transform.from_origin(5, 5, 1, 1)) as dataset:
        dataset.write(np.ones((1, 300, 300), np.uint8))
except rasterio.errors.RasterioError:
    print("refused")
"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, f"{folder}/map.tif"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_a_name_that_is_not_utf_8_is_one_line(tmp_path, folder):
    scene = write_scene(tmp_path / "scene.tif", random_pixels(64, 64))
    with pytest.raises(UserError, match=r"the name is not UTF-8, which GDAL needs: rename it$"):
        map_scene(scene, folder / "\udce9.tif")
    assert not any(folder.iterdir())
