"""A run taken out of its folder: to the authors' code, to a file of ours, or to transformers.

Frozen weights are read, and all weights written, leaf by leaf.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints import provenance
from spectralmoe_jax.checkpoints.hugging_face import write_folder
from spectralmoe_jax.checkpoints.released import ENCODERS, generated_leaves, require_released
from spectralmoe_jax.checkpoints.released_writing import depth_rest, released_shapes, released_tensors
from spectralmoe_jax.checkpoints.rules import Path as LeafPath
from spectralmoe_jax.checkpoints.rules import Shape
from spectralmoe_jax.checkpoints.store import FOLDER, read_run_config
from spectralmoe_jax.checkpoints.trained import Trained, open_trained
from spectralmoe_jax.checkpoints.write import aside, require_suffix, write_safetensors
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.state import leaves


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
