"""Pictures of a run on a few target images, stored with the run so that reports need no model.

`write_pictures` stores in `pictures.npz`, for each chosen window: image, truth, prediction, the expert of
every token, and the depth encoder's features as colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from data_pipelines.records import IGNORE, Record
from data_pipelines.splits import Splits
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.preview import stretch
from spectralmoe_jax.inference.sliding_window import RoutedStep, padded_tile
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.npz import read_npz
from spectralmoe_jax.parameters import join, split
from spectralmoe_jax.sensors import visible

PICTURES_FILE = "pictures.npz"
SCENES = 3
"""Windows that are kept, each of another image."""
LONGEST = 256
"""Pixels of a kept picture's edge; of larger windows every second pixel is kept, or every third, ..."""


class ScenePictures(NamedTuple):
    """Pictures of one window of an image of the target.

    Attributes:
      domain: domain of the image.
      name: name of the image.
      image: (h, w, 3) uint8, stretched for the eye.
      truth: (h, w) uint8 class ids, 255 where unlabelled.
      prediction: (h, w) uint8 class ids.
      experts: (L, J, rows, columns) uint16 from 0, one entry for each token; J is 0 without experts.
      depth: (layers, rows, columns, 3) uint8, the first three principal components of depth tokens; no layers
        without a depth encoder.
      depth_layers: (layers,), the layers of `depth`, from 1.
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


def write_pictures(
    workdir: Path, config: RunConfig, segmenter: Segmenter, step: RoutedStep, splits: Splits
) -> list[ScenePictures]:
    """Make the pictures of a run and store them in its folder.

    Args:
      workdir: folder of the run.
      config: its configuration.
      segmenter: the trained model.
      step: the segmenter's, from `inference.predict_step.make_routed_step`.
      splits: the images; those of the target are shown.
    """
    scenes = make_pictures(config, segmenter, step, splits)
    fields = {
        f"{i}/{field}": np.asarray(value)
        for i, scene in enumerate(scenes)
        for field, value in scene._asdict().items()
    }
    with atomic_write(workdir / PICTURES_FILE) as aside:
        np.savez_compressed(aside, allow_pickle=False, **fields)
    return scenes


def read_pictures(workdir: Path) -> list[ScenePictures]:
    """Read what `write_pictures` stored; an empty list where there is nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / PICTURES_FILE
    if not path.is_file():
        return []
    remedy = "remove it, and `spectralmoe report` makes it anew"
    stored = read_npz(path, remedy, what="file of pictures")
    count = len({key.partition("/")[0] for key in stored})
    if stored.keys() != {f"{i}/{field}" for i in range(count) for field in ScenePictures._fields}:
        raise UserError(f"{path}: damaged, pictures are missing: {remedy}")
    values = [[stored[f"{i}/{field}"] for field in ScenePictures._fields] for i in range(count)]
    found = [ScenePictures(*arrays) for arrays in values]  # type: ignore[arg-type]
    if not all(_is_sound(scene) for scene in found):
        raise UserError(f"{path}: damaged, its pictures are of other shapes: {remedy}")
    return [scene._replace(domain=str(scene.domain), name=str(scene.name)) for scene in found]


def _is_sound(scene: ScenePictures) -> bool:
    """Return whether stored arrays have the types and shapes of `ScenePictures`."""
    texts, bytes_ = (scene.domain, scene.name), (scene.image, scene.truth, scene.prediction, scene.depth)
    size = np.shape(scene.truth)
    return (
        all(np.shape(text) == () and np.asarray(text).dtype.kind == "U" for text in texts)
        and all(array.dtype == np.uint8 for array in bytes_)
        and len(size) == 2
        and 0 not in size
        and (np.shape(scene.prediction), np.shape(scene.image)) == (size, (*size, 3))
        and scene.experts.dtype.kind == "u"
        and scene.experts.ndim == 4
        and scene.depth.ndim == 4
        and scene.depth.shape[-1] == 3
        and scene.depth_layers.shape == scene.depth.shape[:1]
        and scene.depth_layers.dtype.kind in "iu"
    )


def make_pictures(
    config: RunConfig, segmenter: Segmenter, step: RoutedStep, splits: Splits
) -> list[ScenePictures]:
    """Make pictures of one window of each of `SCENES` images, from as many domains as possible.

    Args:
      config: the run's configuration.
      segmenter: the trained model.
      step: the segmenter's, from `inference.predict_step.make_routed_step`.
      splits: the images; those of the target are shown.
    """
    # 1. choose windows
    window, batch = config.evaluate.window, config.evaluate.batch_size
    source, records = splits.of("target")
    records = choose_records(records, SCENES)
    tiles, labels = [], []
    for record in records:
        image, label = source.read_image(record), source.read_label(record)
        row, column = most_varied(label, window)
        tiles.append(padded_tile(image, row, column, window))
        labels.append(label[row : row + window, column : column + window])

    # 2. run the model, on a batch of the size it is compiled for
    filled = np.stack([tiles[i % len(tiles)] for i in range(max(batch, len(tiles)))])
    scores, experts = step(filled)  # (B, S, S, C), (L, J, B, N)
    side, _ = segmenter.backbone.visual.grid(filled.shape)
    layers, depth = _depth_pictures(segmenter, np.stack(tiles), side)

    # 3. crop to the image, and keep every n-th pixel
    shown = visible(tuple(config.bands), config.sensor) or _first_three(len(config.bands))
    found = []
    for i, (record, tile, label) in enumerate(zip(records, tiles, labels, strict=True)):
        height, width = label.shape
        every = -(-window // LONGEST)
        kept = np.s_[:height:every, :width:every]
        rows, columns = (-(-length * side // window) for length in (height, width))
        maps = experts[:, :, i].reshape(*experts.shape[:2], side, side)  # (L, J, N) -> (L, J, h, w)
        found.append(
            ScenePictures(
                domain=record.domain,
                name=record.name,
                image=np.rint(255 * stretch(tile[kept], shown)).astype(np.uint8),
                truth=label[kept].astype(np.uint8),
                prediction=scores[i].argmax(axis=-1)[kept].astype(np.uint8),
                experts=maps[:, :, :rows, :columns].astype(np.uint16),
                depth=depth[i][:, :rows, :columns],
                depth_layers=layers,
            )
        )
    return found


def choose_records(records: Sequence[Record], count: int) -> list[Record]:
    """Choose at most `count` records: the first of each domain, then the second of each, and so on."""
    by_domain: dict[str, list[Record]] = {}
    for record in records:
        by_domain.setdefault(record.domain, []).append(record)
    order = sorted((place, i) for i, own in enumerate(by_domain.values()) for place in range(len(own)))
    domains = list(by_domain.values())
    return [domains[i][place] for place, i in order[:count]]


def most_varied(label: np.ndarray, window: int) -> tuple[int, int]:
    """Return the first pixel of the window with the most evenly mixed classes, of those edge to edge."""
    rows, columns = (range(0, max(1, length - window + 1), window) for length in label.shape[:2])
    starts = [(row, column) for row in rows for column in columns]

    def mixture(start: tuple[int, int]) -> float:
        """Compute the entropy of the classes of a window."""
        part = label[start[0] : start[0] + window, start[1] : start[1] + window]
        counts = np.bincount(part[part != IGNORE].ravel())
        shares = counts[counts > 0] / part.size
        return float(-(shares * np.log(shares)).sum())

    return max(starts, key=mixture)


def _first_three(bands: int) -> tuple[int, ...]:
    return (0, 1, 2) if bands >= 3 else (0, 0, 0)


def _depth_pictures(segmenter: Segmenter, tiles: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw depth tokens of the first, middle and last layer.

    Returns:
      The layers, from 1, and pictures (B, layers, side, side, 3) uint8.
    """
    encoder = segmenter.backbone.depth
    if encoder is None:
        return np.zeros(0, np.int64), np.zeros((len(tiles), 0, side, side, 3), np.uint8)
    count = encoder.config.layers
    layers = np.unique([1, (count + 1) // 2, count])
    trainable, frozen = split(segmenter)

    @jax.jit
    def tokens(trainable: Any, frozen: Any, pixels: jax.Array) -> jax.Array:
        """Compute the depth tokens after every layer: (layers, B, N, D)."""
        model = join(segmenter, trainable, frozen)
        depth = model.backbone.depth
        assert depth is not None
        bands = np.asarray(model.backbone.depth_bands)
        image, windows = model.normalise(pixels)[..., bands], model.backbone.windows(pixels.shape)
        rows, columns = (side, side) if windows is None else windows.shape
        stacked = depth.stacked(rows, columns)

        def layer(carry: jax.Array, weights: Any) -> tuple[jax.Array, jax.Array]:
            """Apply one layer; keep its patch tokens."""
            out = stacked.apply(carry, weights)
            return out, out[:, depth.config.prefix_tokens :]

        seen = image if windows is None else windows.cut(image)
        found = jax.lax.scan(layer, depth.embed(seen), stacked.weights)[1]
        if windows is None:
            return found
        maps = found.reshape(*found.shape[:2], rows, columns, -1)
        return jax.vmap(windows.mean)(maps).reshape(len(found), len(pixels), side * side, -1)

    found = np.asarray(tokens(trainable, frozen, tiles), np.float32)[layers - 1]  # (layers, B, N, D)
    pictures = [principal_colours(one).reshape(len(tiles), side, side, 3) for one in found]
    return layers, np.stack(pictures, axis=1)


def principal_colours(tokens: np.ndarray) -> np.ndarray:
    """Map tokens (..., D) to colours (..., 3) uint8 by their first three principal components.

    The components are those of all tokens together, each stretched from its 2nd to its 98th percentile. A
    component's sign is that of its largest weight.
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    components = rows @ axes
    low, high = np.percentile(components, (2, 98), axis=0)
    scaled = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8).reshape(*tokens.shape[:-1], -1)
