"""Check golden files of SoftCon and Copernicus-FM: every step of the encoder, with the authors' weights.

A golden file is `NAME.npz` beside `weights.safetensors`, or `NAME.safetensors`, which has the published
names. The keys of the arrays tell the encoder; goldens/README.md describes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import normalise
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.copernicus_fm import KINDS, CopernicusFM, Metadata
from spectralmoe_jax.models.encoders.dofa import NANOMETRES
from spectralmoe_jax.models.encoders.encoder import all_layers, clip_pixels
from spectralmoe_jax.models.encoders.vit import VisionTransformer
from spectralmoe_jax.parameters import Path as LeafPath
from spectralmoe_jax.parameters import with_values
from spectralmoe_jax.parity.comparison import Check, Shape, compare, require_arrays
from spectralmoe_jax.weights.encoder_file import read_encoder
from spectralmoe_jax.weights.formats import file_fields, recognise
from spectralmoe_jax.weights.reading import WeightFile, open_weight_file

WEIGHTS = "weights.safetensors"
NORM_EPS = 1e-6
HEAD_WIDTH, SMALL_HEADS = 64, 4  # width of a head of published sizes; number of heads of reduced ones
SOFTCON_TOKENS = 2e-5
"""Largest absolute error of SoftCon's tokens in float32."""
TOKENS, FEATURES, KERNELS = 5e-5, 5e-6, 1e-5
"""Of Copernicus-FM: largest absolute errors of tokens and of features; relative error of kernels."""


class GoldenFamily(NamedTuple):
    """An encoder family with golden files.

    Attributes:
      format: name of the format of the weights.
      marks: keys that tell its files from others.
      inputs: shapes of the arrays that the quantities are computed from, given all arrays.
      outputs: names of the quantities that a file may hold, as a regular expression.
      compute: the quantities by name, from the file's arrays, the weights and the encoder's sizes.
      bound: largest error of a quantity, and whether it is absolute.
    """

    format: str
    marks: frozenset[str]
    inputs: Callable[[Mapping[str, np.ndarray]], dict[str, Shape]]
    outputs: str
    compute: Callable[[Mapping[str, np.ndarray], WeightFile, dict[str, Any]], dict[str, Any]]
    bound: Callable[[str], tuple[float, bool]]


def is_golden(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether an `.npz` file is a golden of this module, by the keys of its arrays."""
    return _family_of(arrays) is not None


def verify_encoder(path: Path, arrays: Mapping[str, np.ndarray]) -> list[Check]:
    """Check one golden file for which `is_golden` is true, in float32.

    Errors are absolute, except those of kernels. Without the weights beside it, the result is one check
    without a bound that reports this. Runs of the authors' own float32 code are compared with the same
    bounds as the float64 values.

    Raises:
      UserError: the file or its weights are not readable, or do not fit each other.
    """
    family = _family_of(arrays)
    assert family is not None
    # 1. arrays
    known = {key for key in arrays if re.fullmatch(rf"({family.outputs})(_f32_original)?", key)}
    require_arrays(path, arrays, family.inputs(arrays), known)
    # 2. weights
    own = path.with_suffix(".safetensors")
    weights = own if own.exists() else path.with_name(WEIGHTS)
    if not weights.exists():
        return [Check(path.name, "everything", np.nan, None, f"skipped: {WEIGHTS} is not here")]
    file = open_weight_file(weights)
    fields = file_fields(recognise(file, family.format))
    width = fields["width"]
    heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else SMALL_HEADS
    # 3. quantities
    with jax.default_matmul_precision("highest"):
        ours = family.compute(arrays, file, {**fields, "heads": heads, "norm_eps": NORM_EPS})
    unknown = sorted(key for key in known if key.removesuffix("_f32_original") not in ours)
    if unknown:
        raise UserError(f"{path}: {', '.join(unknown)}: not a quantity of this encoder; correct the file")
    return [_check(path.name, key, ours, arrays, *family.bound(key)) for key in arrays if key in known]


def _family_of(arrays: Mapping[str, np.ndarray]) -> GoldenFamily | None:
    return next((family for family in FAMILIES if family.marks <= arrays.keys()), None)


def _check(
    file: str,
    key: str,
    ours: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    bound: float,
    absolute: bool,
) -> Check:
    """Compare a quantity, which golden files store with or without axes of one, and maps channels first."""
    value, golden = np.asarray(ours[key.removesuffix("_f32_original")]), arrays[key]
    if value.ndim == 4 and golden.ndim == 3:
        value = value.reshape(*value.shape[:1], -1, value.shape[-1])  # a map as a list of tokens
    elif value.ndim == 4:
        value = np.moveaxis(value, -1, 1)
    if value.size == golden.size and value.ndim != golden.ndim:
        value = value.reshape(golden.shape)
    return compare(file, key, value, golden, bound, absolute=absolute)


def _opened(config: EncoderConfig, file: WeightFile, format: str) -> tuple[Any, dict[LeafPath, Array]]:
    """Return an abstract encoder, and the weights of a file for it: arguments of what is compiled."""
    abstract = nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))
    return abstract, {path: jnp.asarray(leaf) for path, leaf in read_encoder(file, config, format)}


def _channels_last(image: np.ndarray) -> Array:
    return jnp.asarray(image.transpose(0, 2, 3, 1), jnp.float32)


# SoftCon


def _softcon_inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    bands = np.shape(arrays["dn"])[1]
    return {"dn": (None, bands, None, None), "mean": (bands,), "std": (bands,)}


def _softcon(arrays: Mapping[str, np.ndarray], file: WeightFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Compute the quantities of a golden of SoftCon, whose network gets `u8` / 255."""
    abstract, weights = _opened(EncoderConfig(**fields), file, "softcon")
    image = _channels_last(arrays["u8"] / 255)
    h, w = abstract.grid(image.shape)

    @jax.jit
    def run(weights: dict[LeafPath, Array], image: Array) -> dict[str, Array]:
        """Compute all tokens."""
        encoder: VisionTransformer = with_values(abstract, weights)
        layers = all_layers(encoder, image)  # (L, B, 1 + N, D)
        normed = encoder.norm(layers)
        maps = normed[:, :, 1:].reshape(*layers.shape[:2], h, w, -1)
        return {
            "patch_tokens": encoder.patches(image),
            "pos": encoder.positions(h, w),
            "tokens_in": encoder.embed(image),
            **{f"block{number}": layer for number, layer in enumerate(layers)},
            "x_prenorm": layers[-1],
            "x_norm_clstoken": normed[-1, :, 0],
            "x_norm_patchtokens": normed[-1, :, 1:],
            "output": normed[-1, :, 0],
            **{f"map_block{number}_normed": layer for number, layer in enumerate(maps)},
        }

    return {**run(weights, image), "u8": _softcon_levels(arrays)}


def _softcon_levels(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the 8-bit levels of the digital numbers: as a model gets them, but in float64."""
    mean, std = arrays["mean"], arrays["std"]
    with jax.enable_x64(True):
        pixels = jnp.asarray(arrays["dn"].transpose(0, 2, 3, 1), jnp.float64)
        normalised = (pixels - jnp.asarray(mean - 2 * std)) / jnp.asarray(4 * std)
        levels = np.asarray(clip_pixels(normalised, (0.0, 1.0), True)) * 255
    return np.rint(levels)


def _softcon_bound(key: str) -> tuple[float, bool]:
    return (0.0 if key == "u8" else SOFTCON_TOKENS), True


# Copernicus-FM


def _copernicus_inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, Shape]:
    batch, bands = np.shape(arrays["x"])[:2]
    return {
        "x": (batch, bands, None, None), "wavelengths": (bands,), "bandwidths": (bands,), "meta": (batch, 4),
        "kernel_size": (), "global_pool": (),
    }  # fmt: skip


def _copernicus(arrays: Mapping[str, np.ndarray], file: WeightFile, fields: dict[str, Any]) -> dict[str, Any]:
    """Compute the quantities of a golden of Copernicus-FM."""
    bands = {
        "in_channels": len(arrays["wavelengths"]),
        "wavelengths": tuple((arrays["wavelengths"] / NANOMETRES).tolist()),
        "bandwidths": tuple((arrays["bandwidths"] / NANOMETRES).tolist()),
    }
    config = EncoderConfig(**{**fields, **bands, "patch_size": int(arrays["kernel_size"])})
    abstract, weights = _opened(config, file, "copernicus_fm")
    meta = arrays["meta"]
    # one image without a value switches the whole batch to the learned token
    known = Metadata(
        *(None if np.isnan(part).any() else part for part in (meta[:, :2], meta[:, 3], meta[:, 2]))
    )
    head = {name: jnp.asarray(file[name]) for name in file if name.startswith(("norm.", "fc_norm.", "head."))}

    @jax.jit
    def run(weights: dict[LeafPath, Array], image: Array, head: dict[str, Array]) -> dict[str, Array]:
        """Compute all tokens, and what the patch embedding is made of."""
        encoder: CopernicusFM = with_values(abstract, weights)
        generator: Any = encoder.generator
        made = generator.made_of(config.wavelengths, config.bandwidths)
        inputs = encoder.metadata.inputs(known.codes(config.width))
        tokens = encoder.embed(image, known)
        layers = _blocks(encoder, image, tokens)  # (L, B, 1 + N, D)
        feature = _pooled(layers[-1], head, bool(arrays["global_pool"]))
        return {
            "waves": generator.codes(config.wavelengths, config.bandwidths),
            "fclayer": made.bands,
            "hyper_tokens": made.tokens,
            "kernel": made.kernel.transpose(3, 2, 0, 1)[None],
            "kernel_bias": made.bias,
            "patch_tokens": encoder.patches(image),
            **_named("fc_in", inputs),
            **_named("fc", encoder.metadata.outputs(inputs)),
            "tokens_in": tokens,
            **{f"block{number}": layer for number, layer in enumerate(layers)},
            "feature": feature,
            "logit": feature @ head["head.weight"].T + head["head.bias"],
        }

    return run(weights, _channels_last(arrays["x"]), head)


def _named(what: str, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return values of the kinds of metadata under the authors' names."""
    return {
        f"{name}_{what}": values[kind] for name, kind in zip(("coord", "scale", "time"), KINDS, strict=True)
    }


def _blocks(encoder: VisionTransformer, image: Array, tokens: Array) -> Array:
    """Run all blocks: (B, 1 + N, D) -> (L, B, 1 + N, D)."""
    layers = encoder.stacked(*encoder.grid(image.shape))

    def step(x: Array, layer: Any) -> tuple[Array, Array]:
        """Run one block: scan body."""
        x = layers.apply(x, layer)
        return x, x

    return jax.lax.scan(step, tokens, layers.weights)[1]


def _pooled(x: Array, head: Mapping[str, Array], global_pool: bool) -> Array:
    """Feature of an image (B, D): the normalised mean of the patch tokens, or the normalised class token."""
    name, pooled = ("fc_norm", x[:, 1:].mean(axis=1)) if global_pool else ("norm", x[:, 0])
    return normalise(pooled, (-1,), head[f"{name}.weight"], head[f"{name}.bias"], NORM_EPS)


def _copernicus_bound(key: str) -> tuple[float, bool]:
    if key.startswith("kernel"):
        return KERNELS, False
    return (FEATURES if key.startswith(("feature", "logit")) else TOKENS), True


FAMILIES = (
    GoldenFamily(
        "softcon",
        frozenset(("dn", "mean", "std", "u8", "x_norm_patchtokens")),
        _softcon_inputs,
        r"u8|patch_tokens|pos|tokens_in|block\d+|x_prenorm|x_norm_(cls|patch)tokens?|output"
        r"|map_block\d+_normed",
        _softcon,
        _softcon_bound,
    ),
    GoldenFamily(
        "copernicus_fm",
        frozenset(("x", "wavelengths", "bandwidths", "meta", "kernel_size", "global_pool")),
        _copernicus_inputs,
        r"waves|fclayer|hyper_tokens|kernel|kernel_bias|patch_tokens|(coord|scale|time)_fc(_in)?|tokens_in"
        r"|block\d+|feature|logit",
        _copernicus,
        _copernicus_bound,
    ),
)
"""Families of this module. Golden files of other encoders have a module of their own."""
