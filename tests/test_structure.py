"""The rooms of the two packages, and which room may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spectralmoe_jax", "data_pipelines")

# Each room and the rooms that it imports, from the bottom up: a room names only rooms above it in this table.
# A room is a folder or a single file of a package; those of data_pipelines carry its name. `spectralmoe_jax`
# is the package's own __init__.py: its version, and functions that it loads when they are first used.
ARROWS = {
    "escapes": "",
    "errors": "escapes",
    "part_files": "",
    "files": "errors part_files",
    "npz": "errors files",
    "one_writer": "errors",
    "stored_files": "errors files",
    "configs": "",
    "config": "errors files",
    "import_path": "errors",
    "parameters": "",
    "spectralmoe_jax": "",
    "parallel": "errors config parameters spectralmoe_jax",
    "resampling": "",
    "layers": "",
    "adapters": "errors config import_path parallel resampling layers",
    "mask2former": "config parallel resampling layers",
    "sensors": "errors",
    "models": "errors config parameters parallel resampling layers adapters mask2former sensors",
    "checkpoints": "errors files config parameters parallel",
    "data_pipelines.records": "errors",
    "data_pipelines.sensors": "errors sensors",
    "data_pipelines.tiles": "errors data_pipelines.records",
    "host_memory": "errors",
    "data_pipelines.stored_values": "errors config data_pipelines.records",
    "data_pipelines.readers": (
        "errors part_files files npz config sensors data_pipelines.records data_pipelines.sensors "
        "data_pipelines.tiles host_memory data_pipelines.stored_values"
    ),
    "read_ahead": "",
    "data_pipelines.worker_process": "",
    "data_pipelines.loader": (
        "errors config data_pipelines.records host_memory data_pipelines.readers "
        "data_pipelines.worker_process"
    ),
    "data_pipelines.synthetic": "errors files config host_memory data_pipelines.records",
    "data_pipelines.sources": "errors config import_path data_pipelines.records",
    "data_pipelines.transforms": "errors config sensors data_pipelines.records data_pipelines.tiles",
    "data_pipelines.splits": (
        "errors host_memory config data_pipelines.records data_pipelines.tiles data_pipelines.stored_values "
        "data_pipelines.loader data_pipelines.sources data_pipelines.transforms"
    ),
    "data_pipelines.extreme_pixels": (
        "config data_pipelines.records data_pipelines.loader data_pipelines.splits"
    ),
    "data_pipelines.sheet": "escapes files data_pipelines.records data_pipelines.sensors",
    "weights": "errors files config parameters models",
    "inference": (
        "escapes errors part_files files npz config parameters parallel resampling sensors models "
        "checkpoints data_pipelines.records data_pipelines.sensors host_memory "
        "data_pipelines.stored_values data_pipelines.readers read_ahead data_pipelines.splits "
        "data_pipelines.sheet weights"
    ),
    "evaluation": (
        "escapes errors files npz stored_files config parameters parallel resampling models checkpoints "
        "data_pipelines.records data_pipelines.loader data_pipelines.sources data_pipelines.splits "
        "inference"
    ),
    "training": (
        "escapes errors files one_writer stored_files config parameters parallel adapters mask2former "
        "models checkpoints host_memory read_ahead data_pipelines.loader data_pipelines.sources "
        "data_pipelines.splits data_pipelines.extreme_pixels inference evaluation"
    ),
    "ablation": (
        "escapes errors part_files files one_writer stored_files config models checkpoints evaluation "
        "training"
    ),
    "ahead_of_time": (
        "escapes errors part_files config parameters spectralmoe_jax parallel models weights inference "
        "training"
    ),
    "conversion": "errors files config parameters models weights inference",
    "sharing": (
        "escapes errors part_files config spectralmoe_jax models checkpoints weights evaluation ablation "
        "conversion"
    ),
    "serving": "escapes errors part_files config spectralmoe_jax sensors inference",
    "data_pipelines.inspect": (
        "escapes errors config data_pipelines.records data_pipelines.sensors data_pipelines.loader "
        "data_pipelines.transforms data_pipelines.splits data_pipelines.sheet"
    ),
    "data_pipelines.datasets": "errors data_pipelines.records data_pipelines.readers",
    "data_pipelines.benchmarks": "data_pipelines.datasets",
    "data_pipelines.prepare": (
        "escapes errors files npz config data_pipelines.records host_memory data_pipelines.readers "
        "data_pipelines.sheet data_pipelines.datasets data_pipelines.worker_process"
    ),
    "data_pipelines.survey": "errors data_pipelines.records data_pipelines.sensors data_pipelines.readers",
    "project_setup": (
        "escapes errors files config models data_pipelines.records data_pipelines.sensors "
        "data_pipelines.tiles data_pipelines.readers data_pipelines.splits data_pipelines.sheet training "
        "data_pipelines.prepare data_pipelines.survey"
    ),
    "parity": (
        "escapes errors files npz config parameters resampling layers adapters mask2former models weights"
    ),
    "reporting": (
        "escapes errors part_files files config spectralmoe_jax data_pipelines.sheet inference evaluation "
        "training ablation"
    ),
    # most subcommands call functions of the package itself
    "cli": (
        "escapes errors part_files files config spectralmoe_jax parallel weights inference ablation "
        "ahead_of_time serving"
    ),
    "__main__": "cli",
    "configuration": "config",
    "quick_start": (
        "escapes config models data_pipelines.synthetic data_pipelines.splits inference evaluation training"
    ),
}
# What the data may know of the other package: never a model.
KNOWN_TO_DATA = {
    "errors", "escapes", "part_files", "files", "npz", "host_memory", "import_path", "config", "sensors",
}  # fmt: skip


def module_of(file: Path) -> str:
    """Return the dotted name of a file of the project."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def room_of(module: str) -> str | None:
    """Return the room of a dotted name of this project; None for any other name."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    if not rest or not any(name.split(".")[:2] == [package, rest[0]] for name in FILES):
        return package  # the package itself, or a name that its __init__.py defines
    return rest[0] if package == "spectralmoe_jax" else f"{package}.{rest[0]}"


def imported_rooms(source: str) -> set[str]:
    """Return the rooms that a module's text imports, at its top or inside a function."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {room_of(name.name) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {room_of(f"{node.module}.{name.name}") for name in node.names}
    return found - {None}


def arrows_of(room: str) -> set[str]:
    """Return the rooms that the files of a room import, itself left out."""
    members = [file for module, file in FILES.items() if room_of(module) == room]
    assert members, f"{room} has no file"
    return set().union(*(imported_rooms(file.read_text()) for file in members)) - {room}


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_exactly_what_the_table_allows(room):
    assert arrows_of(room) == set(ARROWS[room].split())


def test_the_table_has_every_room():
    assert {room_of(module) for module in FILES} == set(ARROWS) | {"data_pipelines"}


def test_arrows_point_to_rooms_above_in_the_table():
    rooms = list(ARROWS)
    for room, allowed in ARROWS.items():
        assert set(allowed.split()) <= set(rooms[: rooms.index(room)]), room


def test_data_knows_sensors_and_no_models():
    for room, allowed in ARROWS.items():
        if room.startswith("data_pipelines"):
            assert {name for name in allowed.split() if "." not in name} <= KNOWN_TO_DATA, room


def test_no_module_imports_itself_through_others():
    """No cycle among modules, imports inside functions included."""
    edges: dict[str, set[str]] = {}
    for module, file in FILES.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        edges[module] = (names & set(FILES)) - {module}
    done: set[str] = set()
    while ready := {m for m, targets in edges.items() if m not in done and targets <= done}:
        done |= ready
    assert not set(edges) - done


@pytest.mark.parametrize("statement", ["import {}", "from {} import anything"])
@pytest.mark.parametrize("inside", ["{}", "def function():\n    {}"])
def test_an_import_against_the_arrows_is_seen(statement, inside):
    """The checks above see an import of any room, at the top of a module or inside a function."""
    for room in ARROWS:
        module = room if room.startswith(("data_pipelines", "spectralmoe_jax")) else f"spectralmoe_jax.{room}"
        assert imported_rooms(inside.format(statement.format(module))) == {room}
