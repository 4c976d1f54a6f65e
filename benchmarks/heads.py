"""The plain mask decoder beside Mask2Former: what the programs of both heads cost, and how long they take.

  python benchmarks/heads.py [--visual dinov3_l] [--size 512] [--batch 1] [--rounds 5]

Each head alone, on features that are given: prediction of the scores of pixels, and the training form with
the loss of all its outputs and the gradients of weights and features. Programs are compiled for the devices
of this machine; operations are those of the products, a multiplication and an addition count as two.
Times are medians; without `--rounds` nothing runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleave

from spectralmoe_jax.ahead_of_time.program_cost import product_flops
from spectralmoe_jax.config.adapters import NoAdapterConfig
from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig, PlainDecoderConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.head import semantic_scores
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.mask2former.masks import Masks
from spectralmoe_jax.models.build import abstract_segmenter, make_segmenter, part_sizes
from spectralmoe_jax.models.positions import centred_periods, centred_rope
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import join, split

HEADS = {"mask2former": Mask2FormerConfig, "pmt": PlainDecoderConfig}
SIDE = 16  # blocks along each side of the labels


def main() -> None:
    """Print a table of both heads in both forms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--visual", choices=("dinov3_s", "dinov3_b", "dinov3_l"), default="dinov3_l")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--present", type=int, default=6, help="classes in the labels")
    parser.add_argument("--remat", choices=("none", "layer"), default="none")
    parser.add_argument("--rounds", type=int, default=0, help="times that every program runs")
    arguments = parser.parse_args()
    kind = jax.devices()[0].device_kind
    print(
        f"{kind}, jax {jax.__version__}, {arguments.visual}, {arguments.size}x{arguments.size} pixels, batch "
        f"{arguments.batch}, {arguments.classes} classes, {arguments.present} present, float32, remat "
        f"{arguments.remat}"
    )
    print(f"{'':<28}{'weights':>12}{'GFLOP':>10}{'temporaries':>14}")
    compiled = {}
    for name in HEADS:
        settings = segmenter(name, arguments)
        count = sum(part.trainable for part in part_sizes(abstract_segmenter(settings), settings))
        for form, (function, given) in programs(settings, arguments).items():
            compiled[f"{name}, {form}"] = report(f"{name}, {form}", count, function, given)
    if arguments.rounds:
        for name, seconds in interleave(compiled, arguments.rounds).items():
            median, least = 1e3 * statistics.median(seconds), 1e3 * min(seconds)
            print(f"{name:<28}{median:>10.0f} ms, least {least:.0f} ms")


def segmenter(name: str, arguments: argparse.Namespace) -> SegmenterConfig:
    """Return the settings of a segmenter with a head, a frozen encoder and no adapter."""
    visual = EncoderConfig(**PRESETS[arguments.visual])
    head: Any = HEADS[name](num_classes=arguments.classes)
    return SegmenterConfig(
        visual=visual,
        depth=None,
        adapter=NoAdapterConfig(),
        adapter_kind=NoAdapterConfig.kind,
        head=head,
        out_layers=tuple(visual.layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4)),
        dtype="float32",
        remat=arguments.remat,
        pixel_mean=(0.0,) * 3,
        pixel_std=(1.0,) * 3,
    )


def programs(
    settings: SegmenterConfig, arguments: argparse.Namespace
) -> dict[str, tuple[Callable, tuple[Any, ...]]]:
    """Return both forms of a head, each as a function and its arguments, which are shapes unless it runs."""
    runs, rng = arguments.rounds > 0, np.random.default_rng(0)
    structure = abstract_segmenter(settings)
    model = make_segmenter(settings, 0) if runs else structure
    weights, _ = split(model.head)
    grid, visual = arguments.size // settings.visual.patch_size, settings.visual
    tokens = grid * grid + (visual.prefix_tokens if settings.head.whole_tokens else 0)
    shape = (len(settings.out_layers), arguments.batch, tokens, visual.width)
    features: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    block = rng.permutation(np.resize(np.arange(arguments.present), SIDE * SIDE)).reshape(SIDE, SIDE)
    row = np.arange(arguments.size) * SIDE // arguments.size
    labels: Any = np.stack([block[row][:, row]] * arguments.batch).astype(np.int32)
    if runs:
        features = jnp.asarray(rng.standard_normal(shape, np.float32))
    size, loss = (arguments.size, arguments.size), LossConfig()

    def predict(weights: Any, features: jax.Array) -> jax.Array:
        """Scores of every class and pixel."""
        classes, masks = outputs(structure, weights, features, grid, all_layers=False)
        logits = masks.logits() if isinstance(masks, Masks) else masks
        return semantic_scores(classes[-1], logits[-1], size)

    def train(weights: Any, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Loss of all outputs."""
        classes, masks = outputs(structure, weights, features, grid, all_layers=True)
        return mask2former_loss(classes, masks, labels, config=loss, key=jax.random.key(0)).total

    return {
        "prediction": (predict, (weights, features)),
        "training": (jax.value_and_grad(train, argnums=(0, 1)), (weights, features, labels)),
    }


def outputs(
    structure: Segmenter, weights: Any, features: jax.Array, grid: int, *, all_layers: bool
) -> tuple[jax.Array, Any]:
    """Class logits and masks of a head on features (levels, B, tokens, D)."""
    head: Any = join(structure.head, weights)
    if structure.config.head.whole_tokens:
        key = jax.random.key(1) if all_layers else None
        visual = structure.config.visual
        rope = centred_rope(centred_periods(visual.head_dim, visual.rope_base), grid, grid)
        found = head(features, (grid, grid), rope, all_layers=all_layers, key=key)
        return found.class_logits, found.mask_logits
    maps = [x.reshape(len(x), grid, grid, -1) for x in features]
    return head.predict(maps, None, all_layers=all_layers)


def report(name: str, count: int, function: Callable, given: tuple[Any, ...]) -> Callable[[], Any]:
    """Compile a program, print what it costs, and return a function that runs it."""
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(function).trace(*given)
        program = traced.lower().compile()
    flops = product_flops(traced.jaxpr.jaxpr) / 1e9
    sizes = program.memory_analysis()
    print(f"{name:<28}{count:>12,}{flops:>10.0f}{sizes.temp_size_in_bytes / 2**20:>10.0f} MiB", flush=True)
    return lambda: jax.block_until_ready(program(*given))


if __name__ == "__main__":
    main()
