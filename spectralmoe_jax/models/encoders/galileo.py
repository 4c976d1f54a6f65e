"""The optical encoder of Galileo (Tseng et al. 2025, arXiv 2502.09356) for images of one date.

Every place has one token for each group of channels that the image holds whole, and all tokens of a window
attend to each other. Patches may have any size from 1 to 8 pixels: the stored kernels of 8 x 8 pixels are
resized. Positions count from the corner of a window, as in pretraining, where windows had 4 to 12 places a
side; a larger image is divided into windows of `config.window` places.

Letters of shapes here, beside those of `adapters.base`: G groups of channels, p side of a patch, r side of a
window in places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Beside, Edit
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.presets import GALILEO_GROUPS
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen, LayerNorm, VariableType, trunc_normal, wide_type
from spectralmoe_jax.models.encoders.encoder import Encoder, Layers, embed_patches
from spectralmoe_jax.models.encoders.vit import Block
from spectralmoe_jax.models.positions import resize_kernel
from spectralmoe_jax.parameters import edited
from spectralmoe_jax.sensors import SENSORS, find_sensor

KERNEL = 8  # side of the stored kernels in pixels
REFERENCE_RESOLUTION = 10.0  # metres of a pixel at which positions are counted in pixels
TEMPERATURE = 10000.0  # of the sines and cosines
DATES, MONTHS = 24, 12  # rows of the stored tables

# Pretraining statistics of reflectance x 10000: (value - shift) / div, shift = mean - 2 deviations, div = 4
# deviations.
STATISTICS = {
    "B2": (-440.067415, 3670.816576),
    "B3": (-488.194993, 3653.195369),
    "B4": (-842.258609, 4370.714894),
    "B5": (-550.580418, 4188.882433),
    "B6": (90.181885, 4192.040644),
    "B7": (237.712680, 4574.761211),
    "B8": (212.379363, 4395.916711),
    "B8A": (341.339955, 4817.891020),
    "B11": (-57.043713, 4583.909625),
    "B12": (-485.954841, 3920.971936),
}
UNITS = 10000.0  # of reflectance in `STATISTICS`

# Embeddings of the file by module, each a number of channels by name: convolutions, then linear layers. Only
# the optical ones of `space_time_embed` are used; the others are kept so that a file can be written back.
CONVOLUTIONS = {
    "space_time_embed": {
        "S1": 2, "S2_RGB": 3, "S2_Red_Edge": 3, "S2_NIR_10m": 1, "S2_NIR_20m": 1, "S2_SWIR": 2, "NDVI": 1,
    },
    "space_embed": {"SRTM": 2, "DW": 9, "WC": 5},
}  # fmt: skip
LINEAR = {
    "time_embed": {"ERA5": 2, "TC": 3, "VIIRS": 1},
    "static_embed": {"LS": 1, "location": 3, "DW_static": 9, "WC_static": 5},
}
# Rows of the stored embeddings of the groups, by leaf: one for each group of a module, added to its tokens.
GROUP_TABLES = {
    "space_time_tokens": 7, "space_tokens": 3, "time_tokens": 3, "static_tokens": 4,
}  # fmt: skip


def channels_of(bands: Sequence[str], sensor: str | None) -> tuple[str, ...]:
    """Return Galileo's channel of every band, "" for a band that it does not have.

    Args:
      bands: names of the bands.
      sensor: sensor whose names these are. Bands of other sensors take part by the name of the Sentinel-2
        band that sees the same: blue, green, red, nir, swir16, swir22 and the like.
    """
    own = {} if sensor is None else find_sensor(sensor).known_as()
    theirs = SENSORS["sentinel2"].known_as()
    names = {name.replace("B0", "B"): name for name in theirs.values()}
    channel = {name: short for short, name in names.items()}
    found = (channel.get(theirs.get(own.get(band.lower(), band).lower(), ""), "") for band in bands)
    return tuple(name if name in STATISTICS else "" for name in found)


def describe_inputs(config: EncoderConfig, *, is_month_known: bool) -> str:
    """Say in one line what the encoder sees of the images: groups, those left out and why, month, pixels."""
    lacking = {
        group: [name for name in channels if name not in config.channels]
        for group, channels in GALILEO_GROUPS.items()
        if group not in config.groups
    }
    reasons = [f"{group} ({', '.join(names) or 'ndvi is False'})" for group, names in lacking.items()]
    left_out = f"; left out, for lack of bands: {', '.join(reasons)}" if reasons else ""
    return (
        f"galileo sees {', '.join(config.groups)}{left_out}; month {config.month}"
        f"{'' if is_month_known else ' (not known)'}, pixels of {config.resolution:g} m"
    )


# Reflectance that an image can have: its median, and its 95th percentile. Wrong scales are far outside.
LEAST_MEDIAN, LEAST_BRIGHT, LARGEST_BRIGHT = -0.05, 0.003, 3.0
FEWEST_PIXELS = 64  # fewer pixels with data than this tell nothing


def require_reflectance(pixels: np.ndarray, pixel_mean: float, pixel_std: float) -> bool:
    """Check that stored values, brought to reflectance, can be reflectance.

    Args:
      pixels: stored values (..., C); pixels that are zero in all bands hold no data.
      pixel_mean: stored value of reflectance 0.
      pixel_std: stored units of reflectance 1.

    Returns:
      Whether there was enough data to tell.

    Raises:
      UserError: the values cannot be reflectance.
    """
    found = (pixels[np.any(pixels != 0, axis=-1)].astype(np.float64) - pixel_mean) / pixel_std
    if len(found) < FEWEST_PIXELS:
        return False
    median, bright = np.quantile(found, (0.5, 0.95))
    if median < LEAST_MEDIAN or not LEAST_BRIGHT <= bright <= LARGEST_BRIGHT:
        raise UserError(
            f"config.model.visual.stored_as: the images' values cannot be reflectance stored like that: half "
            f"of them are above {median:.3g} and 5 % above {bright:.3g}, of 0 to 1; choose unit, x10000, "
            "x10000+1000 or sensor by how the files were made"
        )
    return True


class GalileoEncoder(Encoder):
    """Embeddings of the groups of channels, encodings of group, month and position, and a stack of blocks.

    The image it embeds is reflectance, 0 to 1.

    Attributes:
      blocks: all layers, stacked on axis 0.
      norm: the last norm.
      time_table: encodings of the dates, (24, D / 4); an image has the first one.
      month_table: encodings of the months, (12, D / 4).
      space_time_tokens: embeddings of the groups, (7, D / 4); the first is Sentinel-1's.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        self.config = config
        quarter = config.width // 4
        # 1. embeddings; those of other sensors are never trained
        for module, channels in CONVOLUTIONS.items():
            setattr(self, module, Embeddings((KERNEL, KERNEL), channels, config, kind, param_dtype, rngs))
        for module, channels in LINEAR.items():
            setattr(self, module, Embeddings((), channels, config, kind, param_dtype, rngs))
        # 2. encodings
        for module, rows in GROUP_TABLES.items():
            used = kind if module == "space_time_tokens" else Frozen
            setattr(self, module, used(trunc_normal(rngs.params(), (rows, quarter), param_dtype)))
        self.time_table = Frozen(jnp.asarray(sines(np.arange(DATES), quarter), param_dtype))
        self.month_table = Frozen(jnp.asarray(_months(quarter), param_dtype))
        # 3. blocks and the last norm
        self.blocks = nnx.vmap(lambda r: Block(config, kind, param_dtype, r), in_axes=0, out_axes=0)(
            rngs.split(config.layers)
        )
        self.norm = LayerNorm(config.width, config.norm_eps, kind=Frozen, param_dtype=param_dtype)

    def embed(self, image: Array) -> Array:
        """Tokens before the first layer, (B, N G, D), group fastest, of reflectance (B, H, W, C)."""
        h, w = self.grid(image.shape)
        patches = self.embed_groups(image) + self.encodings(h, w).astype(image.dtype)  # (B, N, G, D)
        return rearrange(patches, "b n g d -> b (n g) d")

    def embed_groups(self, image: Array) -> Array:
        """Patch embeddings of every group, without encodings: (B, H, W, C) -> (B, N, G, D)."""
        tokens = []
        for group in self.config.groups:
            embedding = getattr(self.space_time_embed, group)  # type: ignore[attr-defined]
            kernel = resize_kernel(embedding.kernel[...], self.config.patch_size)  # (p, p, channels, D)
            tokens.append(embed_patches(self._group_pixels(image, group), kernel, embedding.bias[...]))
        return jnp.stack(tokens, axis=2)

    def _group_pixels(self, image: Array, group: str) -> Array:
        """Channels of a group as the embedding reads them: (B, H, W, C) -> (B, H, W, channels)."""
        channels = GALILEO_GROUPS[group]
        picked = image[..., np.array([self.config.channels.index(name) for name in channels])]
        if group == "NDVI":
            near_infrared, red = picked[..., :1], picked[..., 1:]
            total = near_infrared + red
            positive = total > 0
            return jnp.where(positive, near_infrared - red, 0) / jnp.where(positive, total, 1)
        shift, div = np.array([STATISTICS[name] for name in channels], np.float64).T
        wide = picked.astype(wide_type(image.dtype))
        return (wide * (UNITS / div) - shift / div).astype(image.dtype)

    def encodings(self, h: int, w: int) -> Array:
        """Encodings of group, date, month and position: (N, G, D)."""
        quarter = self.config.width // 4
        groups = list(CONVOLUTIONS["space_time_embed"])
        rows = np.array([groups.index(group) for group in self.config.groups])
        group = self.space_time_tokens[...][rows]  # type: ignore[attr-defined]
        parts = (
            group[None],  # (1, G, D / 4)
            self.time_table[...][0],
            self.month_table[...][self.config.month - 1],
            jnp.asarray(self._positions(h, w), group.dtype)[:, None],  # (N, 1, D / 4)
        )
        shape = (h * w, len(rows), quarter)
        return jnp.concatenate([jnp.broadcast_to(part, shape) for part in parts], axis=-1)

    def _positions(self, h: int, w: int) -> np.ndarray:
        """Encodings of column and row within a window, (N, D / 4) float64.

        Distances are counted in pixels of 10 metres, whatever the size of pixels and patches.
        """
        config = self.config
        step = config.resolution * config.patch_size / REFERENCE_RESOLUTION
        rows, columns = self.windows(h, w)
        axis = config.width // 8
        row, column = sines(np.arange(h) % rows * step, axis), sines(np.arange(w) % columns * step, axis)
        grid = (np.broadcast_to(column, (h, w, axis)), np.broadcast_to(row[:, None], (h, w, axis)))
        return np.concatenate(grid, axis=-1).reshape(h * w, 2 * axis)

    def windows(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the windows in places: a grid that is not larger is one window.

        Raises:
          UserError: the grid is larger and does not divide into windows.
        """
        side = self.config.window
        for length in (h, w):
            if length > side and length % side:
                raise UserError(
                    f"an image of {h}x{w} patches does not divide into windows of {side}: choose a crop or "
                    f"window that is a multiple of {side * self.config.patch_size} pixels, or another "
                    f"{self.config.place}.window"
                )
        return min(h, side), min(w, side)

    def last_norm(self, tokens: Array) -> Array:
        """Tokens (B, T, D) after the last norm."""
        return self.norm(tokens)

    def stacked(self, h: int, w: int) -> Layers:
        """The blocks, ready to be scanned over a grid of h x w places."""
        graph, weights = nnx.split(self.blocks)
        rows, columns = self.windows(h, w)
        sizes = {"y": rows, "x": columns, "g": self.config.tokens_per_place}
        whole = (h, w) == (rows, columns)

        def apply(x: Array, layer: Any, edit: Edit | None = None, beside: Beside | None = None) -> Array:
            """Run one block on every window. Tokens before those of the places are part of each window."""
            block = nnx.merge(graph, edited(layer, edit))
            if whole:
                return block(x, None, beside)
            count = (h // rows) * (w // columns)
            extra = x.shape[1] - h * w * sizes["g"]
            prompts, places = x[:, :extra], x[:, extra:]
            places = rearrange(
                places, "b (r y c x g) d -> (b r c) (y x g) d", r=h // rows, c=w // columns, **sizes
            )
            y = block(jnp.concatenate([jnp.repeat(prompts, count, axis=0), places], axis=1), None, beside)
            prompts = rearrange(y[:, :extra], "(b n) p d -> b n p d", n=count).mean(axis=1)
            places = rearrange(
                y[:, extra:], "(b r c) (y x g) d -> b (r y c x g) d", r=h // rows, c=w // columns, **sizes
            )
            return jnp.concatenate([prompts, places], axis=1)

        return Layers(weights, apply)


class Embeddings(nnx.Module):
    """Kernels and biases by name; those of names outside the configured groups are never trained."""

    def __init__(
        self,
        sides: tuple[int, ...],
        channels: Mapping[str, int],
        config: EncoderConfig,
        kind: VariableType,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        for name, count in channels.items():
            used = kind if name in config.groups else Frozen
            setattr(self, name, Embedding((*sides, count, config.width), used, param_dtype, rngs))


class Embedding(nnx.Module):
    """Kernel, (8, 8, channels, D) or (channels, D), and bias (D,)."""

    def __init__(self, shape: tuple[int, ...], kind: VariableType, param_dtype, rngs: nnx.Rngs):
        self.kernel = kind(trunc_normal(rngs.params(), shape, param_dtype))
        self.bias = kind(jnp.zeros(shape[-1:], param_dtype))


def sines(positions: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines of positions at `width / 2` frequencies each: (n,) -> (n, width) float64.

    The exponents are k / (2 width), not 2 k / width: the frequencies fall from 1 to a tenth or so only.
    """
    frequencies = TEMPERATURE ** (-np.arange(width // 2) / (2 * width))
    angles = np.asarray(positions, np.float64)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _months(width: int) -> np.ndarray:
    """Encodings of the months: one sine, then one cosine of the year, repeated; (12, width) float64."""
    angles = 2 * math.pi * np.arange(MONTHS) / MONTHS
    return np.repeat(np.stack([np.sin(angles), np.cos(angles)], axis=1), width // 2, axis=1)
