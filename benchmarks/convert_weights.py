"""Time and memory of `spectralmoe convert` at published size: DINOv3 ViT-L and the ViT-L of a depth model.

  python benchmarks/convert_weights.py                     # every case
  python benchmarks/convert_weights.py --case merge        # cases whose names begin so

The script writes 2.4 GB of random weights and a run's folder with them, and removes everything at the end.
Each case is its own process, limited to two cores where the system allows it. Memory is the largest resident
set of that process, whole and beyond that of a process that only loads the program; both also as a multiple
of the size of the weights read. Processor time shows how much of the wall clock went to other processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves, segmenter_config
from spectralmoe_jax.parameters import named_leaves, split
from spectralmoe_jax.weights import format_tables as tables
from spectralmoe_jax.weights.encoder_file import stored_leaves
from spectralmoe_jax.weights.name_rules import Shape, written_shapes
from spectralmoe_jax.weights.writing import write_safetensors

CONFIG = "configs/fbp_cross_sensor.py"
MEGABYTE = 1e6
BASE = "import spectralmoe_jax.conversion.convert"
# A process inherits its parent's largest resident set; a small process in between keeps it small.
LAUNCH = """
import json, os, subprocess, sys, time
start = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall = time.monotonic() - start
print(json.dumps([status, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
COMMAND = "import sys; from spectralmoe_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"


class Case(NamedTuple):
    """Arguments of `spectralmoe convert`, and the megabytes of weights it reads."""

    name: str
    arguments: list[str]
    megabytes: float


class Measured(NamedTuple):
    """Seconds of wall clock and processor, and the largest resident set in megabytes."""

    wall: float
    processor: float
    memory: float


def main() -> None:
    """Run the chosen cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", default="", help="beginning of the names of the cases to run")
    chosen = parser.parse_args().case
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [case for case in make_cases(folder) if case.name.startswith(chosen)]
        base = run([sys.executable, "-c", BASE])
        table = Table("case", "read (MB)", "wall (s)", "processor (s)", "memory (MB)", "over the base (MB)")
        for case in cases:
            target = folder / case.arguments[1]
            arguments = ["convert", case.arguments[0], str(target), *case.arguments[2:]]
            found = run([sys.executable, "-c", COMMAND, *arguments])
            over = found.memory - base.memory
            table.add_row(
                case.name,
                f"{case.megabytes:.0f}",
                f"{found.wall:.1f}",
                f"{found.processor:.1f}",
                f"{found.memory:.0f} ({found.memory / case.megabytes:.2f})",
                f"{over:.0f} ({over / case.megabytes:.2f})",
            )
            subprocess.run(["rm", "-r", str(target)], check=True)
    Console(width=150).print(table)
    print(f"base: {base.memory:.0f} MB; load of the machine over the last minute: {os.getloadavg()[0]:.1f}")


def run(command: list[str]) -> Measured:
    """Run a command and measure its times and memory.

    Raises:
      CalledProcessError: the command fails.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    launch = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launch, stdout=subprocess.PIPE, check=True, env=environment)
    status, wall, processor, memory = json.loads(done.stdout)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(wall, processor, memory * unit / MEGABYTE)


def make_cases(folder: Path) -> list[Case]:
    """Write the files of all cases, and return the cases."""
    visual, depth = folder / "dinov3_vitl16.safetensors", folder / "depth_anything_v2_vitl.safetensors"
    write_random(visual, "dinov3_l", tables.META_DINOV3, "")
    write_random(depth, "depth_anything_v2_l", tables.META_DINOV2, "pretrained.")
    workdir = write_run(folder / "run", visual, depth)
    checkpoint = sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file()) / MEGABYTE
    one, two = visual.stat().st_size / MEGABYTE, (visual.stat().st_size + depth.stat().st_size) / MEGABYTE
    pair = f"{visual},{depth}"
    return [
        Case("merge, as they are", [pair, "a.safetensors"], two),
        Case("merge, resampled to a configuration", [pair, "b.safetensors", "--config", CONFIG], two),
        Case("encoder", [str(visual), "c.safetensors"], one),
        Case("encoder, --to hf", [str(visual), "d", "--to", "hf"], one),
        Case("run, --to safetensors", [str(workdir), "e.safetensors"], two + checkpoint),
        Case(
            "run, --to released .safetensors",
            [str(workdir), "f.safetensors", "--to", "released"],
            two + checkpoint,
        ),
        Case("run, --to released .pth", [str(workdir), "g.pth", "--to", "released"], two + checkpoint),
    ]


def write_random(path: Path, name: str, names: tables.TensorNames, prefix: str) -> None:
    """Write an encoder's file with random weights under its publisher's names."""
    config = EncoderConfig(**preset(name, "preset"))
    table = [rule.under(prefix, ()) for rule in tables.encoder_rules(names, config)]
    stored = {rule.path for rule in table}
    leaves = {path: shape for path, shape in stored_leaves(config).items() if path in stored}
    shapes = written_shapes(table, leaves)
    write_safetensors(path, shapes, random_tensors(shapes), {})


def random_tensors(shapes: dict[str, Shape]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a random tensor of each shape."""
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        value = rng.standard_normal(shape, np.float32)
        if name.endswith("bias_mask"):
            value = np.repeat(np.float32([1, 0, 1]), shape[0] // 3)
        yield name, value


def write_run(workdir: Path, visual: Path, depth: Path) -> Path:
    """Write a run's folder with one checkpoint of random trainable weights."""
    overrides = [f"--config.model.visual.weights={visual}", f"--config.model.depth.weights={depth}"]
    config = load_config(CONFIG, overrides)
    settings = segmenter_config(config)
    trainable, _ = split(abstract_segmenter(settings))
    paths = [tuple(name.split("/")) for name in named_leaves(trainable)]
    workdir.mkdir()
    with CheckpointStore(workdir, config) as store:
        store.save(1, random_leaves(settings, 0, paths), {"count": np.zeros((), np.int32)}, {"miou": 0.5})
    save_config(config, workdir / "config.json")
    return workdir


if __name__ == "__main__":
    main()
