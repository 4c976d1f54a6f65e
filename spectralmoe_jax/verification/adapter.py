"""Golden files of the adapter alone: every layer on the same tokens, values and gradients."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.checkpoints.released import ADAPTER, ADAPTER_CONSTANTS
from spectralmoe_jax.checkpoints.rules import read_tensors, write_tensors
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.state import fill, leaves, with_values
from spectralmoe_jax.verification.report import Check, compare, worst

# values, gradients
BOUNDS = {"released": (1e-5, 1e-4), "paper": (1e-9, 1e-9)}


def adapter_config(meta: dict) -> tuple[str, AdapterConfig]:
    """The reading a golden file was computed under, and its settings."""
    preset = "paper" if "fusion" in meta else "released"
    shared = ("num_experts", "rank", "num_tokens", "top_k", "gating", "query_dim", "noise_epsilon")
    settings = {key: meta[key] for key in shared}
    if preset == "paper":
        settings |= {"fusion": meta["fusion"], "fusion_value": meta["fusion_value"]}
    else:
        settings |= {"balance_weight": meta["balance_loss_coef"]}
    return preset, AdapterConfig(preset=preset, **settings)


def verify_adapter(path: Path) -> list[Check]:
    """Check one `adapter_*.npz` (goldens/README.md): outputs, balance losses, queries, gradients.

    `released` files are checked in float32, `paper` files in float64.
    """
    try:
        with np.load(path) as archive:
            golden = {key: archive[key] for key in archive.files}
        meta = json.loads(str(golden.pop("meta")))
        preset, config = adapter_config(meta)
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"{path}: not an adapter golden ({problem}); see goldens/README.md") from None
    wide = jax.enable_x64(True) if preset == "paper" else contextlib.nullcontext()
    with wide, jax.default_matmul_precision("highest"):
        return _check(path.name, golden, meta, config, *BOUNDS[preset])


def _check(file: str, golden: dict, meta: dict, config: AdapterConfig, values: float, gradients: float):
    dtype = golden["visual"].dtype
    adapter = SpectralMoE(
        config, layers=meta["num_layers"], width=meta["embed_dim"], param_dtype=dtype, rngs=nnx.Rngs(0)
    )
    released = {
        key.removeprefix("param/"): value for key, value in golden.items() if key.startswith("param/")
    }
    shapes = {path: leaf.shape for path, leaf in leaves(adapter).items()}
    constants = {name: value for name, value in ADAPTER_CONSTANTS.items() if name in released}
    fill(adapter, read_tensors(ADAPTER, shapes, released, source=file, constants=constants))

    objective_and_parts = jax.jit(jax.value_and_grad(_objective(adapter, golden, meta), has_aux=True))
    (objective, parts), grads = objective_and_parts(leaves(adapter))
    checks = [
        compare(file, key, parts[key], golden[key], values)
        for key in ("outputs", "balance_losses", "queries")
    ]
    checks.append(compare(file, "objective", objective, golden["objective"], values))
    ours = write_tensors(ADAPTER, {path: np.asarray(leaf) for path, leaf in grads.items()})
    wanted = {key.removeprefix("grad/"): value for key, value in golden.items() if key.startswith("grad/")}
    each = [compare(file, name, ours[name], value, gradients) for name, value in wanted.items()]
    return [*checks, worst(each, "gradients")]


def _objective(adapter: SpectralMoE, golden: dict, meta: dict):
    """The scalar whose gradients the golden holds, with the quantities it is made of."""
    skip_v, skip_d = meta["num_prefix_tokens_visual"], meta["num_prefix_tokens_depth"]
    visual, depth = jnp.asarray(golden["visual"]), jnp.asarray(golden["depth"])
    noise = golden.get("noise")
    batch, patches = visual.shape[0], visual.shape[1] - skip_v
    if noise is not None:
        noise = jnp.asarray(noise).reshape(*noise.shape[:2], batch, patches, -1)
    probe = np.cos(np.arange(visual.size, dtype=visual.dtype)).reshape(visual.shape)
    balance_factor = 1e-3 if "balance_loss_coef" in meta else 1.0

    def objective(values):
        model = with_values(adapter, values)

        def one_layer(weights, noise):
            out = model.layer(weights, visual[:, skip_v:], depth[:, skip_d:], noise)
            return jnp.concatenate([visual[:, :skip_v], out.tokens], axis=1), out.balance_loss

        outputs, balance = jax.vmap(one_layer, in_axes=(0, None if noise is None else 0))(
            model.stacked(), noise
        )
        queries = model.queries()
        total = jnp.sum(outputs * probe) + jnp.sum(queries**2) + balance_factor * jnp.mean(balance)
        return total, {"outputs": outputs, "balance_losses": balance, "queries": queries}

    return objective
