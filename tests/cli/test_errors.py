"""Bad input at the command line: one line that names it, exit status 2, no traceback, no file written."""

import subprocess
import sys

import pytest

from spectralmoe_jax.cli.main import COMMANDS, main

CONFIG = """
from spectralmoe_jax.configs import dubai

def get_config():
    config = dubai.get_config()
    config.mine = 3
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def error_of(capsys, *argv):
    status = main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["--config.classes.names=a,b\udcff"], r"config.classes.names[1] = 'b\udcff': must be text"),
        (["--config.classes.names=a\0,b"], r"config.classes.names[0] = 'a\x00': must be text"),
        (["--config.train.step=3"], "config.train.step is not a known key; nearest: steps"),
        (["--config.trian.steps=3"], "config.trian is not a known key; nearest: train"),
        (
            ["--config.qqqq=3"],
            "config.qqqq is not a known key; allowed: augment, bands, classes, data, evaluate, loss, ",
        ),
        (["--config.train.steps=many"], "config.train.steps = 'many': must be a whole number"),
        (["--config.train.steps=2.5"], "config.train.steps = '2.5': must be a whole number"),
        (["--config.train.learning_rate", "fast"], "config.train.learning_rate = 'fast': must be a number"),
        (["--config.augment.turns=maybe"], "config.augment.turns = 'maybe': must be one of true"),
        (["--config.train=3"], "config.train is a section"),
        (["--config.seed.x=3"], "config.seed is 0, not a section"),
        (["--config.train.steps"], "config.train.steps needs a value"),
        (["--config.train.steps", "--workdir"], "config.train.steps needs a value"),
        (["--config.train.steps=0"], "config.train.steps = 0: must be at least 1"),
        (["--config.train.steps=none"], "config.train.steps = None: must be a whole number"),
        (["--config.train.betas=0.9"], "config.train.betas = (0.9,): must have 2 elements, not 1"),
        (["--config.train.betas=a,b"], "config.train.betas[0] = 'a': must be a number"),
        (
            ["--config.train.learning_rate=nan"],
            "config.train.learning_rate = nan: must be finite",
        ),
        (
            ["--config.augment.scale=(0.5,1e999)"],
            "config.augment.scale[1] = inf: must be finite",
        ),
    ],
)
def test_bad_key_or_value(config, tmp_path, capsys, override, expected):
    workdir = tmp_path / "run"
    message = error_of(capsys, "train", "--config", config, "--workdir", workdir, *override)
    assert expected in message
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown subcommand 'trian'; did you mean train?"),
        (["zzz"], "unknown subcommand 'zzz'; there are: quickstart, prepare"),
        (["train", "--workdir", "w"], "required: --config"),
        (["train", "--config", "c", "--workdir", "w", "--wrokdir=x"], "--wrokdir; did you mean --workdir?"),
        (
            ["train", "--config", "nowhere.py", "--workdir", "w"],
            "configuration nowhere.py does not exist; shipped: ",
        ),
        (["evaluate", "--workdir", "nowhere"], "nowhere/config.json does not exist"),
        (["evaluate", "--workdir", "w", "--split", "all"], "--split"),
        (
            ["predict", "--checkpoint", "nowhere", "--input", "a", "--output", "b"],
            "nowhere/config.json does not",
        ),
        (["verify", "nowhere"], "nowhere is not a folder"),
        (["verify", ".", "--config.seed=1"], "--config.seed has no meaning"),
    ],
)
def test_bad_arguments(capsys, argv, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:\n", "broken.py:1: SyntaxError"),
        ("import ml_collections\n\nx = 1 / 0\n", "broken.py:3: ZeroDivisionError"),
        ("def other(): ...\n", "has no function get_config()"),
        ("def get_config():\n    return 3\n", "has to return an ml_collections.ConfigDict"),
    ],
)
def test_broken_config_file(tmp_path, capsys, text, expected):
    (tmp_path / "broken.py").write_text(text)
    assert expected in error_of(capsys, "params", "--config", tmp_path / "broken.py")


@pytest.mark.parametrize(
    "argv", [("evaluate", "--workdir"), ("calibrate", "--workdir"), ("serve",), ("predict", "--checkpoint")]
)
def test_a_model_without_a_name(capsys, argv, tmp_path, monkeypatch):
    """As of a variable of a shell that is not set."""
    monkeypatch.chdir(tmp_path)
    more = ["--input", "x.tif", "--output", "y.tif"] if argv[0] == "predict" else []
    assert "config.json does not exist" in error_of(capsys, *argv, "", *more)


def test_workdir_that_cannot_be_a_folder(config, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    message = error_of(capsys, "train", "--config", config, "--workdir", tmp_path / "file" / "run")
    assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupt_exits_with_130_and_one_line(config, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("spectralmoe_jax.cli.models.load_config", interrupt)
    assert main(["params", "--config", config]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: spectralmoe {name}" in capsys.readouterr().out


def test_process_prints_help_without_jax_and_fails_in_one_line():
    script = (
        "import sys; from spectralmoe_jax.cli.main import main; "
        "status = main(sys.argv[1:]); assert 'jax' not in sys.modules; sys.exit(status)"
    )
    helped = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    assert all(name in helped.stdout for name in COMMANDS)
    failed = subprocess.run([sys.executable, "-m", "spectralmoe_jax", "tra"], capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (2, "error: unknown subcommand 'tra'; did you mean train?\n")
