"""Shipped configurations and grids resolve to the stored values.

The values were stored before the configuration had a schema. A change here is a change of what every user's
run does: correct the reader, or, where a run is meant to differ, change the stored file and say so in the
changelog.
"""

import json
from pathlib import Path

import pytest

from spectralmoe_jax.config.python_files import shipped_files
from tests.config.resolved import CONFIGURATIONS, FOLDER, GRIDS, NEWER, of_configuration, of_grid, text


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_resolves_to_the_stored_values(name):
    assert text(of_configuration(name)) + "\n" == (FOLDER / f"{name}.json").read_text()


@pytest.mark.parametrize("name", GRIDS)
def test_grid_resolves_to_the_stored_values(name):
    assert text(of_grid(name)) + "\n" == (FOLDER / "ablations" / f"{name}.json").read_text()


def test_every_shipped_file_is_stored():
    assert {f"{name}.py" for name in CONFIGURATIONS} == set(shipped_files("configs")) - {"common.py"}
    assert {f"{name}.py" for name in GRIDS} == set(shipped_files("configs.ablations"))


# Files as they shipped before `configs/common.py` and the rooms of the package: users have copies of them.
FORMER = Path(__file__).parent / "former_files"


@pytest.mark.parametrize("name", ["loveda", "enmap_landcover"])
def test_a_copy_of_a_former_configuration_still_resolves(name):
    """As the configuration of today, but for keys that had no other value then."""
    stored = json.loads((FOLDER / f"{name}.json").read_text())
    for values in stored[""].values():
        for key in NEWER:
            values.pop(key, None)
    assert text(of_configuration(name, FORMER)) == text(stored)


@pytest.mark.parametrize("name", ["backbones", "switches"])
def test_a_copy_of_a_former_grid_still_resolves(name):
    assert text(of_grid(name, FORMER)) + "\n" == (FOLDER / "ablations" / f"{name}.json").read_text()
