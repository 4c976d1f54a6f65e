"""Parts of the step on their own: a layer of the adapter, multi-scale deformable attention, and the loss.

The adapter's layer is held against products of its tokens (N, D) with a matrix (D, D), the least that any
adapter with a full output matrix costs: one in the forward pass, three with gradients. Without a device of
PyTorch, our side is measured alone and PyTorch need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from step_case import Case
from timing import OURS, TORCH, Run, compare, interleave, print_heading, print_row

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import Mask2FormerConfig
from spectralmoe_jax.mask2former.deformable_attention import deformable_attention, pixel_centres
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.parameters import join, split

if TYPE_CHECKING:
    import torch

READINGS = ("released", "paper")
PRODUCTS = {"forward": 1, "with gradients": 3}
STRIDE = 4  # of the finest masks


def compare_layers(
    device: torch.device | None,
    rounds: int,
    *,
    width: int = 1024,
    tokens: int = 1024,
    batch: int = 1,
    dtype: str = "float32",
) -> None:
    """Print the times of one adapter layer in both readings, and in products of (B * N, D) with (D, D).

    Evaluation, no noise. Gradients are those of the parameters and of both inputs.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, batch, tokens, width), np.float32)
    matrix = jnp.asarray(rng.standard_normal((width, width), np.float32), dtype)
    rows = jnp.asarray(inputs[0].reshape(-1, width), dtype)
    with jax.default_matmul_precision(precision(dtype)):
        product = jax.jit(jnp.matmul).lower(rows, matrix).compile()
    print_heading(f"one adapter layer, B {batch}, N {tokens}, D {width}, {dtype}")
    for reading in READINGS:
        config = SpectralMoEConfig(preset=reading)
        ours = jax_layer(config, inputs, dtype)
        theirs = {} if device is None else torch_parts(device, dtype).layer(config, inputs)
        for kind, run in ours.items():
            runs = {OURS: run, "product": lambda: jax.block_until_ready(product(rows, matrix))}
            seconds = interleave(runs | ({TORCH: theirs[kind]} if theirs else {}), rounds)
            print_row(f"{reading}, {kind}", seconds[OURS], seconds.get(TORCH))
            print_row(f"  {PRODUCTS[kind]} x product", [PRODUCTS[kind] * s for s in seconds["product"]])


def jax_layer(config: SpectralMoEConfig, inputs: np.ndarray, dtype: str) -> dict[str, Run]:
    """Compile our layer of visual and depth tokens (2, B, N, D)."""
    adapter = SpectralMoE(config, layers=1, width=inputs.shape[-1], rngs=nnx.Rngs(0))
    values, _ = split(adapter)
    values["experts_b"] = 0.1 * jax.random.normal(jax.random.key(1), values["experts_b"].shape)
    values["w_gate"] = jax.random.normal(jax.random.key(2), values["w_gate"].shape)

    def layer(values: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Refined tokens and balance loss."""
        module = join(adapter, values)
        weights = {name: leaf[0] for name, leaf in module.stacked().items()}
        out = module.layer(weights, tokens[0], tokens[1])
        return out.tokens, out.auxiliary_loss

    return jax_runs(layer, values, jnp.asarray(inputs, dtype), dtype=dtype)


def compare_attention(
    device: torch.device | None, rounds: int, *, size: int = 512, batch: int = 2, dtype: str = "float32"
) -> None:
    """Print the times of deformable self-attention: strides 32, 16 and 8, 8 heads x 32, 4 points.

    `dtype` is that of the value; locations and weights are float32, as in the step.
    """
    heads, dim, points, strides = 8, 32, 4, (32, 16, 8)
    shapes = [(size // stride, size // stride) for stride in strides]
    centres = np.asarray(pixel_centres(shapes, jnp.float32))  # (T, 2)
    count, rng = len(centres), np.random.default_rng(0)
    value = rng.standard_normal((batch, count, heads, dim), np.float32)
    # points lie around the centre of their query, a few pixels away, as trained and initial offsets do
    offsets = 2 * rng.standard_normal((batch, count, heads, len(shapes), points, 2), np.float32)
    sizes = np.asarray(shapes, np.float32)[:, ::-1][:, None]  # (levels, 1, 2)
    locations = centres[:, None, None, None] + offsets / sizes
    weights = rng.random(locations.shape[:-1], np.float32) / (len(shapes) * points)
    arrays = (value, locations.astype(np.float32), weights)

    # ours takes samples in front of positions, as it computes them: (heads, levels, P, B, T)
    ours_first = [jnp.asarray(x.transpose(2, 3, 4, 0, 1)) for x in (*np.moveaxis(arrays[1], -1, 0), weights)]

    def ours(arrays: Any, _: None) -> jax.Array:
        """Our attention."""
        return deformable_attention(arrays[0], shapes, *arrays[1:])

    theirs = {} if device is None else torch_parts(device, dtype).attention(arrays, shapes)
    print_heading(f"deformable attention, batch {batch}, {size}x{size} pixels, {dtype}")
    for kind, run in jax_runs(ours, [jnp.asarray(value, dtype), *ours_first], None, dtype=dtype).items():
        compare(kind, run, theirs.get(kind), rounds)


def compare_loss(device: torch.device | None, rounds: int, case: Case) -> None:
    """Print the times of the loss of all decoder outputs, for float32 logits that are given.

    Gradients are those of the logits. In the step our loss takes masks as products, whose logits it computes
    where they are read; here both sides take logits, so that they do the same.
    """
    head = case.segmenter().head
    assert isinstance(head, Mask2FormerConfig)
    rng, side = np.random.default_rng(0), case.size // STRIDE
    shape = (head.decoder_layers + 1, case.batch, head.num_queries)  # (K, B, Q)
    classes = rng.standard_normal((*shape, case.classes + 1), np.float32)
    masks = rng.standard_normal((*shape, side, side), np.float32)
    labels, config = case.data()["label"], case.loss()

    def ours(logits: Any, labels: jax.Array) -> tuple[jax.Array]:
        """Our loss."""
        return (mask2former_loss(*logits, labels, config=config, key=jax.random.key(0)).total,)

    logits = (jnp.asarray(classes), jnp.asarray(masks))
    runs = jax_runs(ours, logits, jnp.asarray(labels), argnums=(0,))
    theirs = {} if device is None else torch_parts(device, "float32").loss(classes, masks, labels, config)
    print_heading(
        f"loss, batch {case.batch}, {shape[0]} outputs, {head.num_queries} masks of {side}x{side}, "
        f"{case.classes} classes, {case.present} present"
    )
    for kind, run in runs.items():
        compare(kind, run, theirs.get(kind), rounds)


def torch_parts(device: torch.device, dtype: str) -> Any:
    """Make PyTorch's side, which is imported with it."""
    from torch_parts import TorchParts

    return TorchParts(device, dtype)


def precision(dtype: str) -> str:
    """Precision of products: full for float32, as in the step."""
    return "default" if dtype == "bfloat16" else "highest"


def jax_runs(
    function: Callable, *arguments: Any, argnums: Sequence[int] = (0, 1), dtype: str = "float32"
) -> dict[str, Run]:
    """Compile a function, and its gradients for all arrays of the arguments `argnums`."""

    def total(*arguments: Any) -> jax.Array:
        """Sum the squares of the results."""
        leaves = jax.tree.leaves(function(*arguments))
        return sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in leaves)

    with jax.default_matmul_precision(precision(dtype)):
        forward = jax.jit(function).lower(*arguments).compile()
        gradients = jax.jit(jax.value_and_grad(total, argnums=argnums)).lower(*arguments).compile()
    return {
        "forward": lambda: jax.block_until_ready(forward(*arguments)),
        "with gradients": lambda: jax.block_until_ready(gradients(*arguments)),
    }
