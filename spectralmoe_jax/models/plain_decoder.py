"""The plain mask decoder on frozen features (PMT, arXiv 2603.25398).

The tokens of several layers are normalised over the batch, projected and summed. Learned queries join them in
a few blocks of self-attention over queries, prefix tokens and patch tokens: there is no cross-attention and
no pixel decoder. A mask is the product of a query's embedding with the patch tokens, upscaled.

Training predicts before every block and after the last. A query then attends only to the patches inside its
mask of the prediction before, with a probability that falls to 0 while training proceeds. Inference thus
does without masks, and predicts once.

Statistics of the batch normalisation run along in training: `Statistic` variables, whose next values the head
returns beside its predictions.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Rule
from spectralmoe_jax.config.model import PlainDecoderConfig
from spectralmoe_jax.layers import (
    EPS,
    LayerNorm,
    Linear,
    Statistic,
    attend,
    gelu,
    normal,
    normalise,
    stack_layers,
    torch_bias,
    torch_uniform,
    wide_type,
)
from spectralmoe_jax.mask2former.head import MaskEmbedding
from spectralmoe_jax.mask2former.masks import mask_logits
from spectralmoe_jax.models.positions import Rope, rotate
from spectralmoe_jax.models.upscaling import Upscaling, upscale, upscaling_stages
from spectralmoe_jax.parallel import constrain
from spectralmoe_jax.parameters import Path
from spectralmoe_jax.resampling import resize_bilinear


class Predictions(NamedTuple):
    """Predictions of the plain mask decoder, K = 1 + blocks in training and 1 in inference.

    Attributes:
      class_logits: (K, B, Q, C + 1), at least float32, the last class "no object".
      mask_logits: (K, B, Q, H', W'), at least float32.
      statistics: next values of the running statistics, by path in the head; None unless in training.
    """

    class_logits: Array
    mask_logits: Array
    statistics: dict[Path, Array] | None


class PlainDecoder(nnx.Module):
    """Class and mask logits from the whole tokens of any number of layers.

    Attributes:
      optimizer_rules: every weight decays, as published; statistics do not.
      levels: one `Level` for each of the layers, stacked.
      queries: (Q, D).
      blocks: all joint blocks, stacked.
      norm: normalises queries and patches for predictions.
      upscaling: all stages, stacked.
      mask_embed: from queries to mask embeddings.
      class_head: from queries to class logits.
    """

    optimizer_rules: ClassVar[tuple[Rule, ...]] = (
        (r"^head/levels/norm/(mean|variance)$", 0.0, 1.0),
        (r"^head/", 1.0, 1.0),
    )

    def __init__(
        self,
        config: PlainDecoderConfig,
        *,
        in_features: int,
        levels: int,
        heads: int,
        patch_size: int,
        dtype=jnp.float32,
        remat: bool = False,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the head with random weights.

        Args:
          config: sizes, and the fall of masked attention.
          in_features: width D of the tokens, which is the width of the head.
          levels: number of layers whose tokens come in.
          heads: attention heads of the encoder.
          patch_size: pixels along a patch's edge; where it is 16, masks have a quarter of the image's size.
          dtype: of the computation; statistics and logits are at least float32.
          remat: compute predictions and blocks of the training form again in the backward pass.
          param_dtype: of the weights, float32 or float64.
          rngs: draws the weights.
        """
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        shared: dict[str, Any] = {"param_dtype": param_dtype}
        width, hidden = in_features, int(in_features * config.mlp_ratio)
        self.config, self.dtype, self.remat = config, dtype, remat
        self.levels = stack_layers(lambda r: Level(width, config.momentum, rngs=r, **shared), levels, rngs)
        self.queries = nnx.Param(normal(rngs.params(), (config.num_queries, width), param_dtype))
        self.blocks = stack_layers(
            lambda r: JointBlock(width, heads, hidden, rngs=r, **shared), config.blocks, rngs
        )
        self.norm = LayerNorm(width, EPS, **shared)
        stages = upscaling_stages(patch_size)
        self.upscaling = stack_layers(lambda r: Upscaling(width, rngs=r, **shared), stages, rngs)
        self.mask_embed = MaskEmbedding(width, activation=gelu, **kwargs)
        self.class_head = Linear(
            width, config.num_classes + 1, init=torch_uniform, bias_init=torch_bias(width), **kwargs
        )

    def __call__(
        self,
        tokens: Array,
        grid: tuple[int, int],
        rope: Rope | None,
        *,
        all_layers: bool = True,
        key: Array | None = None,
        progress: Array | float = 0.0,
    ) -> Predictions:
        """Predict classes and masks.

        Args:
          tokens: (levels, B, T, D), prefix tokens (or none), then the patches of the grid, row by row.
          grid: (h, w).
          rope: rotary positions of the encoder; None for none.
          all_layers: True for the training form, False for the inference form.
          key: draws where masked attention is lifted, and normalises by the batch; None for running
            statistics and masked attention throughout.
          progress: share of the training that is done, scalar; it may be traced.
        """
        # 1. one set of tokens, and the queries before it
        fused, statistics = self.fuse(tokens.astype(self.dtype), in_training=key is not None)
        x = self.joined(fused)  # (B, Q + T, D)
        # 2. blocks
        if all_layers:
            x, before = self._training_blocks(x, grid, rope, key, progress)
        else:
            x, before = self._inference_blocks(x, rope), None
        # 3. the last prediction
        classes, masks = (part[None] for part in self.predict(x, grid))
        if before is not None:
            classes, masks = jnp.concatenate([before[0], classes]), jnp.concatenate([before[1], masks])
        return Predictions(classes, masks, statistics)

    def fuse(self, tokens: Array, *, in_training: bool) -> tuple[Array, dict[Path, Array] | None]:
        """Normalise, project and sum the levels: (levels, B, T, D) -> (B, T, D), and the next statistics."""
        graph, weights = nnx.split(self.levels)

        def one(tokens: Array, weights: Any) -> tuple[Array, Any]:
            """Run one level."""
            return nnx.merge(graph, weights)(tokens, in_training=in_training)

        projected, updated = jax.vmap(one)(tokens, weights)
        fused = constrain(jnp.sum(projected, axis=0), "batch", None, None)
        if updated is None:
            return fused, None
        return fused, {("levels", "norm", name): value for name, value in updated.items()}

    def joined(self, tokens: Array) -> Array:
        """Put the learned queries before the tokens: (B, T, D) -> (B, Q + T, D)."""
        queries = self.queries[...].astype(tokens.dtype)
        queries = jnp.broadcast_to(queries, (tokens.shape[0], *queries.shape))
        return constrain(jnp.concatenate([queries, tokens], axis=1), "batch", None, None)

    def predict(self, x: Array, grid: tuple[int, int]) -> tuple[Array, Array]:
        """Class logits (B, Q, C + 1) and mask logits (B, Q, H', W') of queries and tokens (B, Q + T, D)."""
        normed = self.norm(x)
        queries = normed[:, : self.config.num_queries]
        patches = normed[:, x.shape[1] - grid[0] * grid[1] :].reshape(x.shape[0], *grid, -1)
        masks = mask_logits(self.mask_embed(queries), upscale(patches, self.upscaling))
        return self.class_head(queries, wide_type(self.dtype)), masks

    def block(self, x: Array, weights: nnx.State, rope: Rope | None, blocked: Array | None = None) -> Array:
        """Run one joint block, given its slice of the weights: (B, Q + T, D) -> (B, Q + T, D)."""
        joint = nnx.merge(nnx.graphdef(self.blocks), weights)
        return constrain(joint(x, rope, blocked), "batch", None, None)

    def _inference_blocks(self, x: Array, rope: Rope | None) -> Array:
        def step(x: Array, weights: nnx.State) -> tuple[Array, None]:
            """Run one block: scan body."""
            return self.block(x, weights, rope), None

        return jax.lax.scan(step, x, nnx.state(self.blocks))[0]

    def _training_blocks(
        self,
        x: Array,
        grid: tuple[int, int],
        rope: Rope | None,
        key: Array | None,
        progress: Array | float,
    ) -> tuple[Array, tuple[Array, Array]]:
        """Run all blocks, and predict before each.

        Returns:
          The tokens after the last block, and class and mask logits before each, (blocks, B, Q, ...).
        """
        config, shape = self.config, (x.shape[0], self.config.num_queries)
        probability = mask_probability(progress, config.mask_starts, config.mask_ends, config.mask_power)
        keys = None if key is None else jax.random.split(key, config.blocks)

        def step(x: Array, layer: Any) -> tuple[Array, tuple[Array, Array]]:
            """Predict, then run one block with masked attention: scan body."""
            weights, probability, key = layer
            classes, masks = self.predict(x, grid)
            lifted = jnp.zeros(shape, bool) if key is None else jax.random.uniform(key, shape) > probability
            blocked = hidden_patches(masks, grid, lifted, x.shape[1])
            return self.block(x, weights, rope, blocked), (classes, masks)

        step = jax.checkpoint(step) if self.remat else step
        return jax.lax.scan(step, x, (nnx.state(self.blocks), probability, keys))


def mask_probability(
    progress: Array | float, starts: tuple[float, ...], ends: tuple[float, ...], power: float
) -> Array:
    """Probability of masked attention in each block, (blocks,) float32.

    It is 1 up to the block's start, 0 from its end on, and (1 - share of the way) ** power between.
    """
    start, end = jnp.asarray(starts, jnp.float32), jnp.asarray(ends, jnp.float32)
    return (1 - jnp.clip((progress - start) / (end - start), 0.0, 1.0)) ** power


def hidden_patches(masks: Array, grid: tuple[int, int], lifted: Array, tokens: int) -> Array:
    """Return what each of the queries and tokens must not attend to.

    A query must not attend to patches at which its mask, resized to the grid, is not positive.

    Args:
      masks: mask logits (B, Q, H', W').
      grid: (h, w).
      lifted: (B, Q) bool, queries that may attend everywhere.
      tokens: number of queries, prefix and patch tokens together.

    Returns:
      (B, tokens, tokens) bool; queries come first and patches last.
    """
    batch, queries = lifted.shape
    small = resize_bilinear(jax.lax.stop_gradient(masks).reshape(-1, *masks.shape[2:], 1), grid)
    hidden = (small <= 0).reshape(batch, queries, -1) & ~lifted[..., None]  # (B, Q, N)
    return jnp.pad(hidden, ((0, 0), (0, tokens - queries), (tokens - hidden.shape[-1], 0)))


class Level(nnx.Module):
    """One layer's tokens a -> (norm(a) + projection(norm(a))) * scaler, the projection through D / 2.

    Attributes:
      norm: normalises each channel over images and tokens.
      first, second: the projection.
      scaler: (D,).
    """

    def __init__(self, width: int, momentum: float, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"init": torch_uniform, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = BatchNorm(width, momentum, param_dtype=param_dtype)
        self.first = Linear(width, width // 2, bias_init=torch_bias(width), **kwargs)
        self.second = Linear(width // 2, width, bias_init=torch_bias(width // 2), **kwargs)
        self.scaler = nnx.Param(jnp.ones((width,), param_dtype))

    def __call__(self, x: Array, *, in_training: bool) -> tuple[Array, dict[str, Array] | None]:
        """(B, T, D) -> (B, T, D), and in training the next statistics of the norm."""
        normed = self.norm(x, in_training=in_training)
        projected = self.second(gelu(self.first(normed)))
        scaled = (normed + projected) * self.scaler[...].astype(x.dtype)
        return scaled, self.norm.updated(x) if in_training else None


class BatchNorm(nnx.Module):
    """Normalisation of each channel: by the batch in training, else by running statistics.

    Under a layout the batch is the global one, of all devices.

    Attributes:
      scale, bias: (D,).
      mean, variance: running statistics, (D,).
    """

    def __init__(self, width: int, momentum: float, *, param_dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype))
        self.mean = Statistic(jnp.zeros((width,), param_dtype))
        self.variance = Statistic(jnp.ones((width,), param_dtype))
        self.momentum = momentum

    def __call__(self, x: Array, *, in_training: bool) -> Array:
        """(..., D) -> (..., D)."""
        scale, bias = self.scale[...], self.bias[...]
        if in_training:
            return normalise(x, tuple(range(x.ndim - 1)), scale, bias, EPS)
        inverse = jax.lax.rsqrt(self.variance[...] + EPS)
        return ((x.astype(scale.dtype) - self.mean[...]) * inverse * scale + bias).astype(x.dtype)

    def updated(self, x: Array) -> dict[str, Array]:
        """Return the running statistics after a batch (..., D); the variance is the unbiased one."""
        axes = tuple(range(x.ndim - 1))
        wide = jax.lax.stop_gradient(x).astype(self.mean.dtype)
        unbiased = x.size / (x.size - x.shape[-1])  # count / (count - 1)
        found = {"mean": jnp.mean(wide, axes), "variance": jnp.var(wide, axes) * unbiased}
        old = {"mean": self.mean[...], "variance": self.variance[...]}
        return {
            name: jax.lax.stop_gradient(old[name]) * (1 - self.momentum) + self.momentum * value
            for name, value in found.items()
        }


class JointBlock(nnx.Module):
    """Pre-norm self-attention and feed-forward block with LayerScale; keys have no bias."""

    def __init__(self, width: int, heads: int, hidden: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        def linear(size_in: int, size_out: int, bias: bool = True) -> Linear:
            return Linear(
                size_in,
                size_out,
                init=torch_uniform,
                bias_init=torch_bias(size_in) if bias else None,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.heads = heads
        self.norm1 = LayerNorm(width, EPS, param_dtype=param_dtype)
        self.query, self.key = linear(width, width), linear(width, width, bias=False)
        self.value, self.output = linear(width, width), linear(width, width)
        self.scale1 = nnx.Param(jnp.ones((width,), param_dtype))
        self.norm2 = LayerNorm(width, EPS, param_dtype=param_dtype)
        self.up, self.down = linear(width, hidden), linear(hidden, width)
        self.scale2 = nnx.Param(jnp.ones((width,), param_dtype))

    def __call__(self, x: Array, rope: Rope | None, blocked: Array | None = None) -> Array:
        """(B, T, D) -> (B, T, D); `rope` turns the last tokens, `blocked` is that of `layers.attend`."""
        x = x + self._attended(self.norm1(x), rope, blocked) * self.scale1[...].astype(x.dtype)
        return x + self.down(gelu(self.up(self.norm2(x)))) * self.scale2[...].astype(x.dtype)

    def _attended(self, x: Array, rope: Rope | None, blocked: Array | None) -> Array:
        parts = (linear(x) for linear in (self.query, self.key, self.value))
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in parts)  # (B, T, heads, D / heads)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return self.output(attend(q, k, v, blocked=blocked).reshape(x.shape))
