"""One training step on every mesh equals that of one device; tokens never cross the expert axis."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.one_step import BATCH, SIDE, WIDTH

BY_DEFAULT = ("2x2x2",)  # the mesh with every axis; the others are slow
OTHERS = ("8x1x1", "4x1x2", "1x8x1", "2x1x3", "1x1x6")
SLOW = (*OTHERS, "dispatch", "pmt", "excluded", "accumulated")
MESHES = [*BY_DEFAULT, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in OTHERS)]
EXPERTS, RANK, TOKENS = 6, 2, (SIDE // 16) ** 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What `steps_on_meshes` found of a part: in a process of its own, which has 8 virtual devices."""

    @functools.cache
    def run(parts):
        out = tmp_path_factory.mktemp("mesh") / "found.json"
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        root = Path(__file__).parents[2]
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
        program = Path(__file__).with_name("steps_on_meshes.py")
        done = subprocess.run([sys.executable, str(program), str(out), *parts], env=environment, cwd=root,
                              text=True, capture_output=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    return lambda part: run(BY_DEFAULT if part in BY_DEFAULT else SLOW)[part]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_equals_that_of_one_device(found, mesh):
    assert found(mesh)["metrics"] < 1e-5
    assert found(mesh)["params"] < 1e-5
    assert found(mesh)["loss"] > 1  # of something, not of nothing


@pytest.mark.parametrize("mesh", MESHES)
def test_experts_and_their_optimizer_state_are_sharded_along_expert(found, mesh):
    """Each device holds 1/expert of the experts, their gates and both moments, and all of the rest."""
    expert = int(mesh.rpartition("x")[2])
    shares = found(mesh)["shares"]
    where = {"experts_a": 1, "experts_b": 1, "w_gate": 3, "w_noise": 3}
    split = [name for name, (whole, own) in shares.items() if name.startswith("state") and whole != own]
    wanted = [name for name in shares if name.startswith("state") and name.rpartition("/")[2] in where]
    assert len(wanted) == 3 * len(where)  # parameters, first and second moments
    assert sorted(split) == (sorted(wanted) if expert > 1 else [])
    for name in wanted:
        whole, own = shares[name]
        axis = where[name.rpartition("/")[2]]
        assert [a // b for a, b in zip(whole, own, strict=True)] == [
            expert if i == axis else 1 for i in range(4)
        ]


@pytest.mark.parametrize("mesh", MESHES)
def test_frozen_kernels_are_sharded_along_fsdp(found, mesh):
    fsdp = int(mesh.split("x")[1])
    shares = {name: sizes for name, sizes in found(mesh)["shares"].items() if "/blocks/" in name}
    kernels = {name: sizes for name, sizes in shares.items() if name.endswith("kernel")}
    assert len(kernels) == 2 * 4  # of attention and feed-forward, visual and depth
    assert WIDTH % fsdp == 0
    for name, (whole, own) in shares.items():
        assert _size(whole) == _size(own) * (fsdp if name in kernels else 1), name
        assert own[0] == whole[0]  # a device has a part of every layer


def test_no_token_crosses_the_expert_axis(found):
    """Logits, E numbers a token; coordinates, E*R; the bias's weight, 1; weights and their gradients."""
    rows = BATCH // 4
    crossing = [item for item in found("2x2x2")["collectives"] if "expert" in item["axes"]]
    shapes = {tuple(shape) for item in crossing for _, shape in item["shapes"]}
    assert (rows, TOKENS, EXPERTS, RANK) in shapes  # the coordinates
    of_tokens = {shape for shape in shapes if len(shape) > 1 and shape[:2] == (rows, TOKENS)}
    assert {shape[2:] for shape in of_tokens} <= {(), (1,), (EXPERTS,), (EXPERTS, RANK)}
    for shape in shapes - of_tokens:
        assert _size(shape) < rows * TOKENS * WIDTH or not {rows, TOKENS, rows * TOKENS} & set(shape), shape


@pytest.mark.slow
def test_dispatch_equals_expert_coordinates(found):
    for differences in found("dispatch").values():
        assert differences["metrics"] < 1e-5
        assert differences["params"] < 1e-5


@pytest.mark.slow
def test_running_statistics_are_those_of_the_global_batch(found):
    """The plain mask decoder on four devices, two of which share the weights, against one device."""
    assert found("pmt")["statistics"] < 1e-5
    assert found("pmt")["metrics"] < 1e-5
    assert found("pmt")["params"] < 1e-5


@pytest.mark.slow
def test_a_step_without_unlabelled_pixels_equals_that_of_one_device(found):
    assert found("excluded")["metrics"] < 1e-5
    assert found("excluded")["params"] < 1e-5


@pytest.mark.slow
def test_an_accumulated_step_equals_that_of_one_device(found):
    assert found("accumulated")["metrics"] < 1e-5
    assert found("accumulated")["params"] < 1e-5
    assert found("accumulated")["average"] < 1e-5


def _size(shape):
    size = 1
    for side in shape:
        size *= side
    return size
