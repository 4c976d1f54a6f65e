"""`spectralmoe convert`: published weights to our files, trained runs to the released code's and others'."""

from __future__ import annotations

from pathlib import Path

from spectralmoe_jax.checkpoints.store import FOLDER
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.conversion.export import convert_run
from spectralmoe_jax.conversion.merge import merge
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights import writing as provenance
from spectralmoe_jax.weights.encoder_file import described, presets_of, stored_leaves, stream_found
from spectralmoe_jax.weights.formats import recognise
from spectralmoe_jax.weights.hub import HUB
from spectralmoe_jax.weights.hugging_face import write_folder
from spectralmoe_jax.weights.reading import Source, open_source
from spectralmoe_jax.weights.released import is_segmenter
from spectralmoe_jax.weights.writing import aside, require_suffix, write_safetensors

TARGETS = ("safetensors", "released", "hf")


def convert(source: str, destination: str, *, format: str | None = None, preset: str | None = None,
            to: str | None = None, config: Configuration | None = None) -> str:  # fmt: skip
    """Convert an encoder's weights, parts of a segmenter, or a run's folder.

    Args:
      source: see `sources.open_source`; several, separated by commas, become one segmenter's file; or the
        folder that `spectralmoe train` wrote.
      destination: what to write; it must not exist.
      format: of an encoder's file, where it should not be recognised.
      preset: the encoder that the file has to hold.
      to: of `TARGETS`, by default `safetensors`.
      config: what a segmenter's parts are made to fit; by default they stay as they are.

    Returns: what was done, in a line.

    Raises UserError; then nothing was written.
    """
    target = Path(destination)
    if to not in (None, *TARGETS):
        raise UserError(f"--to {to}: choose from {', '.join(TARGETS)}")
    if not source.startswith(HUB) and (Path(source) / FOLDER).is_dir():
        _refuse(f"{source} is a run's folder", {"--as": format, "--preset": preset, "--config": config})
        return convert_run(Path(source), target, to or "safetensors")
    specs = [source] if Path(source).exists() else [spec.strip() for spec in source.split(",")]
    opened = open_source(specs[0])
    if len(specs) > 1 or is_segmenter(opened):
        _refuse(f"{source} becomes a segmenter's file", {"--as": format, "--preset": preset})
        if to not in (None, "safetensors"):
            raise UserError(f"{source}: --to {to} is for the folder of a run; leave it out, or give a run")
        require_suffix(target, ".safetensors")
        return merge(specs, target, None if config is None else as_run_config(config))
    _refuse(f"{source} is an encoder's file", {"--config": config})
    if to == "released":
        raise UserError(f"{source}: --to released writes a whole segmenter; give the folder of a run")
    return _convert_encoder(opened, target, format, preset, to or "safetensors")


def _refuse(what: str, options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{what}, for which {' and '.join(given)} has no meaning: leave it out")


def _convert_encoder(source: Source, target: Path, format: str | None, preset: str | None, to: str) -> str:
    found = recognise(source, format)
    fields, config = described(found, preset)
    record = provenance.of_encoder(found, preset)
    shapes, stream = stored_leaves(config), stream_found(found, config)
    if to == "hf":
        if not {"heads", "norm_eps"} <= fields.keys() and not (preset or presets_of(found, fields)):
            raise UserError(f"{source.describe}: does not say how many heads it has; give --preset NAME")
        with aside(target) as folder:
            write_folder(folder, config, shapes, stream, record)
        return f"{target}: {found.format.title} as a Hugging Face folder"
    require_suffix(target, ".safetensors")
    named = {"/".join(path): shape for path, shape in shapes.items()}
    # DOFA's patch embedding belongs to a band set, not to the file
    stored = (("/".join(path), leaf) for path, leaf in stream if path in shapes)
    with aside(target) as file:
        write_safetensors(file, named, stored, provenance.header(record))
    return f"{target}: {found.format.title}, {len(named)} leaves"
