"""Sizes of patches, crops, tiles and batches that fit the images and the memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = {"width": 64, "layers": 4, "heads": 2}
"""The encoder of `configs.common.small`, which is trained from random weights."""

_LARGE_IMAGE = 384  # pixels along the shorter side, from which on a crop shows more of it
_CROP, _LARGE_CROP, _PRETRAINED_CROP = 96, 192, 224  # pixels; the last is that of most pretraining
_FEWEST, _WANTED = 4, 8  # patches along a crop: the coarsest map of the head has a pixel; a useful attention
_HELD_OUT_PARTS = 4  # windows along a scene that is divided to hold some out
_BATCHES = (8, 4, 2, 1)
_ROOM = 0.5  # share of the memory that is available for a training step
_FLOATS = 34  # of a token and layer, kept for the backward pass, in multiples of the width
_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run.

    Attributes:
      patch: pixels along a patch's edge.
      crop: pixels along a training tile's edge, and a window's.
      tile: side of the windows that scenes are divided into; None for whole images.
      batch: images in a step.
      step_bytes: estimate of the memory of a training step.
      fits: the estimate is within the room that was given.
    """

    patch: int
    crop: int
    tile: int | None
    batch: int
    step_bytes: int
    fits: bool

    @property
    def overlap(self) -> int:
        """Pixels by which windows overlap: a third of them, in whole patches."""
        return self.crop // 3 // self.patch * self.patch


def available_memory() -> int:
    """Return the bytes of memory that are free, at most what this container may use.

    Where the system does not tell what is free, half of the memory.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = (
        re.search(r"^MemAvailable: +(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
        if _MEMORY.is_file()
        else None
    )
    free = 1024 * int(told[1]) if told else physical // 2
    limit = _CGROUP.read_text().strip() if _CGROUP.is_file() else "max"
    return min(free, int(limit)) if limit.isdecimal() else free


def choose_sizes(
    side: int,
    bands: int,
    memory: int,
    encoder: Mapping[str, Any] | None = None,
    divide: bool = False,
) -> Sizes:
    """Choose sizes.

    Args:
      side: shorter side of the images in pixels.
      bands: number of bands.
      memory: bytes that are available.
      encoder: fields of a preset; None for the small encoder, which is trained.
      divide: every source domain is a single scene, which is divided to hold parts out.
    """
    tile = max(-(-side // _HELD_OUT_PARTS), min(side, _FEWEST * _WANTED)) if divide else None
    seen = tile or side
    patch, longest = _patch_and_crop(seen, encoder)
    unit = patch * (int(encoder["window"]) if encoder and encoder["kind"] == "galileo" else 1)
    crop = max(min(seen, longest) // patch * patch, _FEWEST * patch)
    crop = crop if crop <= unit else crop // unit * unit
    while True:
        for batch in _BATCHES:
            need = _step_bytes(crop, patch, bands, batch, encoder)
            if need <= _ROOM * memory:
                return Sizes(patch, crop, tile, batch, need, True)
        smaller = crop // 2 // unit * unit
        if smaller < _FEWEST * patch:
            return Sizes(patch, crop, tile, _BATCHES[-1], need, False)
        crop = smaller


def _patch_and_crop(side: int, encoder: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the size of a patch, and the longest crop.

    A published patch is made smaller, and its kernel resampled, where images have too few of them.
    """
    if encoder is None:
        if side >= _LARGE_IMAGE:
            return 8, _LARGE_CROP
        return (4 if side >= 4 * _WANTED * 2 else 2), _CROP
    published = int(encoder["patch_size"])
    if encoder["kind"] == "galileo":  # a crop is a window of the encoder, as in its pretraining
        return published, published * int(encoder["window"])
    patch = published
    while patch > 2 and side // patch < _WANTED and encoder["kind"] != "softcon":
        patch //= 2
    return patch, _PRETRAINED_CROP


def _step_bytes(crop: int, patch: int, bands: int, batch: int, encoder: Mapping[str, Any] | None) -> int:
    """Estimate the bytes of a training step in float32: weights, images, and what the backward pass keeps."""
    sizes = encoder or SMALL
    width, layers, heads = (int(sizes[key]) for key in ("width", "layers", "heads"))
    tokens = (crop // patch) ** 2 * (6 if sizes.get("kind") == "galileo" else 1)
    of_layer = tokens * width * _FLOATS + heads * tokens**2 * 2
    of_image = layers * of_layer + crop**2 * (3 * bands + 40)
    weights = (
        12 * width**2 * layers * (1 if encoder else 4)
    )  # the optimizer keeps two moments, and a gradient
    return 4 * (batch * of_image + weights)
