"""Write the best checkpoint of a run: to the authors' code, under native names, or to transformers.

Of a run with the plain mask decoder, the decoder alone can be written as its authors publish it.

Frozen weights are read, and all weights written, leaf by leaf.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints.store import FOLDER
from spectralmoe_jax.config.load import read_run_config
from spectralmoe_jax.config.model import PlainDecoderConfig
from spectralmoe_jax.errors import bad_value
from spectralmoe_jax.inference.model import TrainedRun, open_trained
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.positions import stretched_rope
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.formats import DEPTH_REST, EncoderFile
from spectralmoe_jax.weights.name_rules import LeafPath, Rule, Shape, write_each, written_shapes
from spectralmoe_jax.weights.pmt_files import published_shapes, published_tensors
from spectralmoe_jax.weights.reading import WeightFile
from spectralmoe_jax.weights.released import (
    ENCODERS,
    PARTS,
    SEGMENTER_CONSTANTS,
    canonical,
    generated_leaves,
    require_released,
    segmenter_rules,
)
from spectralmoe_jax.weights.writing import (
    atomic_create,
    encoder_record,
    folder_sha256,
    record_metadata,
    require_suffix,
    write_hugging_face_folder,
    write_safetensors,
    write_tensors_file,
)

log = logging.getLogger(__name__)
SUFFIXES = {
    "safetensors": (".safetensors",),
    "released": (".pth", ".safetensors"),
    "pmt": (".bin", ".pth", ".safetensors"),
}
_DEFINED_LEAVES = ("bias_mask", "rope_periods")  # some layouts define them instead of storing them
# ImageNet's mean and deviation, which the depth models were trained with and their code stores as buffers.
_PIXEL_STATISTICS = {"_mean": (0.485, 0.456, 0.406), "_std": (0.229, 0.224, 0.225)}


def convert_run(workdir: Path, target: Path, to: str) -> str:
    """Write the best checkpoint of a run.

    Args:
      workdir: folder of the run.
      target: file or folder to write.
      to: `safetensors` (native names), `released` (the authors' layout), `hf` (the visual encoder as a
        Hugging Face folder) or `pmt` (the plain mask decoder under its published names).

    Returns:
      One line that describes what was written.

    Raises:
      UserError: the run cannot be read, or cannot be written in this layout; nothing is written then.
    """
    if to in SUFFIXES:
        require_suffix(target, *SUFFIXES[to])
    config = read_run_config(workdir)
    if to == "released":
        require_released(segmenter_config(config), ("adapter", "head"), "--to released")
    if to == "pmt" and not isinstance(config.model.head, PlainDecoderConfig):
        must = f"--to pmt writes a decoder of kind {PlainDecoderConfig.kind!r}: choose another --to"
        raise bad_value("config.model.head.kind", config.model.head.kind, must)
    trained = open_trained(workdir, config)
    record = _run_record(workdir, trained, to)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(trained.settings)).items()}
    stream = ((path, np.asarray(leaf)) for path, leaf in trained.stream)
    with atomic_create(target) as temporary:
        if to == "hf":
            root = ENCODERS["visual"][1]
            own = {path[2:]: shape for path, shape in shapes.items() if path[:2] == root}
            visual = ((path[2:], leaf) for path, leaf in stream if path[:2] == root)
            write_hugging_face_folder(temporary, trained.settings.visual, own, visual, record)
        elif to == "safetensors":
            _write_native(temporary, trained.settings, shapes, stream, record)
        elif to == "pmt":
            head = {path: shape for path, shape in shapes.items() if path[0] == "head"}
            tensors = published_tensors(head, (item for item in stream if item[0] in head))
            write_tensors_file(temporary, published_shapes(head), tensors, record)
        else:
            _write_released(temporary, trained, shapes, stream, record)
    return f"{target}: the checkpoint of step {trained.step} of {workdir}, --to {to}"


def _run_record(workdir: Path, trained: TrainedRun, to: str) -> dict[str, Any]:
    """Return the record of origin: the run, its checkpoint, and the files of its encoders."""
    checkpoint = workdir / FOLDER / str(trained.step)
    encoders = {name: encoder for opened in trained.opened for name, encoder in opened.encoders.items()}
    return {
        "source": str(workdir),
        "format": to,
        "checkpoint": {"step": trained.step, "sha256": folder_sha256(checkpoint)},
        "encoders": {name: encoder_record(encoder) for name, encoder in encoders.items()},
    }


def _write_native(
    path: Path,
    config: SegmenterConfig,
    shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]],
    record: dict[str, Any],
) -> None:
    generated = generated_leaves(config)
    named = {"/".join(leaf): shape for leaf, shape in shapes.items() if leaf not in generated}
    stored = (("/".join(leaf), value) for leaf, value in stream if leaf not in generated)
    write_safetensors(path, named, stored, record_metadata(record))


def _write_released(
    path: Path,
    trained: TrainedRun,
    shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]],
    record: dict[str, Any],
) -> None:
    """Write a safetensors file, or a .pth file whose `state_dict` the authors' code loads.

    The authors' code loads it with `strict=True` where the depth encoder's file had the depth head.
    """
    config = trained.settings
    depth_rest = _depth_rest_of(trained)
    names = released_shapes(config, shapes) | {name: value.shape for name, value in depth_rest.items()}
    # those of the segmenter, then those of the depth encoder that it does not use
    tensors = itertools.chain(released_tensors(config, stream), depth_rest.items())
    write_tensors_file(path, names, tensors, record)


def released_tensors(
    config: SegmenterConfig, values: Iterable[tuple[LeafPath, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the state dict that the released code loads, tensor by tensor, in the order of `values`.

    What the released depth model holds beside its encoder is not part of it: see `_depth_rest`.

    Args:
      config: the segmenter.
      values: path and array of its leaves.

    Raises:
      UserError: the released code does not have one of the encoders.
    """
    rules = segmenter_rules(config.visual, config.depth)
    is_stored = _stored_in_released(config, rules)
    yield from write_each(rules, ((path, leaf) for path, leaf in values if is_stored(path)))
    yield from _constants(config)


def released_shapes(config: SegmenterConfig, shapes: Mapping[LeafPath, Shape]) -> dict[str, Shape]:
    """Return the shapes, by name, of all that `released_tensors` yields for leaves of these shapes."""
    rules = segmenter_rules(config.visual, config.depth)
    is_stored = _stored_in_released(config, rules)
    stored = written_shapes(rules, {path: shape for path, shape in shapes.items() if is_stored(path)})
    return stored | {name: value.shape for name, value in _constants(config)}


def _stored_in_released(config: SegmenterConfig, rules: list[Rule]) -> Callable[[LeafPath], bool]:
    """Return whether the released layout stores a leaf."""
    with_rule, generated = {rule.path for rule in rules}, generated_leaves(config)
    return lambda path: path not in generated and (path in with_rule or path[-1] not in _DEFINED_LEAVES)


def _constants(config: SegmenterConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield buffers that the released modules store although they follow from the configuration."""
    for name, value in SEGMENTER_CONSTANTS.items():
        yield name, np.full((1,), value, np.float32)
    if config.visual.family.rope == "stretched":
        side = config.visual.table_size
        rope = stretched_rope(config.visual.head_dim, side, side)
        # one module, which every block of the released code holds as well
        modules = ("rope.", *(f"blocks.{layer}.attn.rope." for layer in range(config.visual.layers)))
        for module in modules:
            yield f"backbone.{module}freqs_cos", np.asarray(rope.cos)
            yield f"backbone.{module}freqs_sin", np.asarray(rope.sin)


def _depth_rest_of(trained: TrainedRun) -> dict[str, np.ndarray]:
    if not trained.settings.uses_depth:
        return {}
    opened = next((opened for opened in trained.opened if "depth" in opened.parts), None)
    if opened is None:
        return _depth_rest(None, None)
    return _depth_rest(None if opened.whole else opened.encoders.get("depth"), opened.file)


def _depth_rest(encoder_file: EncoderFile | None, file: WeightFile | None) -> dict[str, np.ndarray]:
    """Return what the released depth model holds beside its encoder, under the released names.

    This is the mean and deviation of its pixels, and its head if the encoder's file has it.

    Args:
      encoder_file: the file of the depth encoder; None if it is the file of a segmenter.
      file: the same file, or the file of a segmenter; None if the encoder came from no file.
    """
    prefix = PARTS["depth"][0]
    rest: dict[str, np.ndarray] = {}
    if file is not None and (encoder_file is None or encoder_file.format.name == "depth_anything"):
        root = prefix if encoder_file is None else encoder_file.prefix.removesuffix("pretrained.")
        named = canonical(file) if encoder_file is None else file
        own = {name: name.removeprefix(root) for name in named if name.startswith(root)}
        rest = {
            prefix + short: named[name]
            for name, short in own.items()
            if any(re.fullmatch(pattern, short) for pattern in DEPTH_REST)
        }
    if not any(".depth_head." in name for name in rest):
        log.info(
            "the depth encoder came without its depth head: load the file with strict=False, or copy "
            "depth_anything.depth_head.* from Prompt-Depth-Anything's; the features do not use it"
        )
    return rest or {
        prefix + name: np.array(value, np.float32).reshape(1, 3, 1, 1)
        for name, value in _PIXEL_STATISTICS.items()
    }
