"""Each script of the reports from the field ends with status 0: all it compares is right.

The scripts of `files` run the command as it is. Those of `robustness` call functions of the project by the
names that they had when the scripts were written: each runs as a copy with the names of today.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT.parent / "shared" / "reports"
FILES = sorted((REPORTS / "files").glob("[0-9]*.py"))
ROBUSTNESS = sorted((REPORTS / "robustness").glob("[0-9]*"))
NO_REPORTS = "the reports do not lie beside the project"

# what the scripts import and call, and its name of today
RENAMED = {
    "spectralmoe_jax.training.metrics": "spectralmoe_jax.training.logging",
    "data_pipelines.sources.prepared": "data_pipelines.readers.prepared",
    "data_pipelines.sources.raster_file": "data_pipelines.readers.raster_file",
    "data_pipelines.sources.opening import open_source": "tiny_geotiff import open_source",
    "spectralmoe_jax.checkpoints.sources import open_source": (
        "spectralmoe_jax.weights.reading import open_weight_file as open_source"
    ),
    "spectralmoe_jax.evaluation.report": "spectralmoe_jax.evaluation.score_table",
    "spectralmoe_jax.parallel.meeting import meet": (
        "spectralmoe_jax.parallel.distributed import rendezvous as meet"
    ),
    "spectralmoe_jax.prediction.geotiff": "spectralmoe_jax.inference.geotiff",
    "spectralmoe_jax.prediction.windows import WindowSettings": (
        "spectralmoe_jax.config.schema import EvaluateConfig as WindowSettings"
    ),
    "tables.latex(": "tables.latex_table(",
    "tables.markdown(": "tables.markdown_table(",
    "tables.comma_separated(": "tables.csv_table(",
}  # fmt: skip

# of the scripts of `files`, which open a whole configuration
RENAMED_IN_FILES = {
    "data_pipelines.sources.opening import": "data_pipelines.sources import",
    "spectralmoe_jax.configuration import": "spectralmoe_jax.config.load import",
}

# Files that scripts need: one opens a configuration with the section `data` alone; the other trains the tiny
# configuration, which was never stored.
HELPERS = {
    "tiny_geotiff.py": """
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import VectorLabels


def open_source(config, domains):
    data = config.data
    labels = VectorLabels(ValueCode(data.label_values, ()), data.label_attribute)
    return GeoTiffTiles(
        data.root, bands=config.bands, labels=labels, classes=3, domains=domains,
        image_glob=data.image_glob, mask_template=data.mask_template,
    )
""",
    "st.py": """
import sys
from pathlib import Path

from spectralmoe_jax.cli.main import main

here = Path(__file__).parent
sys.exit(main([
    "train", "--config", str(here / "tiny.py"), "--workdir", sys.argv[1],
    f"--config.data.root={here}/data/folder", "--config.train.steps=16", "--config.train.evaluate_every=16",
    "--config.train.checkpoint_every=16",
]))
""",
}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of all scripts: small models that one trains are kept for the next."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROJECT": str(ROOT),
        "SMOE_MODELS": str(tmp_path_factory.mktemp("models")),
    }


@pytest.fixture(scope="session")
def robustness(tmp_path_factory):
    """A copy of the folder of scripts with the names of today."""
    folder = tmp_path_factory.mktemp("reports") / "robustness"
    shutil.copytree(REPORTS / "robustness", folder, copy_function=shutil.copyfile)
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    for script in folder.glob("*.py"):
        text = script.read_text()
        for former, today in RENAMED.items():
            text = text.replace(former, today)
        script.write_text(text)
    for name, text in HELPERS.items():
        (folder / name).write_text(text)
    return folder


def _run(script: Path, environment: dict[str, str]) -> None:
    command = ["bash"] if script.suffix == ".sh" else [sys.executable]
    process = subprocess.Popen(
        [*command, str(script)], cwd=ROOT, env=environment, text=True, errors="replace",
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started too, which holds its output open
        pytest.fail(f"not done after 500 s: {process.communicate()[0][-4000:]}")
    assert process.returncode == 0, said[-8000:]


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=NO_REPORTS)
@pytest.mark.parametrize("script", FILES, ids=lambda path: path.stem)
def test_files(script, environment, tmp_path):
    """Pixels and labels mean what the file says."""
    text = script.read_text()
    for former, today in RENAMED_IN_FILES.items():
        text = text.replace(former, today)
    copied = tmp_path / script.name
    copied.write_text(text)
    _run(copied, environment)


@pytest.mark.slow
@pytest.mark.skipif(not ROBUSTNESS, reason=NO_REPORTS)
@pytest.mark.parametrize("script", ROBUSTNESS, ids=lambda path: path.name)
def test_robustness(script, robustness, environment):
    """Damaged and hostile files, races and odd environments end in one line or not at all."""
    _run(robustness / script.name, environment)
