"""Files of a segmenter's parts, and of encoders, made into one file under our names, leaf by leaf.

Without a configuration sizes are those of the files, and nothing is resampled: that happens when the file is
read into a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights import name_rules as rules
from spectralmoe_jax.weights import writing as provenance
from spectralmoe_jax.weights.encoder_file import described, read_encoder, stored_leaves, stream_found
from spectralmoe_jax.weights.formats import DEPTH_FORMATS, Found, manifest, recognise
from spectralmoe_jax.weights.name_rules import Shape
from spectralmoe_jax.weights.reading import Source, open_source
from spectralmoe_jax.weights.released import (
    ADAPTER,
    ENCODERS,
    PIXELS,
    SEGMENTER_CONSTANTS,
    canonical,
    encoder_alone,
    generated_leaves,
    head_rules,
    is_native,
    is_segmenter,
    part_of,
    parts_of,
    stream_segmenter,
    under,
)
from spectralmoe_jax.weights.writing import aside, write_safetensors

Stream = Iterator[tuple[rules.Path, np.ndarray]]
_RULES = {
    "adapter": under("backbone.depthmoe.", ("backbone", "adapter"), ADAPTER),
    "head": head_rules("decode_head.", ("head",)),
    "pixels": PIXELS,
}


class Part(NamedTuple):
    """A part of a segmenter in a file. shapes: of the leaves to be stored. stream: these leaves, perhaps with
    others, each read as it is asked for. found: the encoder that the part is, or None."""

    name: str
    shapes: dict[rules.Path, Shape]
    stream: Stream
    found: Found | None


def merge(specs: Sequence[str], target: Path, config: RunConfig | None) -> str:
    """Write one file that `config.model.weights` reads.

    Args:
      specs: files as `sources.open_source` takes them: parts of a segmenter in the authors' names or ours, or
        encoders; a file of (Prompt-)Depth-Anything is the depth encoder, any other the visual one.
      config: what the parts are made to fit; None leaves them as they are.

    Returns: what was done, in a line.

    Raises UserError where a file does not fit or two hold the same part; then nothing is written.
    """
    sources = [open_source(spec) for spec in specs]
    settings = None if config is None else segmenter_config(config)
    parts: dict[str, Part] = {}
    for source in sources:
        for part in _parts(source) if settings is None else _fitted_parts(source, settings):
            if part.name in parts:
                raise UserError(
                    f"{source.describe} holds the {part.name} part, which a file before it holds too"
                )
            parts[part.name] = part
    record = {
        "format": "segmenter", "files": [provenance.of_source(source) for source in sources],
        "encoders": {p.name: provenance.of_encoder(p.found) for p in parts.values() if p.found is not None},
    }  # fmt: skip
    shapes = {"/".join(path): shape for part in parts.values() for path, shape in part.shapes.items()}
    stream = (("/".join(path), leaf) for part in parts.values() for path, leaf in part.stream)
    stored = ((name, leaf) for name, leaf in stream if name in shapes)
    with aside(target) as file:
        write_safetensors(file, shapes, stored, provenance.header(record))
    return f"{target}: {', '.join(sorted(parts))} of a segmenter, {len(shapes)} leaves"


def _encoder_name(source: Source) -> tuple[str, Found]:
    """Which of the two an encoder's own file is."""
    found = recognise(source)
    earlier = manifest(source).get("format")
    return "depth" if {found.format.name, earlier} & set(DEPTH_FORMATS) else "visual", found


def _parts(source: Source) -> Iterator[Part]:
    """The parts of a file in its own sizes."""
    if not is_segmenter(source):
        yield _encoder_part(*_encoder_name(source))
        return
    named = canonical(source)
    strangers = sorted(name for name in named if not part_of(name))
    if strangers:
        raise UserError(f"{source.describe}: {', '.join(strangers[:12])}: of no part of a segmenter")
    for name in sorted(parts_of(source)):
        if is_native(named):
            yield _native_part(name, named)
        elif name in ENCODERS:
            yield _encoder_part(name, recognise(encoder_alone(source, name)))
        else:
            yield _trained_part(name, named)


def _encoder_part(name: str, found: Found) -> Part:
    config = described(found)[1]
    root = ENCODERS[name][1]
    shapes = {(*root, *path): shape for path, shape in stored_leaves(config).items()}
    return Part(name, shapes, (((*root, *path), leaf) for path, leaf in stream_found(found, config)), found)


def _native_part(name: str, named: Source) -> Part:
    paths = {tuple(key.split("/")): key for key in named if part_of(key) == name}
    shapes = {path: named.shape(key) for path, key in paths.items()}
    stream = ((path, named[key]) for path, key in paths.items())
    found = recognise(encoder_alone(named, name)) if name in ENCODERS else None
    return Part(name, shapes, stream, found)


def _trained_part(name: str, named: Source) -> Part:
    own = named.renamed(lambda tensor: tensor if part_of(tensor) == name else "")
    shapes = rules.stored_shapes(_RULES[name], own)
    stream = rules.stream_tensors(
        _RULES[name], shapes, own, source=named.describe, constants=SEGMENTER_CONSTANTS
    )
    return Part(name, shapes, stream, None)


def _fitted_parts(source: Source, settings: SegmenterConfig) -> Iterator[Part]:
    """The parts of a file, made to fit a configuration."""
    everything = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(settings)).items()}
    made = generated_leaves(settings)

    def part(name: str, stream: Stream, found: Found | None) -> Part:
        own = {p: s for p, s in everything.items() if part_of(p) == name and p not in made}
        return Part(name, own, stream, found)

    if is_segmenter(source):
        unused = set() if settings.uses_depth else {"depth"}
        for name in sorted(parts_of(source) - unused):
            found = recognise(encoder_alone(source, name)) if name in ENCODERS else None
            yield part(name, stream_segmenter(source, settings, everything, {name}), found)
        return
    name, found = _encoder_name(source)
    encoder = settings.visual if name == "visual" else settings.depth
    if encoder is None:
        raise UserError(f"{source.describe}: a depth encoder, which config.model.depth is None for")
    root = ENCODERS[name][1]
    yield part(name, (((*root, *path), leaf) for path, leaf in read_encoder(source, encoder)), found)
