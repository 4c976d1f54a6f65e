"""`spectralmoe predict` on many scenes: finding, dividing, continuing, and going on past failures."""

import functools
import http.server
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import PurePosixPath

import numpy as np
import pytest
import rasterio
from rio_cogeo import cog_validate

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.catalogue import find_scenes, part_of_scenes, plan
from tests.inference.test_geotiff import write_scene
from tests.inference.test_model import folder  # noqa: F401 (a fixture)

BANDS = ("blue", "green", "red", "nir")


def write_scenes(root, count, side=48):
    """Scenes of four named bands in two subfolders."""
    for number in range(count):
        place = root / f"part_{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(1, 3000, (side, side + number, 4), dtype=np.uint16)
        with rasterio.open(write_scene(place / f"scene_{number}.tif", pixels), "r+") as dataset:
            dataset.descriptions = BANDS
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), 5)


@pytest.fixture
def run(folder):  # noqa: F811
    return str(folder / "runs" / "quickstart")


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_folder_is_what_single_calls_give(run, scenes, tmp_path, capsys):
    command = ["predict", "--checkpoint", run]
    assert main([*command, "--input", str(scenes), "--output", str(tmp_path / "maps"), "--confidence"]) == 0
    assert "5 mapped" in capsys.readouterr().out
    for scene in scenes.rglob("*.tif"):
        alone = tmp_path / "alone.tif"
        assert main([*command, "--input", str(scene), "--output", str(alone), "--confidence"]) == 0
        name = scene.relative_to(scenes)
        for suffix in ("", "_confidence"):
            found = tmp_path / "maps" / name.with_name(f"{name.stem}{suffix}.tif")
            with rasterio.open(found) as one, rasterio.open(tmp_path / f"alone{suffix}.tif") as other:
                np.testing.assert_array_equal(one.read(1), other.read(1))
            assert cog_validate(found, quiet=True)[:2] == (True, [])


def test_what_is_done_is_not_done_again(run, scenes, tmp_path, capsys):
    maps = tmp_path / "maps"
    command = ["predict", "--checkpoint", run, "--input", str(scenes), "--output", str(maps)]
    assert main(command) == 0
    before, times = contents(maps), {path: path.stat().st_mtime_ns for path in maps.rglob("*.tif")}
    (maps / "part_0" / "scene_2.tif").unlink()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 done before, 1 mapped" in said
    assert contents(maps) == before
    again = {path for path, earlier in times.items() if path.stat().st_mtime_ns != earlier}
    assert again == {maps / "part_0" / "scene_2.tif"}
    # another setting of the model is another model
    assert main([*command, "--config.evaluate.overlap=0"]) == 2
    assert (
        "exists, and is not of this model; give another --output, or --overwrite" in capsys.readouterr().out
    )
    assert main([*command, "--config.evaluate.overlap=0", "--overwrite"]) == 0


def test_a_scene_that_fails_stops_no_other(run, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "scenes")
    bad = tmp_path / "scenes" / "part_0" / "scene_2.tif"
    bad.write_bytes(bad.read_bytes()[:2000])
    command = ["predict", "--checkpoint", run, "--input", str(tmp_path / "scenes")]
    assert main([*command, "--output", str(tmp_path / "maps"), "--preview", str(tmp_path / "pictures")]) == 2
    said = capsys.readouterr().out
    assert "1 failed, 4 mapped" in said
    assert re.search(r"part_0/scene_2\.tif .*(truncated|cannot be read)", said.rpartition("4 mapped")[2])
    names = {path.relative_to(scenes) for path in scenes.rglob("*.tif")} - {
        bad.relative_to(tmp_path / "scenes")
    }
    assert contents(tmp_path / "maps").keys() == names
    assert contents(tmp_path / "pictures").keys() == {name.with_suffix(".png") for name in names}


def test_parts_of_a_catalogue(run, scenes, tmp_path, monkeypatch):
    command = ["predict", "--checkpoint", run, "--input", str(scenes), "--output", str(tmp_path / "maps")]
    assert main([*command, "--shard", "0/2"]) == 0
    first = contents(tmp_path / "maps").keys()
    assert len(first) == 3
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert main([*command, "--shard", "auto"]) == 0
    assert contents(tmp_path / "maps").keys() == {path.relative_to(scenes) for path in scenes.rglob("*.tif")}


@pytest.mark.parametrize(
    ("text", "environment", "wanted"),
    [
        ("2/5", {}, (2, 5)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
                  "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        ("auto/9", {"JOB_COMPLETION_INDEX": "8"}, (8, 9)),
    ],
)  # fmt: skip
def test_which_part(text, environment, wanted):
    assert part_of_scenes(text, environment) == wanted


@pytest.mark.parametrize("text", ["5/5", "-1/5", "1", "1/", "a/b", "auto/3", "auto"])
def test_no_part(text):
    with pytest.raises(UserError, match=f"^--shard {text}: "):
        part_of_scenes(text, {})


def test_inputs_of_every_kind(scenes, tmp_path):
    everything = {str(path) for path in scenes.rglob("*.tif")}
    (scenes / "part_0" / "._scene_0.tif").touch()  # as macOS leaves behind
    (scenes / "part_0" / "notes.pdf").touch()
    found = find_scenes([str(scenes)])
    assert {scene for scene, _ in found} == everything
    assert dict(found)[str(scenes / "part_1" / "scene_1.tif")] == PurePosixPath("part_1/scene_1")
    assert {scene for scene, _ in find_scenes([f"{scenes}/**/scene_[0-4].tif"])} == everything
    listed = tmp_path / "scenes.txt"
    shutil.copy(scenes / "part_0" / "scene_0.tif", tmp_path)
    address = "https://example.org/a%20b/scene_9.tif?token=x"
    listed.write_text(f"\ufeffscene_0.tif  # beside the list\n\n{address}\n")
    assert find_scenes([str(listed)]) == [
        (str(tmp_path / "scene_0.tif"), PurePosixPath("scene_0")), (address, PurePosixPath("scene_9")),
    ]  # fmt: skip
    # each scene once
    assert len(find_scenes([str(scenes), *sorted(everything)])) == len(everything)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.tif"], r"missing\.tif: no such file, folder or pattern"),
        (["empty"], r"empty: no scene there; scenes end in \.tif"),
        (["empty/*.tif"], r"empty/\*\.tif: no scene there"),
        (
            ["a/x.tif", "b/x.tif"],
            r"a/x\.tif and b/x\.tif would both be mapped to maps/x\.tif: give the folder",
        ),
    ],
)
def test_inputs_that_cannot_be(inputs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a/x.tif", "b/x.tif"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"^{message}"):
        plan(inputs, PurePosixPath("maps"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "map.tif"], "is the file of one map; give a folder for several scenes"),
        (["--output", "maps", "--shard", "3/2"], "write I/N with I from 0 to N - 1"),
    ],
)
def test_options_that_cannot_be(options, message, run, scenes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--checkpoint", run, "--input", str(scenes), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_killed_and_started_again(run, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", 12)  # noqa: F841
    command = [sys.executable, "-m", "spectralmoe_jax", "predict", "--checkpoint", run]
    command += ["--input", str(tmp_path / "scenes")]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert main([*command[3:], "--output", str(undisturbed)]) == 0
    process = subprocess.Popen([*command, "--output", str(disturbed)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(disturbed.rglob("scene_*.tif"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = len(list(disturbed.rglob("scene_*.tif")))
    assert left < 12
    assert main([*command[3:], "--output", str(disturbed)]) == 0
    found = {name: data for name, data in contents(disturbed).items() if not name.name.startswith(".")}
    assert found == contents(undisturbed)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, as object stores serve them; every third request fails once."""

    requests = 0
    ranges = 0

    def do_GET(self):
        type(self).requests += 1
        if type(self).requests % 3 == 0:
            self.send_error(503)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(404)
            return
        if not asked:
            self.send_response(200)
        else:
            type(self).ranges += 1
            start, stop = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(data)}")
            data = data[start : stop + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(scenes):
    handler = functools.partial(_Handler, directory=str(scenes))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_scene_from_a_server(run, scenes, server, tmp_path):
    """With ranges and retries: every third request fails."""
    command = ["predict", "--checkpoint", run]
    local, remote = tmp_path / "local.tif", tmp_path / "remote.tif"
    scene = "part_1/scene_1.tif"
    assert main([*command, "--input", str(scenes / scene), "--output", str(local)]) == 0
    preview = tmp_path / "preview.png"
    options = ["--output", str(remote), "--preview", str(preview)]
    assert main([*command, "--input", f"{server}/{scene}", *options]) == 0
    assert remote.read_bytes() == local.read_bytes()
    assert preview.stat().st_size > 0
    assert _Handler.ranges > 0


def test_a_server_that_is_not_there(run, tmp_path, capsys):
    command = ["predict", "--checkpoint", run, "--output", str(tmp_path / "map.tif")]
    assert main([*command, "--input", "http://127.0.0.1:9/scene.tif"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9/scene.tif: cannot be opened" in line
    assert "check the address, the network and the credentials" in line
    assert not list(tmp_path.iterdir())
