"""`spectralmoe config`: whole configurations and the reference of every key; the package's own functions."""

from pathlib import Path

import pytest

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import save_config

ROOT = Path(__file__).resolve().parents[2]


def test_a_whole_configuration_is_a_configuration_file(tmp_path, capsys):
    assert main(["config", "flair:experts=3", "--config.train.steps=7", "--config.data.corrupt=skip"]) == 0
    (tmp_path / "whole.py").write_text(capsys.readouterr().out)
    whole = load_config(str(tmp_path / "whole.py"))
    overrides = ["--config.train.steps=7", "--config.data.corrupt=skip"]
    assert whole == load_config("flair:experts=3", overrides)
    assert spectralmoe_jax.show_config(whole).count("# default") == 0


def test_the_configuration_of_a_run(tmp_path, capsys):
    save_config(load_config("dubai", ["--config.seed=4"]), tmp_path / "config.json")
    assert main(["config", "--workdir", str(tmp_path), "--config.train.batch_size=2"]) == 0
    shown = capsys.readouterr().out
    assert "    config.seed = 4\n" in shown
    assert "    config.train.batch_size = 2\n" in shown
    assert "    config.data.threads = 2  # default\n" in shown


def test_the_reference(capsys):
    assert main(["config", "--reference"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments FILE[:args] --workdir --reference is required"),
        (["dubai", "--config.train.stps=3"], "config.train.stps is not a known key; nearest: steps"),
        (["dubai", "--config.train.steps=0"], "config.train.steps = 0: must be at least 1"),
        (["--reference", "--config.seed=1"], "--config.seed has no meaning"),
        (["nowhere.py"], "configuration nowhere.py does not exist; shipped: "),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert main(["config", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", sorted(set(spectralmoe_jax.__all__) - {"__version__"}))
def test_every_function_of_the_package_is_one_whenever_it_is_used(name):
    assert callable(getattr(spectralmoe_jax, name))
    assert callable(getattr(spectralmoe_jax, name))
