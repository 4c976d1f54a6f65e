"""Check golden files of the adapter alone: values and gradients of every layer on the same tokens."""

from __future__ import annotations

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parameters import fill, leaves, with_values
from spectralmoe_jax.parity.comparison import (
    Check,
    Shape,
    compare,
    compare_if_present,
    parse_meta,
    raise_problems,
    read_arrays,
    require_arrays,
    worst,
)
from spectralmoe_jax.weights.name_rules import read_tensors, write_tensors
from spectralmoe_jax.weights.released import ADAPTER_CONSTANTS, ADAPTER_RULES

QUANTITIES = ("outputs", "balance_losses", "queries", "objective")
# Largest relative errors of values and of gradients: `released` in float32, `paper` in float64.
BOUNDS = {"released": (1e-5, 1e-4), "paper": (1e-9, 1e-9)}


def verify_adapter(path: Path) -> list[Check]:
    """Check one `adapter_*.npz`: outputs, balance losses, queries, objective and gradients.

    `released` files are checked in float32, `paper` files in float64. A quantity that the file does not hold
    is listed without a bound. goldens/README.md describes the file.

    Raises:
      UserError: the file is not readable, or its inputs and parameters do not fit its `meta`.
    """
    golden = read_arrays(path)
    try:
        meta = parse_meta(path, str(golden.pop("meta")))
        preset, config = golden_adapter_config(meta)
        inputs = _input_shapes(golden, meta, config)
    except KeyError as missing:
        raise UserError(f"{path}: not an adapter golden (no {missing}); see goldens/README.md") from None
    except (ValueError, TypeError, UserError) as problem:
        raise UserError(f"{path}: not an adapter golden ({problem}); see goldens/README.md") from None
    require_arrays(path, golden, inputs, (*QUANTITIES, "noise", "param/", "grad/"))
    wide = jax.enable_x64(True) if preset == "paper" else contextlib.nullcontext()
    with wide, jax.default_matmul_precision("highest"):
        return _check(path, golden, meta, config, *BOUNDS[preset])


def golden_adapter_config(meta: dict) -> tuple[str, SpectralMoEConfig]:
    """Return the preset (`released` or `paper`) that a golden file was computed with, and its settings."""
    preset = "paper" if "fusion" in meta else "released"
    shared = ("num_experts", "rank", "num_tokens", "top_k", "gating", "query_dim", "noise_epsilon")
    settings = {key: meta[key] for key in shared}
    if isinstance(settings["rank"], list):
        settings["rank"] = tuple(settings["rank"])  # one rank for each expert
    if preset == "paper":
        settings |= {"fusion": meta["fusion"], "fusion_value": meta["fusion_value"]}
    else:
        settings |= {"balance_weight": meta["balance_loss_coef"]}
    return preset, SpectralMoEConfig(preset=preset, **settings)


def _input_shapes(golden: dict[str, np.ndarray], meta: dict, config: SpectralMoEConfig) -> dict[str, Shape]:
    """Return the shapes of tokens, noise and experts; the number of patch tokens follows from `visual`."""
    visual = golden.get("visual")  # (B, prefix + N, D)
    batch, tokens = visual.shape[:2] if visual is not None and visual.ndim == 3 else (None, None)
    patches = None if tokens is None else tokens - meta["num_prefix_tokens_visual"]
    width, skip = meta["embed_dim"], meta["num_prefix_tokens_depth"]
    shapes: dict[str, Shape] = {
        "visual": (None, None, width),
        "depth": (batch, None if patches is None else patches + skip, width),
    }
    if meta["noisy"] or "noise" in golden:
        draws = None if batch is None or patches is None else batch * patches
        shapes["noise"] = (meta["num_layers"], 2, draws, config.num_experts)
    experts = meta["num_layers"] * len(config.ranks)
    if experts > len(golden):
        raise ValueError(f"{experts} experts in {len(golden)} arrays")
    for layer in range(meta["num_layers"]):
        for expert, rank in enumerate(config.ranks):
            shapes[f"param/experts_a.{layer}.{expert}"] = (config.num_tokens, rank)
            shapes[f"param/experts_b.{layer}.{expert}"] = (rank, width)
    return shapes


def _check(
    path: Path, golden: dict, meta: dict, config: SpectralMoEConfig, values: float, gradients: float
) -> list[Check]:
    dtype, file = golden["visual"].dtype, path.name
    # 1. Fill an adapter with the golden parameters.
    adapter = SpectralMoE(
        config, layers=meta["num_layers"], width=meta["embed_dim"], param_dtype=dtype, rngs=nnx.Rngs(0)
    )
    shapes = {leaf_path: leaf.shape for leaf_path, leaf in leaves(adapter).items()}
    released = _pad_experts(_below("param/", golden), config)
    constants = {name: value for name, value in ADAPTER_CONSTANTS.items() if name in released}
    fill(adapter, read_tensors(ADAPTER_RULES, shapes, released, file=str(path), constants=constants))
    wanted = _pad_experts(_below("grad/", golden), config)
    parameters = set(released) - set(constants)
    raise_problems(path, {"unexpected": [f"grad/{name}" for name in wanted if name not in parameters]})
    # 2. Compute values and gradients.
    objective_and_parts = jax.jit(jax.value_and_grad(_objective(adapter, golden, meta), has_aux=True))
    (objective, parts), grads = objective_and_parts(leaves(adapter))
    parts |= {"objective": objective}
    # 3. Compare.
    checks = [compare_if_present(file, key, parts[key], golden, values) for key in QUANTITIES]
    ours = write_tensors(ADAPTER_RULES, {leaf_path: np.asarray(leaf) for leaf_path, leaf in grads.items()})
    each = [compare(file, name, ours[name], value, gradients) for name, value in wanted.items()]
    return [*checks, worst(file, each, "gradients")]


def _below(prefix: str, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose keys start with `prefix`, under keys without it."""
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def _pad_experts(tensors: dict[str, np.ndarray], config: SpectralMoEConfig) -> dict[str, np.ndarray]:
    """Pad experts of smaller rank with zeros to the largest rank, as the adapter stacks them.

    An expert whose shape does not have its own rank stays as it is, so that the comparison reports it.
    """
    padded, largest = dict(tensors), max(config.ranks)
    ranks = {str(expert): rank for expert, rank in enumerate(config.ranks)}
    for name, value in tensors.items():
        side, *numbers = name.split(".")
        if side not in ("experts_a", "experts_b") or value.ndim != 2:
            continue
        axis, rank = 1 if side == "experts_a" else 0, ranks.get(numbers[-1], largest)
        if value.shape[axis] == rank:
            padded[name] = np.pad(value, [(0, largest - rank if axis == i else 0) for i in (0, 1)])
    return padded


def _objective(adapter: SpectralMoE, golden: dict, meta: dict):
    """Return the function from the adapter's values to the objective and the quantities it consists of.

    The golden file holds the gradients of the objective. goldens/README.md defines it.
    """
    skip_v, skip_d = meta["num_prefix_tokens_visual"], meta["num_prefix_tokens_depth"]
    visual, depth = jnp.asarray(golden["visual"]), jnp.asarray(golden["depth"])
    noise = golden.get("noise")
    batch, patches = visual.shape[0], visual.shape[1] - skip_v
    if noise is not None:
        # (L, J, B * N, E) -> (L, J, B, N, E)
        noise = jnp.asarray(noise).reshape(*noise.shape[:2], batch, patches, -1)
    probe = np.cos(np.arange(visual.size, dtype=visual.dtype)).reshape(visual.shape)
    balance_factor = 1e-3 if "balance_loss_coef" in meta else 1.0

    def objective(values):
        """Compute the golden file's scalar from the adapter's parameters."""
        model = with_values(adapter, values)

        def one_layer(weights, noise):
            """Refine the patch tokens of one layer."""
            out = model.layer(weights, visual[:, skip_v:], depth[:, skip_d:], noise)
            return jnp.concatenate([visual[:, :skip_v], out.tokens], axis=1), out.auxiliary_loss

        outputs, balance = jax.vmap(one_layer, in_axes=(0, None if noise is None else 0))(
            model.stacked(), noise
        )
        queries = model.queries()
        total = jnp.sum(outputs * probe) + jnp.sum(queries**2) + balance_factor * jnp.mean(balance)
        return total, {"outputs": outputs, "balance_losses": balance, "queries": queries}

    return objective
