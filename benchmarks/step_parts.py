"""Two parts of the step on their own: one layer of the adapter, and multi-scale deformable attention.

The adapter's layer is held against products of its tokens (N, D) with a matrix (D, D), the least that any
adapter with a full output matrix costs: one in the forward pass, three with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from timing import OURS, TORCH, Run, compare, interleave, print_heading, print_row
from torch_adapter import Adapter
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.mask2former.deformable_attention import deformable_attention, pixel_centres
from spectralmoe_jax.parameters import join, split

READINGS = ("released", "paper")
PRODUCTS = {"forward": 1, "with gradients": 3}


def compare_layers(device: torch.device, rounds: int, *, width: int = 1024, tokens: int = 1024) -> None:
    """Print the times of one adapter layer in both readings, and in products of (N, D) with (D, D).

    Evaluation, one image, no noise. Gradients are those of the parameters and of both inputs.
    """
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 1, tokens, width), np.float32)
    matrix = jnp.asarray(rng.standard_normal((width, width), np.float32))
    rows = jnp.asarray(inputs[0, 0])
    with jax.default_matmul_precision("highest"):
        product = jax.jit(jnp.matmul).lower(rows, matrix).compile()
    print_heading(f"one adapter layer, N {tokens}, D {width}")
    for reading in READINGS:
        config = SpectralMoEConfig(preset=reading)
        ours, theirs = jax_layer(config, inputs), torch_layer(config, inputs, device)
        for kind, run in ours.items():
            runs = {
                OURS: run,
                TORCH: theirs[kind],
                "product": lambda: jax.block_until_ready(product(rows, matrix)),
            }
            seconds = interleave(runs, rounds)
            print_row(f"{reading}, {kind}", seconds[OURS], seconds[TORCH])
            print_row(f"  {PRODUCTS[kind]} x product", [PRODUCTS[kind] * s for s in seconds["product"]])


def jax_layer(config: SpectralMoEConfig, inputs: np.ndarray) -> dict[str, Run]:
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

    return jax_runs(layer, values, jnp.asarray(inputs))


def torch_layer(config: SpectralMoEConfig, inputs: np.ndarray, device: torch.device) -> dict[str, Run]:
    """Make PyTorch's layer of visual and depth tokens (2, B, N, D)."""
    adapter = Adapter(config, 1, inputs.shape[-1]).to(device)
    torch.nn.init.normal_(adapter.layers[0].b, std=0.1)
    torch.nn.init.normal_(adapter.layers[0].w_gate)
    tokens = [torch.from_numpy(x).to(device) for x in inputs]
    return torch_runs(lambda *given: adapter(0, *given), tokens, list(adapter.parameters()))


def compare_attention(device: torch.device, rounds: int, *, size: int = 512, batch: int = 2) -> None:
    """Print the times of deformable self-attention: strides 32, 16 and 8, 8 heads x 32, 4 points."""
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

    jax_pair = jax_runs(ours, [jnp.asarray(value), *ours_first], None)
    torch_pair = torch_runs(
        lambda value, locations, weights: (
            multi_scale_deformable_attention(value, shapes, locations, weights),
        ),
        [torch.from_numpy(x).to(device) for x in arrays],
        [],
    )
    print_heading(f"deformable attention, batch {batch}, {size}x{size} pixels")
    for kind, run in jax_pair.items():
        compare(kind, run, torch_pair[kind], rounds)


def jax_runs(function: Callable, *arguments: Any) -> dict[str, Run]:
    """Compile a function of two arguments, and its gradients for all that is an array."""

    def total(*arguments: Any) -> jax.Array:
        """Sum the squares of the results."""
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(*arguments)))

    with jax.default_matmul_precision("highest"):
        forward = jax.jit(function).lower(*arguments).compile()
        gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*arguments).compile()
    return {
        "forward": lambda: jax.block_until_ready(forward(*arguments)),
        "with gradients": lambda: jax.block_until_ready(gradients(*arguments)),
    }


def torch_runs(
    function: Callable, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> dict[str, Run]:
    """Make the runs of a function of tensors, with gradients of these and of its parameters."""
    leaves = [x.requires_grad_() for x in inputs]
    wait = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None

    def forward() -> None:
        """Run without gradients."""
        with torch.no_grad():
            function(*leaves)
        wait()

    def gradients() -> None:
        """Run with gradients."""
        for leaf in (*leaves, *parameters):
            leaf.grad = None
        sum(x.square().sum() for x in function(*leaves)).backward()
        wait()

    return {"forward": forward, "with gradients": gradients}
