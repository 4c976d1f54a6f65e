"""A run taken out of its folder: to the authors' code, to a file of ours, or to transformers.

Frozen weights are read, and all weights written, leaf by leaf.

A segmenter in the authors' names and layout, as their code loads it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints.store import FOLDER
from spectralmoe_jax.config.load import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model import Trained, open_trained
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.positions import stretched_rope
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights import writing as provenance
from spectralmoe_jax.weights.formats import DEPTH_REST, Found
from spectralmoe_jax.weights.hugging_face import write_folder
from spectralmoe_jax.weights.name_rules import Path as LeafPath
from spectralmoe_jax.weights.name_rules import Rule, Shape, write_each, written_shapes
from spectralmoe_jax.weights.reading import Source
from spectralmoe_jax.weights.released import (
    ENCODERS,
    SEGMENTER_CONSTANTS,
    canonical,
    generated_leaves,
    require_released,
    segmenter_rules,
)
from spectralmoe_jax.weights.writing import aside, require_suffix, write_safetensors

log = logging.getLogger(__name__)
DEFINED = ("bias_mask", "rope_periods")  # leaves that some formats define instead of storing
# of the images that the depth models were trained on (ImageNet's), which their code keeps with the weights
PIXEL_STATISTICS = {"_mean": (0.485, 0.456, 0.406), "_std": (0.229, 0.224, 0.225)}


def released_tensors(
    config: SegmenterConfig, values: Iterable[tuple[LeafPath, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict that the released code loads, tensor by tensor, in the order of `values`, but for the
    depth model's own head and statistics (see `depth_rest`).

    Raises UserError for an encoder that the released code does not have.
    """
    rules = segmenter_rules(config.visual, config.depth)
    wanted = _written_leaves(config, rules)
    yield from write_each(rules, ((path, leaf) for path, leaf in values if wanted(path)))
    yield from _constants(config)


def released_shapes(config: SegmenterConfig, shapes: Mapping[LeafPath, Shape]) -> dict[str, Shape]:
    """Name -> shape of all that `released_tensors` gives for leaves of these shapes."""
    rules = segmenter_rules(config.visual, config.depth)
    wanted = _written_leaves(config, rules)
    stored = written_shapes(rules, {path: shape for path, shape in shapes.items() if wanted(path)})
    return stored | {name: value.shape for name, value in _constants(config)}


def _written_leaves(config: SegmenterConfig, rules: list[Rule]) -> Callable[[LeafPath], bool]:
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


def convert_run(workdir: Path, target: Path, to: str) -> str:
    """Write the best checkpoint of a run.

    Args:
      to: `safetensors` (our names), `released` (the authors') or `hf` (the visual encoder as a folder).

    Returns: what was done, in a line.

    Raises UserError; then nothing was written.
    """
    if to != "hf":
        require_suffix(target, *((".safetensors",) if to == "safetensors" else (".pth", ".safetensors")))
    config = read_run_config(workdir)
    if to == "released":
        require_released(segmenter_config(config), ("adapter", "head"), "--to released")
    trained = open_trained(workdir, config)
    record = _record(workdir, trained, to)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(trained.settings)).items()}
    stream = ((path, np.asarray(leaf)) for path, leaf in trained.stream)
    with aside(target) as place:
        if to == "hf":
            root = ENCODERS["visual"][1]
            visual = ((path[2:], leaf) for path, leaf in stream if path[:2] == root)
            own = {path[2:]: shape for path, shape in shapes.items() if path[:2] == root}
            write_folder(place, trained.settings.visual, own, visual, record)
        elif to == "safetensors":
            _write_native(place, trained, shapes, stream, record)
        else:
            _write_released(place, target.suffix, trained, shapes, stream, record)
    return f"{target}: the checkpoint of step {trained.step} of {workdir}, --to {to}"


def _record(workdir: Path, trained: Trained, to: str) -> dict[str, Any]:
    """What the header says: the run, its checkpoint, and the files that its encoders came from."""
    checkpoint = workdir / FOLDER / str(trained.step)
    found = {name: encoder for file in trained.opened for name, encoder in file.encoders.items()}
    return {
        "source": str(workdir), "format": to,
        "checkpoint": {"step": trained.step, "sha256": provenance.of_folder(checkpoint)},
        "encoders": {name: provenance.of_encoder(encoder) for name, encoder in found.items()},
    }  # fmt: skip


def _write_native(
    place: Path, trained: Trained, shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]], record: dict[str, Any],
) -> None:  # fmt: skip
    left_out = generated_leaves(trained.settings)
    named = {"/".join(path): shape for path, shape in shapes.items() if path not in left_out}
    stored = (("/".join(path), leaf) for path, leaf in stream if path not in left_out)
    write_safetensors(place, named, stored, provenance.header(record))


def _write_released(
    place: Path, suffix: str, trained: Trained, shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]], record: dict[str, Any],
) -> None:  # fmt: skip
    """safetensors, or a .pth whose `state_dict` the authors' code loads with strict=True where the depth
    encoder's file had its head."""
    settings = trained.settings
    rest = _depth_rest(trained)
    names = released_shapes(settings, shapes) | {name: value.shape for name, value in rest.items()}
    if suffix == ".safetensors":

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            yield from released_tensors(settings, stream)
            yield from rest.items()

        write_safetensors(place, names, tensors(), provenance.header(record))
        return
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing a .pth file needs PyTorch: pip install torch (or give .safetensors)"
        ) from None
    state = {name: torch.from_numpy(tensor) for name, tensor in released_tensors(settings, stream)}
    state |= {name: torch.from_numpy(value) for name, value in rest.items()}
    torch.save({"meta": {"spectralmoe": json.dumps(record)}, "state_dict": state}, place)


def _depth_rest(trained: Trained) -> dict[str, np.ndarray]:
    if not trained.settings.uses_depth:
        return {}
    file = next((file for file in trained.opened if "depth" in file.parts), None)
    if file is None:
        return depth_rest(None, None)
    return depth_rest(file.encoders.get("depth") if not file.whole else None, file.source)
