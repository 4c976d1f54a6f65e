"""Our training step and our prediction against PyTorch on the same work.

PyTorch runs transformers' DINOv3, DINOv2 and Mask2Former with its loss, and a plain adapter written from the
formulas. Sizes, labels, optimizer and trainable parameters are the same, random weights are not. The two take
turns in every round. Measure on an idle machine: where PyTorch's threads share the processor with anything
else, they spin and wait for each other, many times as long as they work. OMP_WAIT_POLICY=PASSIVE avoids most
of that.

In float32 no product is rounded on either side; in bfloat16 both keep float32 parameters, and PyTorch its
frozen encoders in bfloat16. PyTorch's targets, a mask for each class, are made before any timing.

  python benchmarks/train_step.py
  python benchmarks/train_step.py --size 512 --batch 1
  python benchmarks/train_step.py --head linear --only step,stages
  python benchmarks/train_step.py --only prediction --size 512 --scene 2048
  python benchmarks/train_step.py --only layer,deformable
  python benchmarks/train_step.py --device gpu --dtype bfloat16 --visual dinov3_l --depth dinov2_l

Parts, chosen by `--only`:

  step        forward, forward with gradients, and whole step; compile time and temporaries of our programs
  stages      the pieces of the step one by one
  prediction  a scene in overlapping windows of `--size`, in megapixels a second
  layer       one adapter layer of the published size, in both readings, against a product of its size
  deformable  multi-scale deformable attention at 512x512
"""

from __future__ import annotations

import argparse
import os
import statistics

import jax
import numpy as np
import torch
from our_step import OurStep
from step_case import BANDS, Case
from step_parts import compare_attention, compare_layers
from step_stages import JaxStages, TorchStages, optimizer_stage
from timing import OURS, TORCH, compare, interleave, print_heading, print_row
from torch_model import TorchSegmenter, TorchStep

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.inference.sliding_window import predict_image
from spectralmoe_jax.models.windows import window_starts

PARTS = ("step", "stages", "prediction", "layer", "deformable")


def main() -> None:
    """Print the tables of the chosen parts."""
    arguments = parse()
    device = use_devices(arguments)
    case = Case(
        **{name: getattr(arguments, name) for name in Case.__dataclass_fields__ if name in vars(arguments)}
    )
    versions = f"jax {jax.__version__}, torch {torch.__version__}"
    threads = f", {arguments.threads} threads" if device.type == "cpu" else ""
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{jax.devices()[0].device_kind}, {versions}{threads}, {arguments.rounds} rounds, {load}")
    if arguments.only & {"step", "stages", "prediction"}:
        compare_case(case, arguments, device)
    small = {"width": 32, "tokens": 16} if case.tiny else {}
    if "layer" in arguments.only:
        compare_layers(device, arguments.rounds, **small)
    if "deformable" in arguments.only:
        compare_attention(device, arguments.rounds, **({"size": 64} if case.tiny else {}))


def parse() -> argparse.Namespace:
    """Parse the options."""
    formats = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **formats)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas; default: all")
    parser.add_argument("--size", type=int, default=Case.size, help="side of images and windows")
    parser.add_argument("--batch", type=int, default=Case.batch, help="images in a step")
    parser.add_argument("--classes", type=int, default=Case.classes, help="at most 255")
    parser.add_argument("--present", type=int, default=Case.present, help="classes in the labels")
    parser.add_argument("--experts", type=int, default=Case.experts, help="at least 2")
    parser.add_argument("--reading", choices=("paper", "released"), default=Case.reading)
    parser.add_argument("--head", choices=("mask2former", "linear"), default=Case.head)
    parser.add_argument("--visual", choices=("dinov3_s", "dinov3_b", "dinov3_l"), default=Case.visual)
    parser.add_argument("--depth", choices=("dinov2_s", "dinov2_b", "dinov2_l"), default=Case.depth)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=Case.dtype)
    parser.add_argument("--remat", choices=("none", "layer", "full"), default=Case.remat, help="of our side")
    parser.add_argument("--clip", type=float, help="bound on the gradient norm; default: none, as published")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of both sides on a CPU")
    parser.add_argument("--scene", type=int, default=2048, help="side of the predicted scene")
    parser.add_argument("--overlap", type=int, help="of windows; default: half a window, as published")
    parser.add_argument("--windows", type=int, default=1, help="windows in a call")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes that check this script itself")
    arguments = parser.parse_args()
    arguments.only = set(arguments.only.split(","))
    if arguments.only - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}")
    if not arguments.present <= arguments.classes <= 255 or arguments.experts < 2:
        parser.error("--present is at most --classes, --classes at most 255, --experts at least 2")
    return arguments


def use_devices(arguments: argparse.Namespace) -> torch.device:
    """Choose the device of both sides; compile every program anew, unless it is a tiny one."""
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[arguments.device])
    jax.config.update("jax_enable_compilation_cache", arguments.tiny)
    # both are read when JAX first uses a device
    os.environ["PJRT_NPROC"] = str(arguments.threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch needs memory of the GPU too
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = arguments.dtype == "bfloat16"
    torch.manual_seed(0)
    return torch.device({"cpu": "cpu", "gpu": "cuda"}[arguments.device])


def compare_case(case: Case, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build both sides of a case and print the parts that need them."""
    model = TorchSegmenter(case.segmenter(), case.loss())
    batch, settings = case.data(), case.training(arguments.clip)
    ours, theirs = OurStep(case, batch, arguments.clip), TorchStep(model, batch, settings, device)
    print(
        f"{case.visual}, {case.depth}, {case.head} head, {case.reading} adapter, {case.dtype}, "
        f"{case.size}x{case.size} pixels, batch {case.batch}, {case.classes} classes, {case.present} present"
    )
    sizes = (
        sum(leaf.size for leaf in jax.tree.leaves(ours.trainable)),
        sum(p.numel() for p in theirs.parameters),
    )
    print(f"parameters that train: {OURS} {sizes[0]:,}, {TORCH} {sizes[1]:,}", flush=True)
    if "step" in arguments.only:
        compare_steps(ours, theirs, arguments.rounds)
    if "stages" in arguments.only:
        compare_stages(ours, theirs, arguments.rounds)
    if "prediction" in arguments.only:
        compare_prediction(ours, theirs, arguments)


def compare_steps(ours: OurStep, theirs: TorchStep, rounds: int) -> None:
    """Print the table of the whole step, and what our programs cost before they run."""
    programs = ours.programs()
    first = float(programs["forward"][1]()[0])
    print(f"loss of the first step: {OURS} {first:.1f}, {TORCH} {theirs.forward():.1f}")
    print_heading("step")
    runs = (theirs.forward, theirs.gradients, theirs.step)
    for (name, (_, run)), torch_run in zip(programs.items(), runs, strict=True):
        compare(name, run, torch_run, rounds)
    print(f"\n{'our programs':<30}{'lower, s':>10}{'compile, s':>12}{'temporaries, MiB':>18}")
    for name, (program, _) in programs.items():
        cost = f"{program.lowering:10.1f}{program.compilation:12.1f}{program.temporaries / 2**20:18.0f}"
        print(f"{name:<30}{cost}", flush=True)


def compare_stages(ours: OurStep, theirs: TorchStep, rounds: int) -> None:
    """Print the stages forward and with gradients; terms of the loss are what its other parts leave over."""
    stages = JaxStages(ours.structure, ours.trainable, ours.frozen, ours.batch, ours.case.loss()).stages
    counterparts = TorchStages(theirs).stages
    for kind in ("forward", "gradients"):
        print_heading(f"stages, {'forward' if kind == 'forward' else 'with gradients'}")
        runs = {name: getattr(stage, kind) or stage.forward for name, stage in stages.items()}
        others = {f"{TORCH} {name}": getattr(stage, kind) for name, stage in counterparts.items()}
        seconds = interleave(runs | others, rounds)  # all of them, so that their differences mean something
        for name in runs:
            print_row(name, seconds[name], seconds.get(f"{TORCH} {name}"))
        if "matching" in runs:
            parts = ("matching costs", "matching", "points")
            known = np.sum([seconds[name] for name in parts], axis=0)
            print_row("loss terms (the rest)", np.subtract(seconds["whole loss"], known).tolist())
    theirs.gradients()
    optimizer = optimizer_stage(ours.optimizer, ours.trainable)
    compare("optimizer", optimizer.forward, theirs.update, rounds)


def compare_prediction(ours: OurStep, theirs: TorchStep, arguments: argparse.Namespace) -> None:
    """Print the speed of predicting a scene in overlapping windows."""
    size, side = ours.case.size, arguments.scene
    overlap = size // 2 if arguments.overlap is None else arguments.overlap
    settings = EvaluateConfig(window=size, overlap=overlap, batch_size=arguments.windows)
    scene = np.random.default_rng(1).integers(0, 256, (side, side, BANDS), np.uint8)
    predictors = {OURS: ours.predictor(arguments.windows), TORCH: theirs.model.scores}
    seconds = interleave(
        {
            name: lambda predict=predict: predict_image(scene, predict, settings)
            for name, predict in predictors.items()
        },
        arguments.rounds,
    )
    count = len(window_starts(side, size, overlap)) ** 2
    print(
        f"\nprediction of {side}x{side} pixels, {count} windows of {size} with overlap {overlap}, "
        f"{arguments.windows} in a call, megapixels a second"
    )
    speeds = {name: [side**2 / 1e6 / s for s in times] for name, times in seconds.items()}
    for name, rates in speeds.items():
        print(f"{name:<10} median {statistics.median(rates):8.4f}  best {max(rates):8.4f}")
    medians, best = (choose(seconds[TORCH]) / choose(seconds[OURS]) for choose in (statistics.median, min))
    print(f"ratio {TORCH} / {OURS}: medians {medians:.2f}, minima {best:.2f}", flush=True)


if __name__ == "__main__":
    main()
