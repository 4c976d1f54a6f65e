"""Subcommands on several devices of one process: rejected meshes, and the same results as on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from data_pipelines.synthetic import SyntheticDataset
from spectralmoe_jax.cli.main import main
from tests.tiny_run import SIZES

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", "configs/quickstart.py"]  # with four experts
REFUSED = [
    (["parallel.data=3"], "config.parallel: data=3, fsdp=1, expert=1 does not divide 4 devices"),
    (["parallel.expert=3"], "config.parallel: data=-1, fsdp=1, expert=3 does not divide 4 devices"),
    (
        ["model.adapter.num_experts=6", "parallel.data=1", "parallel.expert=4"],
        "config.parallel.expert = 4: must divide config.model.adapter.num_experts = 6: 1, 2, 3, 6",
    ),
    (
        ["train.batch_size=6"],
        "config.train.batch_size = 6: must be a multiple of 4, the devices along data and fsdp",
    ),
    (["parallel.data=-1", "parallel.fsdp=-1"], "config.parallel: data and fsdp are -1"),
    (["parallel.data=0"], "config.parallel.data = 0: must be at least 1"),
    (["parallel.tensor=2"], "config.parallel.tensor"),
]


def on_devices(count, commands, folder):
    """Runs commands one after the other in one process of so many virtual devices; statuses and errors."""
    child = (
        "import contextlib, io, json, sys; from spectralmoe_jax.cli.main import main\n"
        "found = []\n"
        "for command in json.load(open(sys.argv[1])):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        found.append(main(command))\n"
        "    found[-1] = (found[-1], said.getvalue())\n"
        "json.dump(found, open(sys.argv[1], 'w'))\n"
    )
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", child, str(file)], cwd=ROOT, env=environment, check=True, timeout=500
    )
    return json.loads(file.read_text())


def test_bad_meshes_are_rejected_in_one_line(tmp_path):
    commands = [
        ["train", *CONFIG, *(f"--config.{one}" for one in values), "--workdir", str(tmp_path / "run")]
        for values, _ in REFUSED
    ]
    for (status, error), (_, message) in zip(on_devices(4, commands, tmp_path), REFUSED, strict=True):
        assert status == 2, message
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_on_four_devices_predicts_the_same_on_one(tmp_path):
    run, scene = str(tmp_path / "run"), str(SyntheticDataset(0, 4, 1, 64).write(tmp_path, "target")[0])
    tiny = [
        f"--config.{value}" for value in (*SIZES, "train.steps=3", "parallel.data=2", "parallel.expert=2")
    ]

    def using(name):
        return [
            ["evaluate", "--workdir", run, "--output", str(tmp_path / f"{name}.json")],
            ["predict", "--checkpoint", run, "--input", scene, "--output", str(tmp_path / f"{name}.tif")],
        ]

    found = on_devices(4, [["train", *CONFIG, *tiny, "--workdir", run], *using("four")], tmp_path)
    assert [status for status, _ in found] == [0, 0, 0], found
    for command in using("one"):
        assert main(command) == 0
    four, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("four", "one"))
    assert four["all"]["confusion"] == one["all"]["confusion"]
    with rasterio.open(tmp_path / "four.tif") as four, rasterio.open(tmp_path / "one.tif") as one:
        np.testing.assert_array_equal(four.read(), one.read())
