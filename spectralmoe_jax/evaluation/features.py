"""Frozen features of whole images, stage by stage of the encoder, cached on disk.

An encoder sees windows; features of a place are the mean over all windows that contain it, since features
depend on the position in a window. Stages are the embedding, every block, and the last norm where the encoder
has one.

Letters of shapes here: S stages, h, w grid of patches of a whole image, D width; the rest as in
`inference.sliding_window`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.predict_step import checked
from spectralmoe_jax.inference.sliding_window import mean_over_windows
from spectralmoe_jax.models.encoders.encoder import Encoder, every_layer, mean_over_groups
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parameters import join, leaves, split

EncodeTiles = Callable[[np.ndarray], np.ndarray]
"""Raw tiles (B, W, W, bands) -> features (B, W / patch, W / patch, S, D)."""


def stage_names(encoder: Encoder) -> list[str]:
    """Return the names of an encoder's stages, in order."""
    blocks = [f"block {layer}" for layer in range(encoder.config.layers)]
    return ["embedding", *blocks, *(["last norm"] if encoder.config.has_norm else [])]


class FeatureExtractor:
    """Features of whole images from a segmenter's visual encoder, its adapter left out.

    Args:
      segmenter: segmenter with weights.
      settings: side and overlap of the windows, windows in a call. An encoder whose own windows overlap
        (`config.model.visual.window_overlap`) has windows of its own side and overlap.
      cache: folder that keeps the features of each image, or None. Their file is named by a digest of the
        pixels, the weights and the settings, so that it never fits anything else.

    Attributes:
      stages: names of the stages.
      computed: number of images whose features were computed rather than read.
    """

    def __init__(self, segmenter: Segmenter, settings: EvaluateConfig, cache: Path | None = None):
        encoder = segmenter.backbone.visual
        self.patch = encoder.config.patch_size
        if encoder.config.window_overlap:
            inner = (encoder.config.window, encoder.config.window_overlap)
            window, overlap = (patches * self.patch for patches in inner)
            share = (settings.window // window) ** 2  # as many pixels in a call
            size = settings.batch_size * max(share, 1)
            settings = dataclasses.replace(settings, window=window, overlap=overlap, batch_size=size)
        for name in ("window", "overlap"):
            if getattr(settings, name) % self.patch:
                raise UserError(
                    f"config.evaluate.{name} = {getattr(settings, name)}: must be a multiple of "
                    f"config.model.visual.patch_size = {self.patch}"
                )
        self.stages, self.computed = stage_names(encoder), 0
        self._settings, self._cache = settings, cache
        self._encode = make_encode(segmenter)
        self._digest = b"" if cache is None else _digest_of(segmenter, settings)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Features (h, w, S, D) float32 of raw pixels (H, W, bands), h = H / patch, rounded up."""
        if self._cache is None:
            return self._compute(image)
        digest = hashlib.sha256(self._digest + f"{image.dtype} {image.shape} ".encode())
        digest.update(np.ascontiguousarray(image).data)
        path = self._cache / f"{digest.hexdigest()[:32]}.npy"
        if path.is_file():
            return _read(path)
        features = self._compute(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            np.save(aside, features)
        return features

    def _compute(self, image: np.ndarray) -> np.ndarray:
        self.computed += 1
        return mean_over_windows(image, self._encode, self._settings, self.patch)


def make_encode(segmenter: Segmenter) -> EncodeTiles:
    """Make the jitted function from tiles to the features of every stage."""
    trainable, frozen = split(segmenter)

    @jax.jit
    def encode(trainable: Any, frozen: Any, pixels: jax.Array) -> jax.Array:
        """Tokens of every stage, the tokens of a place averaged: (B, h, w, S, D)."""
        whole = join(segmenter, trainable, frozen)
        encoder: Encoder = whole.backbone.visual
        image = whole.normalise(pixels)
        skip, groups = encoder.config.prefix_tokens, encoder.config.tokens_per_place
        h, w = encoder.grid(image.shape)
        with jax.default_matmul_precision("highest"):
            embedded = encoder.embed(image)  # (B, T, D)
            blocks = every_layer(encoder, embedded, h, w)  # (L, B, T, D)
            stages = jnp.concatenate([embedded[None], blocks])
            if encoder.config.has_norm:
                stages = jnp.concatenate([stages, encoder.last_norm(blocks[-1])[None]])
        places = jax.vmap(lambda tokens: mean_over_groups(tokens[:, skip:], groups))(stages)  # (S, B, N, D)
        features = places.reshape(*places.shape[:2], h, w, -1)
        return jnp.moveaxis(features, 0, 3).astype(jnp.float32)

    step = checked(encode, segmenter.config)
    return lambda pixels: np.asarray(step(trainable, frozen, pixels))


def _digest_of(segmenter: Segmenter, settings: EvaluateConfig) -> bytes:
    """Digest of everything but the pixels that features depend on."""
    config = segmenter.config
    digest = hashlib.sha256(repr((config.visual, config.dtype, config.pixel_mean, config.pixel_std)).encode())
    digest.update(repr((settings.window, settings.overlap)).encode())
    for path, leaf in sorted(leaves(segmenter.backbone.visual).items()):
        digest.update("/".join(map(str, path)).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.digest()


def _read(path: Path) -> np.ndarray:
    """Read cached features.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path}: the cached features are damaged; delete the file") from None
