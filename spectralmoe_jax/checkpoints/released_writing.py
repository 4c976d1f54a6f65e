"""A segmenter in the authors' names and layout, as their code loads it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints.formats import DEPTH_REST, Found
from spectralmoe_jax.checkpoints.released import (
    SEGMENTER_CONSTANTS,
    canonical,
    generated_leaves,
    segmenter_rules,
)
from spectralmoe_jax.checkpoints.rules import Path, Rule, Shape, write_each, written_shapes
from spectralmoe_jax.checkpoints.sources import Source
from spectralmoe_jax.models.rope import stretched_rope
from spectralmoe_jax.models.segmenter import SegmenterConfig

log = logging.getLogger(__name__)
DEFINED = ("bias_mask", "rope_periods")  # leaves that some formats define instead of storing
# of the images that the depth models were trained on (ImageNet's), which their code keeps with the weights
PIXEL_STATISTICS = {"_mean": (0.485, 0.456, 0.406), "_std": (0.229, 0.224, 0.225)}


def released_tensors(
    config: SegmenterConfig, values: Iterable[tuple[Path, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict that the released code loads, tensor by tensor, in the order of `values`, but for the
    depth model's own head and statistics (see `depth_rest`).

    Raises UserError for an encoder that the released code does not have.
    """
    rules = segmenter_rules(config.visual, config.depth)
    wanted = _written_leaves(config, rules)
    yield from write_each(rules, ((path, leaf) for path, leaf in values if wanted(path)))
    yield from _constants(config)


def released_shapes(config: SegmenterConfig, shapes: Mapping[Path, Shape]) -> dict[str, Shape]:
    """Name -> shape of all that `released_tensors` gives for leaves of these shapes."""
    rules = segmenter_rules(config.visual, config.depth)
    wanted = _written_leaves(config, rules)
    stored = written_shapes(rules, {path: shape for path, shape in shapes.items() if wanted(path)})
    return stored | {name: value.shape for name, value in _constants(config)}


def _written_leaves(config: SegmenterConfig, rules: list[Rule]) -> Callable[[Path], bool]:
    stored, made = {rule.path for rule in rules}, generated_leaves(config)
    return lambda path: path not in made and not (path[-1] in DEFINED and path not in stored)


def _constants(config: SegmenterConfig) -> Iterator[tuple[str, np.ndarray]]:
    """What the released modules store although it follows from the configuration."""
    for name, value in SEGMENTER_CONSTANTS.items():
        yield name, np.full((1,), value, np.float32)
    if config.visual.family.rope == "stretched":
        side = config.visual.table_size
        rope = stretched_rope(config.visual.head_dim, side, side)
        places = ("rope.", *(f"blocks.{layer}.attn.rope." for layer in range(config.visual.layers)))
        for place in places:  # one module, which every block of the released code holds too
            yield f"backbone.{place}freqs_cos", np.asarray(rope.cos)
            yield f"backbone.{place}freqs_sin", np.asarray(rope.sin)


def depth_rest(found: Found | None, source: Source | None) -> dict[str, np.ndarray]:
    """What the released depth model holds beside its encoder, under the released names: mean and deviation of
    its pixels, and its head where the file that the encoder came from has it.

    Args:
      found: that file where it is an encoder's own. source: it, or the file of a segmenter; None for neither.
    """
    rest: dict[str, np.ndarray] = {}
    if source is not None and (found is None or found.format.name == "depth_anything"):
        root = "backbone.depth_anything." if found is None else found.prefix.removesuffix("pretrained.")
        named = canonical(source) if found is None else source
        own = {name: name.removeprefix(root) for name in named if name.startswith(root)}
        rest = {
            f"backbone.depth_anything.{short}": named[name]
            for name, short in own.items()
            if any(re.fullmatch(pattern, short) for pattern in DEPTH_REST)
        }
    if not any(".depth_head." in name for name in rest):
        log.info(
            "the depth encoder came without its depth head: load the file with strict=False, or copy "
            "depth_anything.depth_head.* from Prompt-Depth-Anything's; the features do not use it"
        )
    return rest or {
        f"backbone.depth_anything.{name}": np.array(value, np.float32).reshape(1, 3, 1, 1)
        for name, value in PIXEL_STATISTICS.items()
    }
