"""The tutorial notebook runs, and is stored with what it prints and draws."""

import json
import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "first_map.ipynb"
SMALL = """
scenes = {"source": 3, "target": 2}
size = 80
overrides = [f"--config.train.{key}" for key in (
    "steps=4", "warmup_steps=1", "log_every=1", "evaluate_every=2", "checkpoint_every=2")]
"""


def cells() -> list[dict]:
    return [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == "code"]


def is_parameters(cell: dict) -> bool:
    return "parameters" in cell["metadata"].get("tags", ())


def test_outputs_are_stored():
    """Of one run from top to bottom, without an error, and with a picture for every figure."""
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    for cell in cells():
        kinds = [kind for output in cell["outputs"] for kind in output.get("data", ())]
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert kinds.count("image/png") == "".join(cell["source"]).count("plt.show()")


def test_parameters_of_the_small_run_are_those_of_the_notebook():
    (cell,) = filter(is_parameters, cells())
    names = re.compile(r"^(\w+) =", re.MULTILINE)
    assert names.findall("".join(cell["source"])) == names.findall(SMALL)


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `docs`")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `docs`")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    (parameters,) = filter(is_parameters, notebook.cells)
    parameters.source = SMALL
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "tutorial" / "run" / "report.html").is_file()
    assert (tmp_path / "tutorial" / "map.tif").is_file()
