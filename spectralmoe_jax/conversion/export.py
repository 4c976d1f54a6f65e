"""Write a trained segmenter: to the authors' code, under native names, or to transformers.

It is the best checkpoint of a run, or what weight files hold. The plain mask decoder alone can be written as
its authors publish it.

Frozen weights are read, and all weights written, leaf by leaf.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.config.model import PlainDecoderConfig
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CHECKPOINTS
from spectralmoe_jax.errors import bad_value
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.calibration import calibration_file
from spectralmoe_jax.inference.model_files import CONFIGURATION, stored_configuration
from spectralmoe_jax.inference.segmenter_weights import TrainedSegmenter, open_segmenter
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.positions import stretched_rope
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.name_rules import LeafPath, Rule, Shape, write_each, written_shapes
from spectralmoe_jax.weights.pmt_files import published_shapes, published_tensors
from spectralmoe_jax.weights.released import (
    ENCODERS,
    PARTS,
    SEGMENTER_CONSTANTS,
    depth_rest,
    generated_leaves,
    is_depth_rest,
    require_released,
    segmenter_rules,
)
from spectralmoe_jax.weights.writing import (
    atomic_create,
    encoder_record,
    file_record,
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
_WRITTEN = {"hf": ("visual",), "pmt": ()}  # encoders that a layout holds, where not both
_DEFINED_LEAVES = ("bias_mask", "rope_periods")  # some layouts define them instead of storing them
# ImageNet's mean and deviation, which the depth models were trained with and their code stores as buffers.
_PIXEL_STATISTICS = {"_mean": (0.485, 0.456, 0.406), "_std": (0.229, 0.224, 0.225)}


def convert_trained(
    model: str,
    target: Path,
    to: str,
    config: RunConfig,
    edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record,
) -> str:
    """Write a trained segmenter.

    Args:
      model: folder of a run, whose best checkpoint is written, or weight files separated by commas.
      target: file or folder to write.
      to: `safetensors` (native names), `released` (the authors' layout), `hf` (the visual encoder as a
        Hugging Face folder) or `pmt` (the plain mask decoder under its published names).
      config: its configuration.
      edit: change of the record of origin, before it is written.

    Returns:
      One line that describes what was written.

    Raises:
      UserError: it cannot be read, or cannot be written in this layout; nothing is written then.
    """
    if to in SUFFIXES:
        require_suffix(target, *SUFFIXES[to])
    if to == "released":
        require_released(segmenter_config(config), ("adapter", "head"), "--to released")
    if to == "pmt" and not isinstance(config.model.head, PlainDecoderConfig):
        must = f"--to pmt writes a decoder of kind {PlainDecoderConfig.kind!r}: choose another --to"
        raise bad_value("config.model.head.kind", config.model.head.kind, must)
    trained = open_segmenter(model, config)
    record = edit(_record(model, trained, to, config))
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(trained.settings)).items()}
    stream = ((path, np.asarray(leaf)) for path, leaf in trained.stream)
    with atomic_create(target) as temporary:
        if to == "hf":
            root = ENCODERS["visual"][1]
            own = {path[2:]: shape for path, shape in shapes.items() if path[:2] == root}
            visual = ((path[2:], leaf) for path, leaf in stream if path[:2] == root)
            write_hugging_face_folder(temporary, trained.settings.visual, own, visual, record)
        elif to == "safetensors":
            _write_native(temporary, trained, shapes, stream, record)
        elif to == "pmt":
            head = {path: shape for path, shape in shapes.items() if path[0] == "head"}
            tensors = published_tensors(head, (item for item in stream if item[0] in head))
            write_tensors_file(temporary, published_shapes(head), tensors, record)
        else:
            _write_released(temporary, trained, shapes, stream, record)
    if to == "safetensors":
        _copy_calibration(model, target)
    origin = model if trained.step is None else f"the checkpoint of step {trained.step} of {model}"
    return f"{target}: {origin}, --to {to}"


def _copy_calibration(model: str, target: Path) -> None:
    """Copy the calibration that is kept with a model, if there is one, to where the file's is looked for."""
    source, place = calibration_file(model), calibration_file(target)
    if source is not None and place is not None and source.is_file():
        with atomic_write(place) as aside:
            shutil.copyfile(source, aside)


def _record(model: str, trained: TrainedSegmenter, to: str, config: RunConfig) -> dict[str, Any]:
    """Return the record of origin: the run and its checkpoint, or the files, with the configuration."""
    origin: dict[str, Any] = {"files": [file_record(opened.file) for opened in trained.opened]}
    if trained.step is not None:
        checkpoint = Path(model) / CHECKPOINTS / str(trained.step)
        origin = {"checkpoint": {"step": trained.step, "sha256": folder_sha256(checkpoint)}}
    encoders = {name: encoder for opened in trained.opened for name, encoder in opened.encoders.items()}
    return {
        "source": model,
        "format": to,
        **origin,
        "encoders": {name: encoder_record(encoder) for name, encoder in encoders.items()},
        CONFIGURATION: stored_configuration(config, _WRITTEN.get(to, ("visual", "depth"))),
    }


def _write_native(
    path: Path,
    trained: TrainedSegmenter,
    shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]],
    record: dict[str, Any],
) -> None:
    """Write a safetensors file under native names, without leaves that are generated from wavelengths."""
    generated = generated_leaves(trained.settings)
    named = {"/".join(leaf): shape for leaf, shape in shapes.items() if leaf not in generated}
    stored = (("/".join(leaf), value) for leaf, value in stream if leaf not in generated)
    rest = _found_depth_rest(trained)  # kept under its released names, for the way back
    named |= {name: value.shape for name, value in rest.items()}
    write_safetensors(path, named, itertools.chain(stored, rest.items()), record_metadata(record))


def _write_released(
    path: Path,
    trained: TrainedSegmenter,
    shapes: Mapping[LeafPath, Shape],
    stream: Iterator[tuple[LeafPath, np.ndarray]],
    record: dict[str, Any],
) -> None:
    """Write a safetensors file, or a .pth file whose `state_dict` the authors' code loads.

    The authors' code loads it with `strict=True` where the depth encoder's file had the depth head.
    """
    config = trained.settings
    rest = _depth_rest_of(trained)
    names = released_shapes(config, shapes) | {name: value.shape for name, value in rest.items()}
    # those of the segmenter, then those of the depth encoder that it does not use
    tensors = itertools.chain(released_tensors(config, stream), rest.items())
    write_tensors_file(path, names, tensors, record)


def released_tensors(
    config: SegmenterConfig, values: Iterable[tuple[LeafPath, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the state dict that the released code loads, tensor by tensor, in the order of `values`.

    What the released depth model holds beside its encoder is not part of it: see `_depth_rest_of`.

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


def _depth_rest_of(trained: TrainedSegmenter) -> dict[str, np.ndarray]:
    """Return what the released depth model holds beside its encoder, under the released names.

    This is the mean and deviation of its pixels, and its head if the encoder's file has it. Of a segmenter
    from weight files, it is what they hold.
    """
    if not trained.settings.uses_depth:
        return {}
    rest = _found_depth_rest(trained)
    if trained.step is None:
        return rest  # what a file holds, no more and no less
    if not any(".depth_head." in name for name in rest):
        log.info(
            "the depth encoder came without its depth head: load the file with strict=False, or copy "
            "depth_anything.depth_head.* from Prompt-Depth-Anything's; the features do not use it"
        )
    prefix = PARTS["depth"][0]
    return rest or {
        prefix + name: np.array(value, np.float32).reshape(1, 3, 1, 1)
        for name, value in _PIXEL_STATISTICS.items()
    }


def _found_depth_rest(trained: TrainedSegmenter) -> dict[str, np.ndarray]:
    """Return what the files of a segmenter hold of its depth model beside the encoder."""
    opened = next((opened for opened in trained.opened if "depth" in opened.parts), None)
    if opened is None or not trained.settings.uses_depth:
        return {}
    prefix = PARTS["depth"][0]
    encoder_file = None if opened.whole else opened.encoders.get("depth")
    if encoder_file is None:
        return {name: opened.file[old] for name, old in depth_rest(opened.file).items()}
    if encoder_file.format.name != "depth_anything":
        return {}
    root = encoder_file.prefix.removesuffix("pretrained.")
    own = {prefix + name.removeprefix(root): name for name in opened.file if name.startswith(root)}
    return {name: opened.file[old] for name, old in own.items() if is_depth_rest(name)}
