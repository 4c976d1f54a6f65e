"""`spectralmoe predict` on many scenes: finding, dividing, continuing, and going on past failures."""

import io
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import rasterio
from rich.console import Console
from rio_cogeo import cog_validate

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.catalogue import find_scenes, map_scenes, part_of_scenes, plan
from tests.inference.test_geotiff import write_scene
from tests.inference.test_model import folder  # noqa: F401 (a fixture)
from tests.range_server import serving

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


def test_a_scene_that_fails_stops_no_other(run, scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scenes, "scenes")
    bad = tmp_path / "scenes" / "part_0" / "scene_2.tif"
    bad.write_bytes(bad.read_bytes()[:2000])
    command = ["predict", "--checkpoint", run, "--input", "scenes"]
    assert main([*command, "--output", "maps", "--preview", "pictures"]) == 2
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


def test_inputs_of_every_kind(scenes, tmp_path, monkeypatch):
    everything = {str(path) for path in scenes.rglob("*.tif")}
    (scenes / "part_0" / "._scene_0.tif").touch()  # as macOS leaves behind
    (scenes / "part_0" / "notes.pdf").touch()
    monkeypatch.chdir(scenes / "part_1")
    assert [scene for scene, _ in find_scenes(["../part_0/scene_2.*"])] == ["../part_0/scene_2.tif"]
    found = find_scenes([str(scenes)])
    assert {scene for scene, _ in found} == everything
    assert dict(found)[str(scenes / "part_1" / "scene_1.tif")] == PurePosixPath("part_1/scene_1")
    assert {scene for scene, _ in find_scenes([f"{scenes}/**/scene_[0-4].tif"])} == everything
    listed = tmp_path / "scenes.txt"
    shutil.copy(scenes / "part_0" / "scene_0.tif", tmp_path)
    address = "https://example.org/a%20b/scene_9.tif?token=x"
    listed.write_text(f"\ufeffscene_0.tif  # beside the list\n# nothing\n\n{address}\n")
    assert find_scenes([str(listed)]) == [
        (str(tmp_path / "scene_0.tif"), PurePosixPath("scene_0")), (address, PurePosixPath("scene_9")),
    ]  # fmt: skip
    # each scene once
    spelled = [f"{scenes}/part_1/../part_0/scene_0.tif", *sorted(everything)]
    assert len(find_scenes([str(scenes), *spelled])) == len(everything)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.tif"], r"missing\.tif: no such file, folder or pattern"),
        (["empty"], r"empty: no scene there; scenes end in \.tif"),
        (["empty/*.tif"], r"empty/\*\.tif: no scene there"),
        (
            ["a/x.tif", "b/x.tif"],
            r"a/x\.tif and b/x\.tif would both be mapped to maps/x\.tif: give a folder",
        ),
        (["a", "b"], r"a/x\.tif and b/x\.tif would both be mapped to maps/x\.tif: give a folder"),
        (["loop.txt"], r"loop\.txt: names the list loop\.txt; give every list as --input"),
    ],
)
def test_inputs_that_cannot_be(inputs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a/x.tif", "b/x.tif"):
        (tmp_path / name).touch()
    Path("loop.txt").write_text("loop.txt")
    with pytest.raises(UserError, match=f"^{message}"):
        plan(inputs, Path("maps"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "map.tif"], "is the file of one map; give a folder for 5 scenes"),
        (["--output", "maps", "--shard", "3/2"], "write I/N with I from 0 to N - 1"),
        (
            ["--output", "maps.png"],
            "maps.png: is the name of a file; let a map end in .tif, or give a folder",
        ),
        (["--output", "maps", "--preview", "p.png"], "p.png: is the name of a file"),
    ],
)
def test_options_that_cannot_be(options, message, run, scenes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--checkpoint", run, "--input", str(scenes), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_and_started_again(run, tmp_path, capsys):
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
    capsys.readouterr()
    assert main([*command[3:], "--output", str(disturbed)]) == 0
    assert f"{left} done before, {12 - left} mapped" in capsys.readouterr().out
    found = {name: data for name, data in contents(disturbed).items() if not name.name.startswith(".")}
    assert found == contents(undisturbed)


@pytest.fixture
def server(scenes, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    with serving(scenes) as address:
        yield address


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
    with urllib.request.urlopen(f"{server}/requests") as told:
        assert int(told.read()) > 0


def test_a_catalogue_on_a_server(run, scenes, server, tmp_path, capsys):
    """With a mask beside a scene; done once."""
    names = ["part_0/scene_0.tif", "part_1/scene_1.tif"]
    masked = tmp_path / "masked" / "scene.tif"
    masked.parent.mkdir()
    shutil.copy(scenes / names[0], masked)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(masked, "r+") as dataset:
        mask = np.full(dataset.shape, 255, np.uint8)
        mask[:20] = 0
        dataset.write_mask(mask)
    for suffix in ("", ".msk"):
        shutil.copy(f"{masked}{suffix}", scenes / "part_0" / f"masked.tif{suffix}")
    try:
        inputs = [f"{server}/{name}" for name in (*names, "part_0/masked.tif")]
        command = ["predict", "--checkpoint", run, "--output", str(tmp_path / "maps"), "--input", *inputs]
        assert main(command) == 0
        assert main(command) == 0
        assert "3 done before" in capsys.readouterr().out
        with rasterio.open(tmp_path / "maps" / "masked.tif") as found:
            assert (found.read(1)[:20] == 255).all()
            assert (found.read(1)[20:] < 255).all()
    finally:
        for suffix in ("", ".msk"):
            (scenes / "part_0" / f"masked.tif{suffix}").unlink()


@pytest.mark.slow
def test_what_lies_beside_a_map(run, scenes, tmp_path, capsys):
    """Pictures and confidences that are missing are made; what is no map of ours stays."""
    maps, pictures = tmp_path / "maps", tmp_path / "pictures"
    command = ["predict", "--checkpoint", run, "--input", str(scenes / "part_1"), "--output", str(maps)]
    assert main(command) == 0
    more = ["--confidence", "--preview", str(pictures)]
    assert main([*command, *more]) == 0
    assert "2 mapped" in capsys.readouterr().out.splitlines()[-1]
    assert len(list(pictures.glob("*.png"))) == 2
    assert main([*command, *more]) == 0
    assert "2 done before" in capsys.readouterr().out
    # a map that was cut off
    first = maps / "scene_1.tif"
    whole = first.read_bytes()
    first.write_bytes(whole[:-40])
    assert main([*command, *more]) == 0
    assert first.read_bytes() == whole
    # a raster of the user's
    shutil.copy(scenes / "part_1" / "scene_1.tif", first)
    assert main([*command, "--overwrite"]) == 2
    assert "exists, and is no map; give another --output" in capsys.readouterr().out
    assert first.read_bytes() == (scenes / "part_1" / "scene_1.tif").read_bytes()


def test_maps_inside_of_the_input(run, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "scenes")
    command = ["predict", "--checkpoint", run, "--input", str(tmp_path / "scenes")]
    command += ["--output", str(tmp_path / "scenes" / "maps")]
    assert main(command) == 0
    assert main(command) == 0
    assert "5 done before" in capsys.readouterr().out


@pytest.mark.slow
def test_maps_above_and_beside_the_scenes(run, scenes, tmp_path, capsys, monkeypatch):
    """Folders of maps that hold the scenes, twice: scenes stay scenes, and maps are none."""
    shutil.copytree(scenes, tmp_path / "scenes")
    images = tmp_path / "images"
    images.mkdir()
    write_scene(images / "picture.png", np.zeros((32, 32, 4), np.uint8) + 9, driver="PNG")
    monkeypatch.chdir(tmp_path)
    bands = "--config.data.file_bands=('blue', 'green', 'red', 'nir')"
    for inputs, output in ((["scenes"], "."), (["scenes/part_0/*.tif"], "scenes"), (["images"], "images")):
        command = ["predict", "--checkpoint", run, "--output", output, "--input", *inputs, bands]
        command.append("--config.data.check_values=off")
        assert main(command) == 0
        assert "done before" not in capsys.readouterr().out.splitlines()[-1]
        assert main(command) == 0
        assert "mapped" not in capsys.readouterr().out.splitlines()[-1]


def test_pictures_of_parts_keep_their_folders(run, scenes, tmp_path):
    command = ["predict", "--checkpoint", run, "--input", str(scenes), "--output", str(tmp_path / "maps")]
    for part in ("0/5", "1/5"):
        assert main([*command, "--preview", str(tmp_path / "pictures"), "--shard", part]) == 0
    assert len(contents(tmp_path / "pictures")) == 2
    assert {len(path.parts) for path in contents(tmp_path / "pictures")} == {2}


def test_a_server_that_is_not_there(run, tmp_path, capsys):
    command = ["predict", "--checkpoint", run, "--output", str(tmp_path / "map.tif")]
    assert main([*command, "--input", "http://127.0.0.1:9/scene.tif"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9/scene.tif: cannot be opened" in line
    assert "check the address, the network and the credentials" in line
    assert not list(tmp_path.iterdir())


def test_progress_reaches_all_pixels(folder, scenes, tmp_path):  # noqa: F811
    """On a terminal, a bar over the pixels of all scenes, the broken one and those done before included."""
    shutil.copytree(scenes, tmp_path / "scenes")
    bad = tmp_path / "scenes" / "part_0" / "scene_2.tif"
    bad.write_bytes(bad.read_bytes()[:-2000])
    model = spectralmoe_jax.load(folder / "runs" / "quickstart")
    counted = []
    done = model.map(scenes / "part_0" / "scene_0.tif", tmp_path / "map.tif", progress=counted.append)
    assert sum(counted) == np.prod(done["shape"])
    jobs = plan([str(tmp_path / "scenes")], tmp_path / "maps")
    for state in ("mapped", "done before"):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=120, color_system=None)
        outcomes = map_scenes(model, jobs, tmp_path / "maps", console=console)
        assert [outcome.state for outcome in outcomes].count(state) == 4
        assert "100%" in shown.getvalue()
        assert "Mpixel/s" in shown.getvalue()


def test_polygons_and_pictures_of_others_stay(run, scenes, tmp_path, capsys):
    """A file without its map is not replaced; other outlines are made anew; a file's name is no folder."""
    layers = tmp_path / "layers"
    command = ["predict", "--checkpoint", run, "--input", str(scenes), "--output", str(tmp_path / "maps")]
    foreign = layers / "part_0" / "scene_0.gpkg"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert main([*command, "--vector", str(layers)]) == 2
    assert "exists, without a map" in capsys.readouterr().out
    assert foreign.read_text() == "mine"
    foreign.unlink()
    assert main([*command, "--vector", str(layers)]) == 0
    assert "1 mapped" in capsys.readouterr().out
    assert main([*command, "--vector", str(layers), "--simplify", "0"]) == 0
    assert "5 mapped" in capsys.readouterr().out
    assert main([*command, "--vector", str(tmp_path / "all.gpkg")]) == 2
    assert "is the name of a file" in capsys.readouterr().err


def test_a_terminated_command_leaves_no_hidden_part(run, tmp_path):
    scene = np.random.default_rng(0).integers(1, 3000, (1500, 1500, 4), dtype=np.uint16)
    with rasterio.open(write_scene(tmp_path / "scene.tif", scene), "r+") as dataset:
        dataset.descriptions = BANDS
    maps = tmp_path / "maps"
    maps.mkdir()
    command = ["predict", "--checkpoint", run, "--input", str(tmp_path / "scene.tif"), "--output", str(maps)]
    process = subprocess.Popen([sys.executable, "-m", "spectralmoe_jax", *command])
    while not list(maps.glob(".*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(maps.iterdir()) == []
