"""Code that a stored configuration names runs only if the user says so, in every command that reads one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.reading import MANIFEST

STORED = Path(__file__).parents[1] / "checkpoints" / "old_run"
KEYS = {
    "adapter": "config.model.adapter.kind",
    "data": "config.data.kind",
    "stream": "config.streams.b.data.kind",
}


def named(stored: dict, key: str, code: str) -> dict:
    """A stored configuration that names code by a key."""
    if key.startswith("config.streams"):
        stored["streams"] = {"b": {"data": {"kind": code}}}
        return stored
    *places, last = key.split(".")[1:]
    section = stored
    for place in places:
        section = section[place]
    section[last] = code
    return stored


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that exists once the stranger's code was run."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    Path("evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    return mark


@pytest.fixture
def run(tmp_path):
    """A run of somebody else."""
    shutil.unpack_archive(STORED / "runs.tar.xz", tmp_path / "runs")
    return tmp_path / "runs" / "run"


def poison(run, key):
    file = run / "config.json"
    file.write_text(json.dumps(named(json.loads(file.read_text()), KEYS[key], "evil.py:Thing")))


COMMANDS = {
    "predict": ["--checkpoint", "RUN", "--input", str(STORED / "scene.tif"), "--output", "map.tif"],
    "evaluate": ["--workdir", "RUN"],
    "calibrate": ["--workdir", "RUN"],
    "view": ["--checkpoint", "RUN", "--input", str(STORED / "scene.tif"), "--output", "view.html"],
    "serve": ["RUN", "--port", "0"],
    "convert": ["RUN", "out.safetensors"],
    "export": ["--checkpoint", "RUN", "--output", "program"],
    "push": ["RUN", "hf://owner/name", "--licence", "mit", "--dry-run", "pushed"],
    "report": ["RUN"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_it(command, run, mark, capsys):
    poison(run, "adapter")
    before = sorted(Path.cwd().iterdir())
    arguments = [str(run) if each == "RUN" else each for each in COMMANDS[command]]
    assert main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'config.json'}: {KEYS['adapter']} = 'evil.py:Thing' names code" in said
    assert "--allow-code" in said
    assert said.count("\n") == 1
    assert not mark.exists()
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("command", ["evaluate", "convert"])
def test_it_runs_where_the_user_allows_it(command, run, mark, capsys):
    poison(run, "adapter")
    arguments = [str(run) if each == "RUN" else each for each in COMMANDS[command]]
    assert main([command, *arguments, "--allow-code"]) == 2
    assert "evil.py has no Thing" in capsys.readouterr().err
    assert mark.exists()


def test_it_runs_where_the_command_line_names_it(run, mark):
    poison(run, "adapter")
    assert main(["evaluate", "--workdir", str(run), f"--{KEYS['adapter']}=evil.py:Thing"]) == 2
    assert mark.exists()


def test_another_key_on_the_command_line_allows_nothing(run, mark, capsys):
    poison(run, "adapter")
    given = [f"--{KEYS['data']}=synthetic", "--config.model.adapter.rank=2"]
    assert main(["evaluate", "--workdir", str(run), *given]) == 2
    assert not mark.exists()


@pytest.mark.parametrize("key", ["data", "stream"])
def test_data_sources_and_those_of_streams(key, run, mark, capsys):
    poison(run, key)
    assert main(["evaluate", "--workdir", str(run)]) == 2
    assert f"{KEYS[key]} = 'evil.py:Thing' names code" in capsys.readouterr().err
    assert not mark.exists()


def weight_file(tmp_path):
    """A weight file that carries a configuration, as those that `convert` writes."""
    save_config(load_config("quickstart"), tmp_path / "config.json")
    given = named(json.loads((tmp_path / "config.json").read_text()), KEYS["adapter"], "evil.py:Thing")
    file = tmp_path / "weights.safetensors"
    tensors = {"head/classifier/kernel": np.zeros((2, 2), np.float32)}
    save_file(tensors, file, {MANIFEST: json.dumps({"configuration": given})})
    return file


def test_weight_files(tmp_path, mark, capsys):
    file = weight_file(tmp_path)
    scene = ["--input", str(STORED / "scene.tif"), "--output", "map.tif"]
    assert main(["predict", "--checkpoint", str(file), *scene]) == 2
    assert f"{file}: {KEYS['adapter']} = 'evil.py:Thing' names code" in capsys.readouterr().err
    # nor where the user's configuration takes the place of the file's
    assert main(["predict", "--checkpoint", str(file), "--config", "quickstart", *scene]) == 2
    assert not mark.exists()


def test_in_python(run, mark):
    poison(run, "adapter")
    with pytest.raises(UserError, match="allow_code=True"):
        spectralmoe_jax.load(run)
    assert not mark.exists()
    with pytest.raises(UserError, match=r"evil\.py has no Thing"):
        spectralmoe_jax.load(run, allow_code=True)
    assert mark.exists()


def test_showing_a_stored_configuration_runs_nothing(run, mark, capsys):
    poison(run, "adapter")
    assert main(["config", "--workdir", str(run)]) == 0
    assert "evil.py:Thing" in capsys.readouterr().out
    assert not mark.exists()


def test_training_compares_a_stored_configuration_and_runs_nothing_of_it(run, mark, capsys):
    poison(run, "adapter")
    assert main(["train", "--config", "quickstart", "--workdir", str(run)]) == 2
    assert "config.model.adapter.kind is 'evil.py:Thing' there" in capsys.readouterr().err
    assert not mark.exists()
