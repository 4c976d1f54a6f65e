"""The script that measures one accelerator, at toy size on the CPU."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from spectralmoe_jax.ahead_of_time.program_cost import product_flops

ROOT = Path(__file__).resolve().parents[2]
PEAK = 0.01  # TFLOP/s
STEPS = ["batch 1, remat none", "batch 1, remat layer", "batch 2, remat none", "batch 1, remat full"]
TORCH = [f"batch {batch}, {kind}" for kind in ("bfloat16 autocast", "TF32") for batch in (1, 2)]
KINDS = ("forward", "with gradients")
PARTS = [f"{reading}, {kind}" for reading in ("released", "paper") for kind in KINDS] + 2 * list(KINDS)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("accelerator")


def run(*options, setup=""):
    """The printed text of a toy run, in a process whose modules `setup` may have changed."""
    code = f"import runpy, sys\n{setup}\nrunpy.run_path('benchmarks/accelerator.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--tiny", f"--peak={PEAK}", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows(text, names):
    """Numbers of the rows that have one of some names, in the order of the text."""
    found = [(line[:30].strip(), line[30:].replace("%", "").split()) for line in text.splitlines()]
    return [(name, [float(x) for x in columns if x != "-"]) for name, columns in found if name in names]


def check_steps(found):
    counts = {}
    for name, (median, least, speed, flops, used, *_) in found:
        batch = int(re.match(r"batch (\d+)", name)[1])
        assert 0 < least <= median
        assert speed == pytest.approx(1e3 * batch / median, rel=0.02)
        assert used == pytest.approx(100 * flops / (median / 1e3) / PEAK, rel=0.05, abs=0.1)
        assert counts.setdefault(batch, flops) == flops > 0  # whatever is recomputed
    assert counts[1] < counts[2] <= 2 * counts[1]


@pytest.mark.slow
def test_every_row_is_there():
    pytest.importorskip("torch", reason="needs the extra `torch`")
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    text = run()
    assert "left out" not in text
    ours, theirs, parts = (rows(text, names) for names in (STEPS, TORCH, PARTS))
    assert [[name for name, _ in found] for found in (ours, theirs, parts)] == [STEPS, TORCH, PARTS]
    check_steps(ours + theirs)
    assert all(memory > 0 and compilation > 0 for _, (*_, memory, compilation) in ours)
    assert all(len(columns) == 6 and min(columns) > 0 for _, columns in parts)


def test_without_minutes_every_row_is_named():
    text = run("--minutes=0", "--only=steps,parts")
    left_out = [line[:30].strip() for line in text.splitlines() if line[30:].startswith("left out: ")]
    assert left_out == [*STEPS, "adapter layer", "deformable attention", "loss"]


def test_it_runs_without_what_data_and_torch_need():
    missing = ("torch", "transformers", "grain", "ml_collections", "tensorflow_datasets", "rasterio", "cv2")
    text = run("--only=torch,parts", setup=f"sys.modules.update(dict.fromkeys({missing}))")
    assert "PyTorch left out" in text
    parts = rows(text, PARTS)
    assert [name for name, _ in parts] == PARTS
    assert all(len(columns) == 2 and min(columns) > 0 for _, columns in parts)


def test_a_row_that_does_not_fit_is_named(script, capsys):
    clock = script.Clock(1.0)
    assert clock.fits("first", 0.5)
    clock.last = 0.6  # minutes of a row before it
    assert not clock.fits("second", 0.5)
    assert clock.fits("third", 1.0)
    assert capsys.readouterr().out == f"{'second':<30}left out: it does not fit into 0.5 minutes\n"


@pytest.mark.parametrize("message", ["RESOURCE_EXHAUSTED: Out of memory", "CUDA out of memory. Tried"])
def test_too_little_memory_costs_one_row(script, capsys, message):
    def fail():
        raise jax.errors.JaxRuntimeError(message)

    script.Clock(1.0).row("large", fail)
    assert capsys.readouterr().out == f"{'large':<30}out of memory\n"


def test_other_errors_are_raised(script):
    def fail():
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT")

    with pytest.raises(jax.errors.JaxRuntimeError):
        script.Clock(1.0).row("wrong", fail)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", None),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks(script, kind, peak):
    assert script.peak_of(kind) == peak


def test_the_count_of_a_step_includes_every_layer():
    """A scan of products with its gradient: three products for each of its iterations."""
    layers, tokens, width = 5, 7, 3

    def total(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0])

    traced = jax.jit(jax.grad(total, argnums=(0, 1))).trace(
        jnp.ones((layers, width, width)), jnp.ones((tokens, width))
    )
    assert product_flops(traced.jaxpr.jaxpr) == 3 * layers * 2 * tokens * width * width
