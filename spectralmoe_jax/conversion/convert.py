"""`spectralmoe convert`: an encoder, parts of a segmenter, or a trained run, written to one weight file.

Weights are read and written leaf by leaf. Parts of a segmenter are merged into one file under native names;
without a configuration they keep their sizes, and are resized when the file is read into a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CHECKPOINTS
from spectralmoe_jax.conversion.export import convert_trained
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model_files import (
    CONFIGURATION,
    carried_configuration,
    config_of_model,
    stored_configuration,
)
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights.encoder_file import (
    candidate_presets,
    infer_config,
    read_encoder,
    stored_leaves,
    stream_encoder,
)
from spectralmoe_jax.weights.formats import DEPTH_FORMATS, EncoderFile, recognise
from spectralmoe_jax.weights.hub import HUB
from spectralmoe_jax.weights.name_rules import LeafPath, Shape, stored_shapes, stream_tensors
from spectralmoe_jax.weights.pmt_files import IGNORED, is_plain_decoder, plain_decoder_rules
from spectralmoe_jax.weights.reading import WeightFile, manifest, open_weight_file
from spectralmoe_jax.weights.released import (
    ADAPTER_RULES,
    ENCODERS,
    PARTS,
    PIXEL_RULES,
    SEGMENTER_CONSTANTS,
    canonical,
    depth_rest,
    extract_encoder,
    generated_leaves,
    head_rules,
    is_native,
    is_segmenter,
    part_of,
    parts_of,
    stream_segmenter,
)
from spectralmoe_jax.weights.writing import (
    atomic_create,
    encoder_record,
    file_record,
    record_metadata,
    require_suffix,
    write_hugging_face_folder,
    write_published,
    write_safetensors,
)

TARGETS = ("safetensors", "released", "hf", "published", "pmt")


def convert(
    source: str,
    destination: str,
    *,
    format: str | None = None,
    preset: str | None = None,
    to: str | None = None,
    config: Configuration | None = None,
    allow_code: bool = False,
) -> str:
    """Convert an encoder's weights, parts of a segmenter, or a trained run.

    Args:
      source: a weight file as `open_weight_file` takes it; several, separated by commas, become one
        segmenter's file; or the folder that `spectralmoe train` wrote.
      destination: file or folder to write; it must not exist.
      format: format of an encoder's file, instead of the one recognised.
      preset: the preset that an encoder's file has to hold.
      to: one of `TARGETS`, by default `safetensors`.
      config: the configuration that a segmenter's parts are resized for, and that the file then holds;
        without it they keep their sizes. Other layouts than ours need it where the file holds none.
      allow_code: whether the configuration of a run or a file may name code, as in `inference.model.load`.

    Returns:
      One line that describes what was written.

    Raises:
      UserError: a file or an option is wrong; nothing is written then.
    """
    target = Path(destination)
    if to not in (None, *TARGETS):
        raise UserError(f"--to {to}: choose from {', '.join(TARGETS)}")
    # 1. a trained run
    if not source.startswith(HUB) and (Path(source) / CHECKPOINTS).is_dir():
        _refuse(f"{source} is a run's folder", {"--as": format, "--preset": preset, "--config": config})
        if to == "published":
            raise UserError(f"{source}: --to published is for an encoder's file; give that, or --to hf")
        stored = config_of_model(source, allow_code=allow_code)
        return convert_trained(source, target, to or "safetensors", stored)
    # 2. parts of a segmenter
    specs = [source] if Path(source).exists() else [spec.strip() for spec in source.split(",")]
    file = open_weight_file(specs[0])
    if len(specs) > 1 or is_segmenter(file):
        _refuse(f"{source} becomes a segmenter's file", {"--as": format, "--preset": preset})
        given = None if config is None else as_run_config(config)
        if to == "published":
            raise UserError(f"{source}: --to published is for an encoder's file; give that, or --to hf")
        if to not in (None, "safetensors"):
            given = config_of_model(source, allow_code=allow_code) if given is None else given
            return convert_trained(source, target, to, given)
        require_suffix(target, ".safetensors")
        return _merge(specs, target, given)
    # 3. an encoder
    _refuse(f"{source} is an encoder's file", {"--config": config})
    if to == "released":
        raise UserError(f"{source}: --to released writes a whole segmenter; give its file or a run's folder")
    if to == "pmt":
        raise UserError(f"{source}: --to pmt writes a plain mask decoder; give a segmenter's file or a run")
    return _convert_encoder(file, target, format, preset, to or "safetensors")


def _refuse(what: str, options: dict[str, object]) -> None:
    """Raise a UserError if the user gave an option that has no meaning here."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{what}, for which {' and '.join(given)} has no meaning: leave it out")


def _convert_encoder(file: WeightFile, target: Path, format: str | None, preset: str | None, to: str) -> str:
    encoder_file = recognise(file, format)
    fields, config = infer_config(encoder_file, preset)
    record = encoder_record(encoder_file, preset)
    shapes, stream = stored_leaves(config), stream_encoder(encoder_file, config)
    if to == "hf":
        known = {"heads", "norm_eps"} <= fields.keys() or preset or candidate_presets(encoder_file, fields)
        if not known:
            raise UserError(f"{file.spec}: does not say how many heads it has; give --preset NAME")
        with atomic_create(target) as folder:
            write_hugging_face_folder(folder, config, shapes, stream, record)
        return f"{target}: {encoder_file.format.title} as a Hugging Face folder"
    if to == "published":
        require_suffix(target, ".safetensors", ".pth")
        with atomic_create(target) as temporary:
            write_published(temporary, encoder_file, config, shapes, stream, record)
        return f"{target}: {encoder_file.format.title} under its publisher's names"
    require_suffix(target, ".safetensors")
    named = {"/".join(path): shape for path, shape in shapes.items()}
    # the patch embedding that DOFA generates belongs to a band set, not to the file
    stored = (("/".join(path), leaf) for path, leaf in stream if path in shapes)
    with atomic_create(target) as temporary:
        write_safetensors(temporary, named, stored, record_metadata(record))
    return f"{target}: {encoder_file.format.title}, {len(named)} leaves"


class Part(NamedTuple):
    """A part of a segmenter in a weight file.

    Attributes:
      name: one of `released.PARTS`.
      shapes: shapes of the leaves to write.
      stream: path and array of these leaves, perhaps with others, each read on demand.
      encoder_file: the encoder that the part is, or None.
    """

    name: str
    shapes: dict[LeafPath, Shape]
    stream: Iterator[tuple[LeafPath, np.ndarray]]
    encoder_file: EncoderFile | None


def _merge(specs: Sequence[str], target: Path, config: RunConfig | None) -> str:
    """Write one file that `config.model.weights` reads.

    Args:
      specs: weight files that hold parts of a segmenter or encoders. A file of (Prompt-)Depth-Anything is the
        depth encoder, any other encoder is the visual one.
      target: the file to write.
      config: the configuration that the parts are resized for; None keeps their sizes.

    Returns:
      One line that describes what was written.

    Raises:
      UserError: a file does not fit, or two files hold the same part.
    """
    # 1. find the parts, each in one file only
    files = [open_weight_file(spec) for spec in specs]
    settings = None if config is None else segmenter_config(config)
    parts: dict[str, Part] = {}
    for file in files:
        for part in _parts(file) if settings is None else _resized_parts(file, settings):
            if part.name in parts:
                raise UserError(f"{file.spec} holds the {part.name} part, which an earlier file holds too")
            parts[part.name] = part

    # 2. record where they come from
    encoders = {name: part.encoder_file for name, part in parts.items() if part.encoder_file is not None}
    record: dict[str, Any] = {
        "format": "segmenter",
        "files": [file_record(file) for file in files],
        "encoders": {name: encoder_record(encoder_file) for name, encoder_file in encoders.items()},
    }

    if config is not None:
        record[CONFIGURATION] = stored_configuration(config, parts)
    elif carried := carried_configuration(files):
        record[CONFIGURATION] = carried

    # 3. write leaf by leaf
    shapes = {"/".join(path): shape for part in parts.values() for path, shape in part.shapes.items()}
    stream = (("/".join(path), leaf) for part in parts.values() for path, leaf in part.stream)
    stored = ((name, leaf) for name, leaf in stream if name in shapes)
    with atomic_create(target) as temporary:
        write_safetensors(temporary, shapes, stored, record_metadata(record))
    return f"{target}: {', '.join(sorted(parts))} of a segmenter, {len(shapes)} leaves"


def _recognise_role(file: WeightFile) -> tuple[str, EncoderFile]:
    """Return `visual` or `depth`, the role of an encoder's own file, and the encoder."""
    encoder_file = recognise(file)
    earlier = manifest(file).get("format")
    is_depth = {encoder_file.format.name, earlier} & set(DEPTH_FORMATS)
    return "depth" if is_depth else "visual", encoder_file


def _parts(file: WeightFile) -> Iterator[Part]:
    """Yield the parts of a file in their own sizes."""
    if not is_segmenter(file):
        yield _encoder_part(*_recognise_role(file))
        return
    named = canonical(file)
    unexpected = sorted(name for name in named if not part_of(name))
    if unexpected:
        raise UserError(f"{file.spec}: {', '.join(unexpected[:12])}: not part of a segmenter")
    for name in sorted(parts_of(file)):
        if is_native(named):
            yield _native_part(name, named)
        elif name in ENCODERS:
            yield _with_depth_rest(_encoder_part(name, recognise(extract_encoder(file, name))), file)
        else:
            yield _trained_part(name, named)


def _with_depth_rest(part: Part, file: WeightFile) -> Part:
    """Return the depth encoder with what its file holds beside it, under the released names."""
    rest = depth_rest(file) if part.name == "depth" else {}
    shapes: dict[LeafPath, Shape] = {(name,): file.shape(old) for name, old in rest.items()}
    stream = (((name,), file[old]) for name, old in rest.items())
    return part._replace(shapes=part.shapes | shapes, stream=itertools.chain(part.stream, stream))


def _encoder_part(name: str, encoder_file: EncoderFile) -> Part:
    config = infer_config(encoder_file)[1]
    root = ENCODERS[name][1]
    shapes = {(*root, *path): shape for path, shape in stored_leaves(config).items()}
    stream = (((*root, *path), leaf) for path, leaf in stream_encoder(encoder_file, config))
    return Part(name, shapes, stream, encoder_file)


def _native_part(name: str, named: WeightFile) -> Part:
    paths = {tuple(key.split("/")): key for key in named if part_of(key) == name}
    shapes = {path: named.shape(key) for path, key in paths.items()}
    stream = ((path, named[key]) for path, key in paths.items())
    encoder_file = recognise(extract_encoder(named, name)) if name in ENCODERS else None
    return Part(name, shapes, stream, encoder_file)


def _trained_part(name: str, named: WeightFile) -> Part:
    """Return adapter, head or pixel statistics in the released layout, or a published plain decoder."""
    prefix, path = PARTS["adapter"]
    plain = is_plain_decoder(named)
    rules = {
        "adapter": [rule.under(prefix, path) for rule in ADAPTER_RULES],
        "head": plain_decoder_rules() if plain else head_rules(),
        "pixels": PIXEL_RULES,
    }[name]
    own = named.renamed(lambda tensor: tensor if part_of(tensor) == name else "")
    shapes = stored_shapes(rules, own)
    stream = stream_tensors(
        rules, shapes, own, file=named.spec, constants=SEGMENTER_CONSTANTS, ignored=IGNORED if plain else ()
    )
    return Part(name, shapes, stream, None)


def _resized_parts(file: WeightFile, settings: SegmenterConfig) -> Iterator[Part]:
    """Yield the parts of a file, resized for a configuration."""
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(settings)).items()}
    generated = generated_leaves(settings)

    def shapes_of(name: str) -> dict[LeafPath, Shape]:
        """Select the leaves of one part of the segmenter."""
        return {p: shape for p, shape in shapes.items() if part_of(p) == name and p not in generated}

    # 1. a file of a segmenter or parts of one
    if is_segmenter(file):
        unused = set() if settings.uses_depth else {"depth"}
        for name in sorted(parts_of(file) - unused):
            encoder_file = recognise(extract_encoder(file, name)) if name in ENCODERS else None
            stream = stream_segmenter(file, settings, shapes, {name})
            yield _with_depth_rest(Part(name, shapes_of(name), stream, encoder_file), file)
        return
    # 2. an encoder's own file
    name, encoder_file = _recognise_role(file)
    encoder = settings.visual if name == "visual" else settings.depth
    if encoder is None:
        raise UserError(f"{file.spec}: holds a depth encoder, but config.model.depth is None")
    root = ENCODERS[name][1]
    stream = (((*root, *path), leaf) for path, leaf in read_encoder(file, encoder))
    yield Part(name, shapes_of(name), stream, encoder_file)
