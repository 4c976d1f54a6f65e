"""What a report shows of a model at work on some scenes; kept with the run, so that reports need no model.

Which expert every token of an image went to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange

from data_pipelines.records import IGNORE, Record
from data_pipelines.splits import Splits
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.panel import stretch
from spectralmoe_jax.inference.sliding_window import RoutedStep, in_batches, padded_tile
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parameters import join, split
from spectralmoe_jax.sensors import visible


def has_experts(segmenter: Segmenter) -> bool:
    """Whether the adapter sends tokens to experts."""
    return hasattr(segmenter.config.adapter, "num_experts")


def expert_maps(step: RoutedStep, image: np.ndarray, *, window: int, batch_size: int) -> np.ndarray:
    """The strongest expert of every token, layer by layer.

    Args:
      step: see `checkpoints.trained.make_routed_step`.
      image: raw pixels (H, W, C).
      window: side of the windows, laid edge to edge, that the image is seen through; a multiple of the
        patch size. batch_size: windows a call.

    Returns: (L, J, h, w) int32, experts numbered from 0, J modalities with the visual first, one entry a
    patch of the image.

    Raises UserError for an adapter without experts.
    """
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    tiles = (
        ((row, column), padded_tile(image, row * window, column * window, window))
        for row in range(rows)
        for column in range(columns)
    )
    by_tile = in_batches(tiles, lambda batch: np.moveaxis(step(batch)[1], 2, 0), batch_size)
    experts = np.stack([found for _, found in by_tile])  # (windows, L, J, N)
    if not experts.shape[2]:
        raise UserError("config.model.adapter.kind: this adapter has no experts")
    side = math.isqrt(experts.shape[3])
    patch = window // side
    whole = rearrange(experts, "(r c) l j (h w) -> l j (r h) (c w)", r=rows, h=side)
    return whole[:, :, : math.ceil(height / patch), : math.ceil(width / patch)]


PICTURES = "pictures.npz"
SCENES = 3
LONGEST = 256
"""Pixels of a kept picture's edge; larger windows keep every second pixel, or third, ..."""


class Scene(NamedTuple):
    """A window of an image of the target.

    image: (h, w, 3) uint8, for the eye. truth, prediction: (h, w) uint8, 255 where not labelled. experts:
    (L, J, th, tw) uint16 from 0, one entry a token; J is 0 without experts. depth: (D, th, tw, 3) uint8, the
    first three principal components of depth tokens of layers `depth_layers`, from 1; D is 0 without.
    """

    domain: str
    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    experts: np.ndarray
    depth: np.ndarray
    depth_layers: np.ndarray

    @property
    def title(self) -> str:
        """The image's name, after its domain where the name does not begin with it."""
        return self.name if self.name.startswith(self.domain) else f"{self.domain}: {self.name}"


def keep_pictures(workdir: Path, config: RunConfig, segmenter: Segmenter, step: RoutedStep,
                  splits: Splits) -> list[Scene]:  # fmt: skip
    """Make the pictures of a run from a few images of the target, and store them in its folder.

    Args:
      step: the segmenter's; see `checkpoints.trained.make_routed_step`.
    """
    scenes = make_pictures(config, segmenter, step, splits)
    with atomic_write(workdir / PICTURES) as aside:
        fields = {f"{i}/{field}": np.asarray(value)
                  for i, scene in enumerate(scenes) for field, value in scene._asdict().items()}  # fmt: skip
        np.savez_compressed(aside, allow_pickle=False, **fields)
    return scenes


def read_pictures(workdir: Path) -> list[Scene]:
    """What `keep_pictures` stored, or nothing."""
    if not (workdir / PICTURES).is_file():
        return []
    with np.load(workdir / PICTURES, allow_pickle=False) as stored:
        count = len({key.partition("/")[0] for key in stored})
        found = [{field: stored[f"{i}/{field}"] for field in Scene._fields} for i in range(count)]
    return [Scene(**scene)._replace(domain=str(scene["domain"]), name=str(scene["name"])) for scene in found]


def make_pictures(config: RunConfig, segmenter: Segmenter, step: RoutedStep, splits: Splits) -> list[Scene]:
    """One window of each of `SCENES` images, from as many domains as there are."""
    window, batch = config.evaluate.window, config.evaluate.batch_size
    source, records = splits.of("target")
    records = choose_records(records, SCENES)
    tiles, labels = [], []
    for record in records:
        image, label = source.read_image(record), source.read_label(record)
        row, column = most_varied(label, window)
        tiles.append(padded_tile(image, row, column, window))
        labels.append(label[row : row + window, column : column + window])
    filled = np.stack([tiles[i % len(tiles)] for i in range(max(batch, len(tiles)))])
    scores, experts = step(filled)
    side = window // segmenter.config.visual.patch_size
    layers, depth = _depth_pictures(segmenter, np.stack(tiles), side)
    shown = visible(tuple(config.bands), config.sensor) or _first_three(len(config.bands))
    found = []
    for i, (record, tile, label) in enumerate(zip(records, tiles, labels, strict=True)):
        height, width = label.shape
        every = -(-window // LONGEST)
        here = np.s_[:height:every, :width:every]
        rows, columns = (-(-length * side // window) for length in (height, width))
        maps = experts[:, :, i].reshape(*experts.shape[:2], side, side)
        found.append(
            Scene(
                domain=record.domain,
                name=record.name,
                image=np.rint(255 * stretch(tile[here], shown)).astype(np.uint8),
                truth=label[here].astype(np.uint8),
                prediction=scores[i].argmax(axis=-1)[here].astype(np.uint8),
                experts=maps[:, :, :rows, :columns].astype(np.uint16),
                depth=depth[i][:, :rows, :columns],
                depth_layers=layers,
            )
        )
    return found


def choose_records(records: Sequence[Record], count: int) -> list[Record]:
    """The first of each domain, then the second of each, and so on, at most `count`."""
    by_domain: dict[str, list[Record]] = {}
    for record in records:
        by_domain.setdefault(record.domain, []).append(record)
    order = sorted((place, i) for i, own in enumerate(by_domain.values()) for place in range(len(own)))
    domains = list(by_domain.values())
    return [domains[i][place] for place, i in order[:count]]


def most_varied(label: np.ndarray, window: int) -> tuple[int, int]:
    """Where the window with the most evenly mixed classes begins, of those laid edge to edge."""
    starts = [(r, c) for r in range(0, max(1, label.shape[0] - window + 1), window)
              for c in range(0, max(1, label.shape[1] - window + 1), window)]  # fmt: skip

    def mixture(start: tuple[int, int]) -> float:
        part = label[start[0] : start[0] + window, start[1] : start[1] + window]
        counts = np.bincount(part[part != IGNORE].ravel())
        shares = counts[counts > 0] / part.size
        return float(-(shares * np.log(shares)).sum())

    return max(starts, key=mixture)


def _first_three(bands: int) -> tuple[int, ...]:
    return (0, 1, 2) if bands >= 3 else (0, 0, 0)


def _depth_pictures(segmenter: Segmenter, tiles: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Layers from 1, (D,), and pictures (B, D, side, side, 3) uint8: the first, middle and last layer."""
    encoder = segmenter.backbone.depth
    if encoder is None:
        return np.zeros(0, np.int64), np.zeros((len(tiles), 0, side, side, 3), np.uint8)
    count = encoder.config.layers
    layers = np.unique([1, (count + 1) // 2, count])
    trainable, frozen = split(segmenter)

    @jax.jit
    def tokens(trainable: Any, frozen: Any, pixels: jax.Array) -> jax.Array:
        model = join(segmenter, trainable, frozen)
        depth = model.backbone.depth
        assert depth is not None
        bands = np.asarray(model.backbone.depth_bands)
        stacked = depth.stacked(side, side)

        def layer(carry: jax.Array, weights: Any) -> tuple[jax.Array, jax.Array]:
            out = stacked.apply(carry, weights)
            return out, out[:, depth.config.prefix_tokens :]

        return jax.lax.scan(layer, depth.embed(model.normalise(pixels)[..., bands]), stacked.weights)[1]

    found = np.asarray(tokens(trainable, frozen, tiles), np.float32)[layers - 1]  # (D, B, N, width)
    pictures = [principal_colours(one).reshape(len(tiles), side, side, 3) for one in found]
    return layers, np.stack(pictures, axis=1)


def principal_colours(tokens: np.ndarray) -> np.ndarray:
    """Tokens (..., D) -> (..., 3) uint8: their first three principal components, over all of them together,
    each from its 2nd to its 98th percentile; a component's sign is that of its largest weight."""
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    components = rows @ axes
    low, high = np.percentile(components, (2, 98), axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8).reshape(*tokens.shape[:-1], -1)
