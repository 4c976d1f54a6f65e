"""DepthForge (arXiv 2504.12753): Rein on visual and depth tokens, with a refined finest feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Projection
from spectralmoe_jax.adapters.rein import Rein
from spectralmoe_jax.config.adapters import DepthForgeConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.resampling import resize_bilinear, resize_by_scale


class Refinement(nnx.Module):
    """Refinement of the finest map by all maps: each is resized and gated, then all are joined and projected.

    The gate acts on every pixel, by channel and then by position: x <- x sigmoid(W_2 relu(W_1 x)), then
    x <- x sigmoid(3x3 convolution to one channel).

    Attributes:
      reduce, expand: W_1 and W_2.
      spatial_kernel, spatial_bias: of the convolution, (3, 3, D, 1) and (1,).
      fuse: projection of the joined maps.
    """

    def __init__(self, width: int, gate_width: int, maps: int, *, param_dtype, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.reduce = Projection(width, gate_width, **kwargs)
        self.expand = Projection(gate_width, width, **kwargs)
        bound = (9 * width) ** -0.5  # torch's default for a convolution
        self.spatial_kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (3, 3, width, 1), param_dtype, -bound, bound)
        )
        self.spatial_bias = nnx.Param(jax.random.uniform(rngs.params(), (1,), param_dtype, -bound, bound))
        self.fuse = Projection(maps * width, width, **kwargs)

    def __call__(self, maps: Sequence[Array]) -> Array:
        """Maps (B, h_i, w_i, D), finest first -> the change of the finest, (B, h_0, w_0, D), in its dtype."""
        size = (maps[0].shape[1], maps[0].shape[2])
        gated = [self.gate(resize_bilinear(x, size)) for x in maps]
        return self.fuse(jnp.concatenate(gated, axis=-1)).astype(maps[0].dtype)

    def gate(self, x: Array) -> Array:
        """Gate a map (B, h, w, D)."""
        channel = jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(x)).astype(x.dtype)))
        x = x * channel.astype(x.dtype)
        spatial = jax.lax.conv_general_dilated(
            x,
            self.spatial_kernel[...].astype(x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # (B, h, w, 1)
        return x * jax.nn.sigmoid(spatial + self.spatial_bias[...].astype(x.dtype))


class DepthForge(Rein):
    """Rein with logits (f_v T^T + f_d T^T) / sqrt(D), and a refinement of the maps.

    Attributes:
      refinement: of the finest map.
    """

    Config: ClassVar[type] = DepthForgeConfig

    def __init__(
        self, config: DepthForgeConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, layers=layers, width=width, **kwargs)
        self.refinement = Refinement(width, config.gate_width, config.maps, **kwargs)

    def refine_maps(
        self, maps: list[Array], scales: Sequence[float]
    ) -> tuple[list[Array], tuple[float, ...]]:
        """Refine the finest map.

        The refinement is not linear, so that this map is resized here and not by the head.

        Raises:
          UserError: the head takes another number of maps than `config.model.adapter.maps`.
        """
        if len(maps) != self.config.maps:
            raise UserError(
                f"config.model.adapter.maps = {self.config.maps}: config.model.out_layers gives {len(maps)}"
            )
        resized = [resize_by_scale(x, scale) for x, scale in zip(maps, scales, strict=True)]
        return [resized[0] + self.refinement(resized), *maps[1:]], (1.0, *scales[1:])
