"""Speed, utilisation and memory of the published training step on one GPU or TPU, in less than 8 minutes.

DINOv3 ViT-L and DINOv2 ViT-L, the adapter as released, Mask2Former, 512x512 pixels of three bands, bfloat16,
24 classes of which six are present; random weights, made-up data. Where PyTorch with transformers sees a GPU
too, its step is timed beside ours, as bfloat16 under autocast and as float32 with TF32 products. The parts
are one layer of the adapter, deformable attention and the loss alone.

  python benchmarks/accelerator.py
  python benchmarks/accelerator.py --only steps,torch --minutes 5
  python benchmarks/accelerator.py --peak 181
  python benchmarks/accelerator.py --tiny        checks the script itself, on a CPU too

Columns of the steps:

  ms, minimum   median and least time of a step, from about three seconds of steps after two that warm up
  images/s      images of a batch over the median
  TFLOP         model FLOPs of a step, see below
  MFU           model FLOPs over the median time and over the device's dense bfloat16 peak, for TF32 too;
                `-` for a device whose peak is not known: give it with --peak
  GiB           ours: arguments, results and temporaries of the compiled program, as the compiler plans them.
                PyTorch: the most that its tensors take at a time
  compile, s    to trace, lower and compile

Model FLOPs are those of all products in the traced step without rematerialisation, a multiplication and an
addition counting as two, every iteration of a scan counted. The compiler's own count is not used: it counts a
loop's body once. All rows of a batch share the number, so that what a program recomputes does not count as
useful. Two things are counted although they are recomputed at `none` too: attention weights in the backward
pass, and a few small products; for the published step about 2 % and 0.6 %. Elementwise work and samples
count as nothing, and of the matching costs' loop over classes one iteration.

Each table has a share of the minutes. A row that does not fit, judged by the one before it, is named as left
out; one that runs out of memory says so, and the next one starts. JAX keeps the memory that it once took:
if that leaves PyTorch too little, run `--only torch` by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from our_step import OurStep
from step_case import Case
from step_parts import compare_attention, compare_layers, compare_loss
from timing import Run, repeat

PUBLISHED = Case(size=512, batch=8, reading="released", visual="dinov3_l", depth="dinov2_l", dtype="bfloat16")
TINY = Case(size=64, batch=1, classes=8, present=4, reading="released", dtype="bfloat16", tiny=True)

# Batch and rematerialisation of our steps, those that matter most first; PyTorch takes the same batches.
STEPS = (
    *((batch, remat) for batch in (8, 4, 16) for remat in ("none", "layer")),
    *((batch, "full") for batch in (8, 4, 16)),
)
TINY_STEPS = ((1, "none"), (1, "layer"), (2, "none"), (1, "full"))

# Tables, and the share of the minutes at which each has to be done.
TABLES = {"steps": 0.6, "torch": 0.8, "parts": 1.0}

# Dense bfloat16 peaks in FLOP/s by words of the device's kind, of a V100 in float16; the first that fits.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "V100": 125e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
HEADER = f"{'ms':>10}{'minimum':>10}{'images/s':>10}{'TFLOP':>10}{'MFU':>8}{'GiB':>9}"
COMPILE = f"{'compile, s':>12}"


def main() -> None:
    """Print the tables that were asked for."""
    arguments = parse()
    clock = Clock(arguments.minutes)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory of the GPU too
    device = jax.local_devices()[0]
    if device.platform == "cpu" and not arguments.tiny:
        raise SystemExit("error: JAX finds no accelerator here; --tiny checks the script on a CPU")
    torch_device, versions = find_torch(device, arguments.tiny)
    peak = arguments.peak * 1e12 if arguments.peak else peak_of(device.device_kind)
    case = TINY if arguments.tiny else PUBLISHED
    print(f"{device.device_kind}, jax {jax.__version__}, {versions}, {arguments.minutes:g} minutes at most")
    print(
        f"{case.visual}, {case.depth}, {case.head} head, {case.reading} adapter, {case.dtype}, "
        f"{case.size}x{case.size} pixels, {case.classes} classes, {case.present} present"
        f"{', tiny' if case.tiny else ''}; dense peak, TFLOP/s: {peak / 1e12 if peak else '-'}"
    )
    bench = Bench(case, TINY_STEPS if case.tiny else STEPS, peak, clock)
    if "steps" in arguments.only:
        bench.steps()
    if "torch" in arguments.only and torch_device is not None:
        bench.torch_steps(torch_device)
    if "parts" in arguments.only:
        bench.parts(torch_device)
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    most = "-" if used is None else f"{used / 2**30:.2f} GiB"
    print(f"\nmost memory that JAX used: {most}; {clock.minutes():.1f} minutes in all")


def parse() -> argparse.Namespace:
    """Parse the options."""
    formats = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **formats)
    parser.add_argument("--only", default=",".join(TABLES), help="tables, separated by commas; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="rows that no longer fit are left out")
    parser.add_argument("--peak", type=float, help="dense bfloat16 peak of the device in TFLOP/s")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes that check this script itself")
    arguments = parser.parse_args()
    arguments.only = set(arguments.only.split(","))
    if arguments.only - set(TABLES):
        parser.error(f"--only takes {', '.join(TABLES)}")
    return arguments


def find_torch(device: jax.Device, tiny: bool) -> tuple[Any, str]:
    """Find the device of PyTorch: a GPU where JAX has one, for tiny sizes the CPU.

    Returns:
      The device, or None without one, and PyTorch's version or why it is left out.
    """
    try:
        import scipy  # noqa: F401  # the loss of transformers needs it
        import torch
        import torch_model  # noqa: F401  # needs transformers
    except ImportError as error:
        return None, f"PyTorch left out: {error}"
    torch.manual_seed(0)
    if tiny:
        torch.set_num_threads(1)  # several would mostly wait for each other
    torch.set_float32_matmul_precision("high")  # TF32 where products take float32
    torch.backends.cudnn.allow_tf32 = True
    if device.platform == "gpu" and torch.cuda.is_available():
        return torch.device("cuda"), f"torch {torch.__version__}"
    if tiny:
        return torch.device("cpu"), f"torch {torch.__version__}"
    return None, f"PyTorch left out: torch {torch.__version__} does not see the device"


def peak_of(kind: str) -> float | None:
    """Return the dense bfloat16 peak of a kind of device in FLOP/s, None if it is not known."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", kind)), None)


class Clock:
    """Decides whether rows fit into the minutes that their table may end at."""

    def __init__(self, budget: float):
        self.budget, self.start = budget, time.monotonic()
        self.last = 0.0  # minutes of the last row of this table

    def minutes(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.start) / 60

    def table(self, title: str) -> None:
        """Begin a table."""
        self.last = 0.0
        print(f"\n{title}", flush=True)

    def fits(self, name: str, share: float) -> bool:
        """Tell whether a row will be done at a share of the budget; if not, print that in its place."""
        end = share * self.budget
        if self.minutes() + self.last < end:
            return True
        print(f"{name:<30}left out: it does not fit into {end:g} minutes", flush=True)
        return False

    def row(self, name: str, action: Callable[[], None]) -> None:
        """Do what prints a row; go on if the device has too little memory for it."""
        began = self.minutes()
        try:
            action()
        except RuntimeError as error:  # those of JAX and of PyTorch are of this class
            if not is_out_of_memory(error):
                raise
            print(f"{name:<30}out of memory", flush=True)
        self.last = self.minutes() - began


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device had too little memory, from what JAX or PyTorch says."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


class Bench:
    """Prints the tables.

    Attributes:
      case: sizes, but for the batch.
      rows: batch and rematerialisation of our steps, the most important first.
      peak: of the device in FLOP/s, if known.
      clock: decides which rows fit.
    """

    def __init__(self, case: Case, rows: Sequence[tuple[int, str]], peak: float | None, clock: Clock):
        self.case, self.rows, self.peak, self.clock = case, rows, peak, clock
        self.seconds, self.least = (0.0, 1) if case.tiny else (3.0, 3)  # of a row: time, and number of steps
        self.counts: dict[int, int] = {}  # model FLOPs by batch
        self.rounds = 1 if case.tiny else 20  # of the parts, which take milliseconds

    @functools.cached_property
    def weights(self) -> tuple[Any, Any]:
        """Trainable and frozen parameters, the same for all rows."""
        step = OurStep(self.case, self.case.data())
        return step.trainable, step.frozen

    def model_flops(self, batch: int) -> int:
        """Model FLOPs of a step of so many images."""
        if batch not in self.counts:
            self.counts[batch] = self.our_step(batch, "none").flops()
        return self.counts[batch]

    def our_step(self, batch: int, remat: str) -> OurStep:
        """Make our step for a batch and a kind of rematerialisation."""
        case = dataclasses.replace(self.case, batch=batch, remat=remat)
        return OurStep(case, case.data(), weights=self.weights)

    def steps(self) -> None:
        """Print our steps."""
        self.clock.table(f"{'our steps':<30}{HEADER}{COMPILE}")
        for batch, remat in self.rows:
            name = f"batch {batch}, remat {remat}"
            if self.clock.fits(name, TABLES["steps"]):
                self.clock.row(name, lambda: self.our_row(name, batch, remat))

    def our_row(self, name: str, batch: int, remat: str) -> None:
        """Compile, run and print one of our steps."""
        program, run = self.our_step(batch, remat).whole_step()
        compilation = program.lowering + program.compilation
        self.print_row(name, batch, self.times(run), program.memory, f"{compilation:12.1f}")

    def torch_steps(self, device: Any) -> None:
        """Print PyTorch's steps for all batches."""
        self.clock.table(f"{'PyTorch steps':<30}{HEADER}")
        from torch_model import TorchSegmenter

        for dtype, kind in {"bfloat16": "bfloat16 autocast", "float32": "TF32"}.items():
            case, model = dataclasses.replace(self.case, dtype=dtype), None
            for batch in dict.fromkeys(batch for batch, _ in self.rows):
                name = f"batch {batch}, {kind}"
                if not self.clock.fits(name, TABLES["torch"]):
                    continue
                model = model or TorchSegmenter(case.segmenter(), case.loss())
                self.clock.row(name, lambda: self.torch_row(name, batch, model, device))

    def torch_row(self, name: str, batch: int, model: Any, device: Any) -> None:
        """Run and print one of PyTorch's steps."""
        import torch
        from torch_model import TorchStep

        on_gpu, case = device.type == "cuda", dataclasses.replace(self.case, batch=batch)
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = self.times(TorchStep(model, case.data(), case.training(), device).step)
        self.print_row(name, batch, seconds, torch.cuda.max_memory_allocated() if on_gpu else None)

    def parts(self, device: Any) -> None:
        """Print single parts, in milliseconds, with PyTorch's on a device if there is one."""
        common: dict[str, Any] = {"batch": self.case.batch, "dtype": self.case.dtype}
        sizes = {"width": 32, "tokens": 16} if self.case.tiny else {}
        rows = {
            "adapter layer": lambda: compare_layers(device, self.rounds, **sizes, **common),
            "deformable attention": lambda: compare_attention(
                device, self.rounds, size=self.case.size, **common
            ),
            "loss": lambda: compare_loss(device, self.rounds, self.case),
        }
        self.clock.table("parts")
        for name, action in rows.items():
            if self.clock.fits(name, TABLES["parts"]):
                self.clock.row(name, action)

    def times(self, run: Run) -> list[float]:
        """Time a step: the seconds of each run."""
        return repeat(run, self.seconds, least=self.least)

    def print_row(
        self, name: str, batch: int, seconds: Sequence[float], memory: int | None, rest: str = ""
    ) -> None:
        """Print a row.

        Args:
          name: of the row.
          batch: images in a step.
          seconds: of each step.
          memory: bytes, if known.
          rest: columns that follow.
        """
        median = statistics.median(seconds)
        flops = self.model_flops(batch)
        used = f"{flops / median / self.peak:.1%}" if self.peak else "-"
        held = "-" if memory is None else f"{memory / 2**30:.3f}"
        times = f"{1e3 * median:10.1f}{1e3 * min(seconds):10.1f}{batch / median:10.2f}"
        print(f"{name:<30}{times}{flops / 1e12:10.4g}{used:>8}{held:>9}{rest}", flush=True)


if __name__ == "__main__":
    main()
