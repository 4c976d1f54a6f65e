"""`spectralmoe compile`: table and JSON for this device and for TPU slices, and rejected arguments."""

import json
import os
import subprocess
import sys

import pytest

from spectralmoe_jax.ahead_of_time.compile import with_mesh
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import ParallelConfig
from tests.tiny_run import SIZES

CONFIG = ["--config", "configs/quickstart.py"]


@pytest.mark.slow
def test_this_device(tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["compile", *CONFIG, *(f"--config.{value}" for value in SIZES), "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert "mesh data=1 x fsdp=1 x expert=1" in table
    report = json.loads(out.read_text())
    assert report["mesh"] == {"data": 1, "fsdp": 1, "expert": 1}
    for step in ("train", "predict"):
        figures = report[step]
        parts = ("arguments", "outputs", "temporaries", "code")
        assert figures["total"] == sum(figures[part] for part in parts) - figures["aliased"]
        assert figures["collectives"] == []
        assert figures["flops"] > 0
    train, predict = report["train"], report["predict"]
    assert train["aliased"] > 0  # the state is renewed in place
    assert train["arguments"] > predict["arguments"]  # moments of the optimizer
    assert train["flops"] / 2 > predict["flops"] / 4  # an image, with its gradient


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_a_tpu_slice_without_the_hardware(topology, tmp_path):
    """In a process without the flags of other tests: libtpu ends a process with a flag it does not know."""
    pytest.importorskip("libtpu", reason="needs libtpu (pip install -e '.[tpu]')")
    out = tmp_path / "figures.json"
    tiny = [f"--config.{value}" for value in (*SIZES, "train.batch_size=4")]
    slice_of_four = ["--topology", topology, "--mesh", "data=2,expert=2", "--step", "train"]
    command = [sys.executable, "-m", "spectralmoe_jax", "compile", *CONFIG, *tiny, *slice_of_four]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    said = subprocess.run([*command, "--json", str(out)], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    memory = {"v5e:2x2": 16, "v6e:2x2": 32}[topology]
    assert f"{topology}: 4 devices of {memory}.00 GiB, mesh data=2 x fsdp=1 x expert=2" in said.stdout
    assert said.stderr == ""  # nothing of a machine that has no TPU
    report = json.loads(out.read_text())
    assert report["train"]["fits"]
    assert report["train"]["aliased"] > 0
    crossing = {(item["kind"], tuple(item["axes"])) for item in report["train"]["collectives"]}
    assert ("all-reduce", ("data",)) in crossing  # gradients
    assert any("expert" in axes for _, axes in crossing)  # coordinates


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9:4x4"], "--topology v9:4x4: give local, or a TPU as GENERATION:SHAPE"),
        (["--topology", "v5e:many"], "--topology v5e:many: give local"),
        (["--mesh", "data=2,experts=2"], "--mesh = 'experts': must be one of data, fsdp, expert"),
        (["--mesh", "data=two"], "--mesh: 'data=two' is no AXIS=NUMBER"),
        (["--mesh", "data=3"], "data=3, fsdp=1, expert=1 does not divide 1 devices"),
        (["--mesh", "data=-1,fsdp=-1"], "data and fsdp are -1"),
        (["--mesh", "data=0"], "config.parallel.data = 0: must be"),
    ],
)
def test_bad_arguments_are_rejected_in_one_line(capsys, arguments, message):
    assert main(["compile", *CONFIG, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unnamed_mesh_axes_take_the_remaining_devices():
    config = with_mesh(load_config("configs/quickstart.py"), "expert=3")
    assert config.parallel == ParallelConfig(data=-1, fsdp=1, expert=3)
