"""The published files of the plain mask decoder (github.com/tue-mps/pmt), which hold a decoder alone.

Their names start with `network.`; a compiled module leaves fragments `._orig_mod` in them. Within this
package a decoder's tensors carry the prefix of a segmenter's head, as those of Mask2Former do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from spectralmoe_jax.weights.name_rules import LeafPath, Rule, Shape, write_each, written_shapes
from spectralmoe_jax.weights.reading import WeightFile

PUBLISHED, HEAD = "network.", "decode_head."
_FRAGMENT = "._orig_mod"
_LOSS_WEIGHTS = "criterion.empty_weight"
_MARK = "decoder.q.weight"  # a tensor that no other head has
# Buffers that training alone reads: counted batches, and the probabilities of masked attention.
BUFFERS = (r"bn\.\d+\.num_batches_tracked", r"decoder\.attn_mask_probs")
IGNORED = tuple(rf"decode_head\.{pattern}" for pattern in BUFFERS)


def plain_decoder_rules(prefix: str = HEAD, path: LeafPath = ("head",)) -> list[Rule]:
    """Return one rule for every leaf of `PlainDecoder`.

    Args:
      prefix: what the tensor names start with.
      path: path of the head in the model.
    """
    block, lateral, stage = (
        "decoder.blocks.{block}.",
        "decoder.lateral_projections.{level}.",
        "decoder.upscale.{stage}.",
    )
    rules = [
        # levels
        *_affine("bn.{level}", ("levels", "norm"), "scale"),
        Rule("bn.{level}.running_mean", ("levels", "norm", "mean")),
        Rule("bn.{level}.running_var", ("levels", "norm", "variance")),
        *_affine(lateral + "0", ("levels", "first")),
        *_affine(lateral + "2", ("levels", "second")),
        Rule("decoder.scalers.{level}", ("levels", "scaler")),
        # queries and blocks
        Rule("decoder.q.weight", ("queries",)),
        *_affine(block + "norm1", ("blocks", "norm1"), "scale"),
        *_affine(block + "attention.q_proj", ("blocks", "query")),
        Rule(block + "attention.k_proj.weight", ("blocks", "key", "kernel"), "linear"),
        *_affine(block + "attention.v_proj", ("blocks", "value")),
        *_affine(block + "attention.o_proj", ("blocks", "output")),
        Rule(block + "layer_scale1.lambda1", ("blocks", "scale1")),
        *_affine(block + "norm2", ("blocks", "norm2"), "scale"),
        *_affine(block + "mlp.up_proj", ("blocks", "up")),
        *_affine(block + "mlp.down_proj", ("blocks", "down")),
        Rule(block + "layer_scale2.lambda1", ("blocks", "scale2")),
        # predictions
        *_affine("decoder.decoder_norm", ("norm",), "scale"),
        Rule(stage + "conv1.weight", ("upscaling", "kernel"), "transposed_conv"),
        Rule(stage + "conv1.bias", ("upscaling", "bias")),
        Rule(stage + "conv2.weight", ("upscaling", "depthwise_kernel"), "depthwise"),
        *_affine(stage + "norm", ("upscaling", "norm"), "scale"),
        *_affine("decoder.mask_head.0", ("mask_embed", "first")),
        *_affine("decoder.mask_head.2", ("mask_embed", "second")),
        *_affine("decoder.mask_head.4", ("mask_embed", "third")),
        *_affine("decoder.class_head", ("class_head",)),
    ]
    return [rule.under(prefix, path) for rule in rules]


def _affine(name: str, path: LeafPath, weight: str = "kernel") -> list[Rule]:
    """Return the rules of a linear layer's weight and bias, or of a norm's."""
    transform = "linear" if weight == "kernel" else "copy"
    return [Rule(f"{name}.weight", (*path, weight), transform), Rule(f"{name}.bias", (*path, "bias"))]


def is_plain_decoder(names: Iterable[str]) -> bool:
    """Return whether tensor names, published or those of a head, are a plain mask decoder's."""
    marks = {PUBLISHED + _MARK, HEAD + _MARK}
    return any(name.replace(_FRAGMENT, "") in marks for name in names)


def as_head(file: WeightFile) -> WeightFile:
    """Return a published file under the names of a segmenter's head, without the weights of its loss."""

    def rename(name: str) -> str:
        """Rename a tensor; empty drops it."""
        plain = name.replace(_FRAGMENT, "")
        if plain == _LOSS_WEIGHTS:
            return ""
        return HEAD + plain.removeprefix(PUBLISHED) if plain.startswith(PUBLISHED) else plain

    return file.renamed(rename)


def published_shapes(shapes: Mapping[LeafPath, Shape]) -> dict[str, Shape]:
    """Return the shapes, by name, of all that `published_tensors` yields for leaves of these shapes."""
    stored = written_shapes(plain_decoder_rules(PUBLISHED), shapes)
    return stored | {name: value.shape for name, value in _buffers(shapes).items()}


def published_tensors(
    shapes: Mapping[LeafPath, Shape], values: Iterable[tuple[LeafPath, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a published file's tensors, in the order of `values`, then its buffers.

    Args:
      shapes: shapes of the head's leaves, by path in the segmenter.
      values: path and array of each.
    """
    yield from write_each(plain_decoder_rules(PUBLISHED), values)
    yield from _buffers(shapes).items()


def _buffers(shapes: Mapping[LeafPath, Shape]) -> dict[str, np.ndarray]:
    """Return the buffers of a decoder that is trained: masked attention has ended."""
    levels, blocks = shapes["head", "levels", "scaler"][0], shapes["head", "blocks", "scale1"][0]
    counts = {f"{PUBLISHED}bn.{level}.num_batches_tracked": np.zeros((), np.int64) for level in range(levels)}
    return counts | {f"{PUBLISHED}decoder.attn_mask_probs": np.zeros(blocks, np.float32)}
