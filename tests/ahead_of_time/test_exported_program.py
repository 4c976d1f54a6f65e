"""`spectralmoe export`: the program in a process that has JAX and not this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from jax import export

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from tests.inference.test_model import folder, image_of, model  # noqa: F401 (fixtures)

CALLER = """
import sys
import numpy as np
sys.modules["spectralmoe_jax"] = None  # an import of it fails
sys.path.insert(0, sys.argv[1])
import load
pixels = np.load(sys.argv[2])
np.save(sys.argv[3], load.scores(pixels))
print(*load.info["classes"], sep=",")
"""


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):  # noqa: F811
    target = tmp_path_factory.mktemp("exported") / "program"
    command = ["export", "--checkpoint", str(folder / "runs" / "quickstart"), "--output", str(target)]
    assert main(command) == 0
    return target


@pytest.mark.parametrize("count", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_another_process_without_this_package(exported, model, tmp_path, count):  # noqa: F811
    """Any number of windows; scores equal those of the model."""
    pixels = np.stack([image_of(32, 32, seed) for seed in range(count)])
    np.save(tmp_path / "pixels.npy", pixels)
    files = [str(exported), str(tmp_path / "pixels.npy"), str(tmp_path / "scores.npy")]
    told = subprocess.run(
        [sys.executable, "-c", CALLER, *files], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == ",".join(model.classes)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), model.scores(pixels), atol=1e-6)


def test_for_every_platform(exported):
    program = export.deserialize(bytearray((exported / "program.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[-1].shape) == "(batch, 32, 32, 4)"


def test_what_a_caller_has_to_know(exported, model):  # noqa: F811
    info = json.loads((exported / "model.json").read_text())
    assert tuple(info["bands"]) == model.bands
    assert tuple(map(tuple, info["palette"])) == model.palette
    np.testing.assert_allclose(info["normalisation"]["mean"], model.pixel_mean)
    assert info["window"] == 32
    assert len((exported / "load.py").read_text().splitlines()) <= 20


def test_an_existing_folder_is_kept(exported, folder, capsys):  # noqa: F811
    command = ["export", "--checkpoint", str(folder / "runs" / "quickstart"), "--output", str(exported)]
    assert main(command) == 2
    assert "exists already; remove it or choose another name" in capsys.readouterr().err


@pytest.mark.slow
def test_from_python(folder, tmp_path):  # noqa: F811
    run = folder / "runs" / "quickstart"
    assert spectralmoe_jax.export(run, tmp_path / "program") == tmp_path / "program"
    assert {file.name for file in (tmp_path / "program").iterdir()} == {
        "program.bin", "weights.npz", "model.json", "load.py",
    }  # fmt: skip
