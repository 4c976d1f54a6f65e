"""The wheel, built from the source distribution and installed away from the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from spectralmoe_jax.config.load import load_config
from tests.tiny_run import SIZES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("spectralmoe_jax", "data_pipelines", "configs")
STEPS = ("train.steps=2", "train.warmup_steps=0", "train.evaluate_every=2", "train.checkpoint_every=2")
MODEL = (
    "data.crop=48", "model.visual.width=16", "model.adapter.num_tokens=6", "model.adapter.query_dim=16",
    "model.adapter.rank=2", "model.head.num_queries=6", "model.head.width=16", "model.head.num_heads=2",
    "model.head.encoder_ffn=16", "model.head.decoder_ffn=16", "loss.num_points=32", "train.batch_size=2",
    "evaluate.window=48", "evaluate.overlap=0", "evaluate.batch_size=4", "data.holdout=0.25",
)  # fmt: skip


def run(*command, **options) -> str:
    """The output of a command that has to succeed; nothing of the checkout is on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel built from it, of a copy of the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(distributions) -> Path:
    return next(distributions.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Files named *.pth are not read in a folder that is added so: an editable installation stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--no-index", wheel)  # fmt: skip
    return python


def test_the_metadata_is_complete(distributions):
    said = run(sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir())
    assert said.count("PASSED") == 2


def test_the_wheel_holds_every_module_and_no_package_configs(wheel):
    sources = {
        path.relative_to(ROOT)
        for name in SOURCES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted = {
        str("spectralmoe_jax" / path if path.parts[0] == "configs" else path)
        for path in sources - {Path("configs/__init__.py")}
    }
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == wanted
    assert {name.partition("/")[0] for name in files} == {"spectralmoe_jax", "data_pipelines"}
    assert {"spectralmoe_jax/py.typed", "spectralmoe_jax/configs/ablations/experts.py"} <= files


def test_the_package_is_that_of_the_wheel(python, tmp_path):
    said = run(python, "-c", "import spectralmoe_jax; print(spectralmoe_jax.__file__)", cwd=tmp_path)
    assert said.startswith(str(python.parents[1]))
    bare = "import importlib.util; print(importlib.util.find_spec('configs'))"
    assert run(python, "-c", bare, cwd=tmp_path).strip() == "None"


def test_the_quickstart(python, tmp_path):
    overrides = [f"--config.{value}" for value in (*SIZES, *STEPS)]
    said = run(python.parent / "spectralmoe", "quickstart", *overrides, cwd=tmp_path)
    assert "best constant prediction" in said
    assert (tmp_path / "runs/quickstart/panel.png").exists()


def write_image_folder(root: Path) -> None:
    """Two images of noise and their colour-coded masks for each place of `configs/dubai.py`."""
    config = load_config("dubai.py")
    colours = np.array(config.classes.palette, np.uint8)
    rng = np.random.default_rng(0)
    for place in (*config.data.source, *config.data.target):
        for folder in ("images", "masks"):
            (root / place / folder).mkdir(parents=True)
        for part in ("part_1", "part_2"):
            image = rng.integers(0, 256, (48, 48, 3), np.uint8)
            mask = colours[rng.integers(0, len(colours), (48, 48))]
            cv2.imwrite(str(root / place / "images" / f"{part}.jpg"), image)
            cv2.imwrite(str(root / place / "masks" / f"{part}.png"), mask[..., ::-1])


def test_a_configuration_and_a_grid_are_found_by_name(python, tmp_path):
    write_image_folder(tmp_path / "dubai")
    command = [python.parent / "spectralmoe", "train", "--config", "dubai.py", "--workdir", "run"]
    overrides = [f"--config.{value}" for value in ("data.root=dubai", *MODEL, *STEPS)]
    run(*command, *overrides, cwd=tmp_path)
    assert (tmp_path / "run" / "config.json").exists()
    runs = run(python.parent / "spectralmoe", "ablate", "configs/ablations/experts.py:dubai.py",
               "--workdir", "grid", "--list", *overrides, cwd=tmp_path)  # fmt: skip
    assert runs.count("\n") >= 36
