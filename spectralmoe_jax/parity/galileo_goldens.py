"""Check golden files of Galileo's encoder: patch embeddings, every block, the last norm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.encoders.encoder import every_layer
from spectralmoe_jax.models.encoders.galileo import KERNEL, STATISTICS, UNITS, GalileoEncoder
from spectralmoe_jax.models.positions import patch_matrix
from spectralmoe_jax.parity.comparison import Check, compare, raise_problems, require_arrays
from spectralmoe_jax.weights.encoder_file import fill_encoder, infer_config
from spectralmoe_jax.weights.formats import recognise
from spectralmoe_jax.weights.reading import open_weight_file

# Largest absolute errors in float32: of embeddings, of blocks, after the last norm; of pseudo-inverses.
EMBEDDING, BLOCK, NORM, PSEUDO_INVERSE = 2e-5, 5e-4, 1e-4, 2e-6
WEIGHTS = "weights.safetensors"
INPUTS = {
    "dn": (None, None, None, None), "bands": (None,), "months": (None,), "visible_groups": (None,),
    "patch_size": (), "input_resolution_m": (),
}  # fmt: skip
OUTPUTS = (
    "x_normalised", "visible_group_index", "patch_embed", "tokens_in", "final_norm",
)  # fmt: skip


def is_golden(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the arrays of an `.npz` file are those of a golden file of Galileo."""
    return set(INPUTS) <= arrays.keys() or "resize_8to4" in arrays


def verify_encoder(path: Path, arrays: Mapping[str, np.ndarray]) -> list[Check]:
    """Check the arrays of one golden file beside the weights they were made with.

    Without the weights, the result is one check without a bound that reports this.

    Raises:
      UserError: a file is not readable or does not fit the others.
    """
    weights = path.with_name(WEIGHTS)
    if not weights.exists():
        return [Check(path.name, "everything", np.nan, None, f"skipped: {WEIGHTS} is not here")]
    if "resize_8to4" in arrays:
        return _check_kernels(path, arrays, weights)
    blocks = [key for key in arrays if key.startswith("block")]
    require_arrays(path, arrays, INPUTS, (*OUTPUTS, *blocks))
    problems = {"unknown bands": [name for name in map(str, arrays["bands"]) if name not in STATISTICS]}
    raise_problems(path, problems)
    with jax.default_matmul_precision("highest"):
        ours = _stages(arrays, weights)
    bounds = {"patch_embed": EMBEDDING, "tokens_in": EMBEDDING, "final_norm": NORM}
    return [
        compare(path.name, key, value, _flat(arrays[key]), bounds.get(key, BLOCK), absolute=True)
        for key, value in ours.items()
        if key in arrays
    ]


def _stages(arrays: Mapping[str, np.ndarray], weights: Path) -> dict[str, jax.Array]:
    """Compute every stage, (B, N G, D) each."""
    images = jnp.asarray(arrays["dn"] / UNITS, jnp.float32)
    # images of a file may be of different months, of which an encoder has one
    encoders = [golden_encoder(arrays, weights, index) for index in range(len(images))]
    encoder, singles = encoders[0], jnp.split(images, len(images))
    embedded = encoder.embed_groups(images)
    tokens = jnp.concatenate([each.embed(image) for each, image in zip(encoders, singles, strict=True)])
    blocks = every_layer(encoder, tokens, *encoder.grid(images.shape))  # (L, B, N G, D)
    stages = {"patch_embed": _flat(embedded), "tokens_in": tokens}
    stages |= {f"block{layer}": block for layer, block in enumerate(blocks)}
    return stages | {"final_norm": encoder.norm(blocks[-1])}


def golden_encoder(arrays: Mapping[str, np.ndarray], weights: Path, index: int) -> GalileoEncoder:
    """Make the encoder for one image of a golden file."""
    file = open_weight_file(weights)
    fields, _ = infer_config(recognise(file))
    bands = tuple(map(str, arrays["bands"]))
    config = EncoderConfig(
        **{"heads": 8, **fields},
        patch_size=int(arrays["patch_size"]),
        window=max(arrays["dn"].shape[1:3]),
        resolution=float(arrays["input_resolution_m"]),
        month=int(arrays["months"][index]) + 1,
        ndvi="NDVI" in arrays["visible_groups"],
        in_channels=len(bands),
        band_names=bands,
        channels=bands,
    )
    encoder = GalileoEncoder(config, rngs=nnx.Rngs(0))
    fill_encoder(encoder, file)
    return encoder


def _check_kernels(path: Path, arrays: Mapping[str, np.ndarray], weights: Path) -> list[Check]:
    """Check resized kernels and the matrices that resize them."""
    stored = open_weight_file(weights)["space_time_embed.S2_RGB.proj.weight"]  # (D, 3, 8, 8)
    checks = []
    for key, golden in arrays.items():
        name, _, patch = key.rpartition("_p")
        if name not in ("pinv", "kernel_rgb"):
            continue
        resize = patch_matrix(KERNEL, int(patch))
        ours = np.kron(resize, resize)  # (p^2, 64)
        if name == "kernel_rgb":
            ours = np.einsum("pi,qj,dcij->dcpq", resize, resize, stored)
        checks.append(compare(path.name, key, ours, golden, PSEUDO_INVERSE, absolute=True))
    return checks


def _flat(array: Any) -> Any:
    """(B, ..., D) -> (B, N G, D)."""
    return array.reshape(len(array), -1, array.shape[-1])
