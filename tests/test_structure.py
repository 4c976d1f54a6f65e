"""No module imports upward: each room of the project knows those below it alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# from the bottom up
ROOMS = (
    "errors", "files", "configs", "config", "optional_keys", "host_memory", "names", "config_files",
    "configuration", "sensors", "sampling", "layers", "parallel", "mask2former", "adapters", "linear_head",
    "losses", "models",
    "checkpoints", "data_pipelines", "prediction", "evaluation", "training", "verification", "compilation",
    "ablation", "reporting", "demonstration", "cli",
)  # fmt: skip
FILES = [*ROOT.glob("spectralmoe_jax/*/**/*.py"), *ROOT.glob("spectralmoe_jax/*.py"),
         *ROOT.glob("data_pipelines/**/*.py")]  # fmt: skip


def room_of(module: str) -> str | None:
    """The room of a dotted module of this project; None for any other, and for the package itself."""
    top, *rest = module.split(".")
    if top == "data_pipelines":
        return top
    return rest[0] if top == "spectralmoe_jax" and rest and rest[0] not in ("__init__", "__main__") else None


def imported(file: Path) -> set[str]:
    """Dotted names of everything that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_below(room):
    files = [
        file for file in FILES if room_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) == room
    ]
    assert files
    above = set(ROOMS[ROOMS.index(room) + 1 :])
    upward = {(file.name, name) for file in files for name in imported(file) if room_of(name) in above}
    assert not upward


def test_every_room_has_its_place():
    rooms = {room_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in FILES}
    assert rooms - {None} == set(ROOMS)
