"""What an adapter is to the rest of the model. Any class with these methods is one: nothing is inherited.

An adapter is an `nnx.Module` whose parameters of all layers are stacked on a leading axis, with a dataclass
`Config` of its settings. `kinds.py` finds it by name; `docs/adding_an_adapter.md` makes one.

Linear maps of adapters, and the link from learned tokens to the mask decoder's queries (Rein, arXiv
2312.04265, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Path = tuple[str, ...]
Weights = dict[Path, Array]  # a block's own, by path, such as ("attention", "qkv", "kernel")
Rule = tuple[str, float, float]  # (regular expression, factor on weight decay, factor on learning rate)
Grid = tuple[int, int]  # patches along height and width


class LayerOutput(NamedTuple):
    """tokens: (B, N, D), refined. auxiliary_loss: scalar, its weight applied; the mean over layers is added
    to the task's loss. experts: (J, B, N) int32, the strongest expert of every token for each modality, the
    visual first; None where there are none."""

    tokens: Array
    auxiliary_loss: Array
    experts: Array | None = None


class RunBlock(Protocol):
    """The encoder block of one layer."""

    def __call__(
        self,
        tokens: Array,
        edit: Callable[[Weights], Weights] | None = None,
        beside: Callable[[Array], Array] | None = None,
    ) -> Array:
        """(B, T, D) -> (B, T, D).

        Args:
          tokens: class, storage and patch tokens, and whatever the adapter puts before them.
          edit: from the block's weights to those that are used in place of some of them.
          beside: a branch beside the feed-forward block: from its normalised input (B, T, D) to what is added
            to the block's output.
        """
        ...


class Adapter(Protocol):
    """What every adapter has.

    It is made by `Adapter(config, layers=L, width=D, param_dtype=..., rngs=...)`. Its `Config` may say
    `use_depth = True` to be given depth tokens. Settings are those of its fields, under
    `config.model.adapter`.
    """

    Config: ClassVar[type]

    def stacked(self) -> Any:
        """What the scan over layers slices: a pytree, every leaf with a leading axis of L layers."""
        ...

    def layer(
        self, weights: Any, visual: Array, depth: Array | None, noise: Array | None, grid: Grid
    ) -> LayerOutput:
        """Refine the patch tokens of one layer, after its block.

        Args:
          weights: one layer's slice of `stacked()`.
          visual, depth: patch tokens (B, N, D), row by row; depth is None without `use_depth`.
          noise: a random key of this layer in training, None in evaluation.
          grid: h and w, N = h * w.
        """
        ...

    def queries(self) -> Array | None:
        """Query position embeddings of the mask decoder, (queries, width of the head), or None for learned
        ones that are the head's own."""
        ...


class InsideBlocks(Protocol):
    """An adapter that acts inside the encoder's blocks, too."""

    def block(self, weights: Any, visual: Array, run: RunBlock) -> Array:
        """The visual block of one layer, as the adapter wants it run: tokens (B, T, D) -> (B, T, D)."""
        ...


class TrainsEncoder(Protocol):
    """An adapter that trains weights of the visual encoder."""

    def trains(self, path: Path) -> bool:
        """Whether the visual encoder's weight at `path`, such as ("blocks", "norm1", "bias"), is trained."""
        ...


class RefinesMaps(Protocol):
    """An adapter that works on the feature maps, before the head."""

    def refine_maps(
        self, maps: list[Array], scales: Sequence[float]
    ) -> tuple[list[Array], tuple[float, ...]]:
        """Maps (B, h, w, D) of the chosen layers, finest first, and how much the head resizes each -> the
        same, refined."""
        ...


class LinksFeatures(Protocol):
    """An adapter whose queries give the query features, too."""

    def query_features(self, queries: Array) -> Array:
        """From `queries()` to what stands in place of the head's learned query features: (queries, width)."""
        ...


class HasRules(Protocol):
    """An adapter whose parameters, or those it trains, are decayed otherwise than by default."""

    optimizer_rules: ClassVar[tuple[Rule, ...]]
    """Looked at before the default rules, over full names such as `backbone/adapter/scale`."""


def hook(adapter: Adapter, name: str) -> Any:
    """A method or attribute that an adapter may have, or None."""
    return getattr(adapter, name, None)


class Projection(nnx.Module):
    """A linear map whose kernel and bias are also read apart."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype, rngs: nnx.Rngs):
        # Kaiming uniform with a = sqrt(5), torch's default for a linear layer: bound 1/sqrt(fan in)
        bound = in_features**-0.5
        shape = (in_features, out_features)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), shape[1:], param_dtype, -bound, bound))

    def __call__(self, x: Array) -> Array:
        """(..., in) -> (..., out), accumulated in at least float32."""
        wide = jnp.promote_types(jnp.float32, x.dtype)
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=wide)
        return y + self.bias[...]


class QueryLink(nnx.Module):
    """Queries from the tokens of all layers. transform: W_q. merge: W_m."""

    def __init__(self, width: int, query_dim: int, *, param_dtype, rngs: nnx.Rngs):
        self.transform = Projection(width, query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * query_dim, query_dim, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Tokens (L, M, D) -> query position embeddings (M, query_dim)."""
        return merged(self.transform(tokens), self.merge)


def merged(per_layer: Array, merge: Projection) -> Array:
    """The largest, the mean and the last of the queries of all layers (L, M, Q), merged: (M, Q)."""
    # By index, as torch.max: the gradient of jnp.max compares values, and a compiler that computes them
    # twice with different rounding then finds none equal and divides by zero.
    strongest = jax.lax.stop_gradient(jnp.argmax(per_layer, axis=0, keepdims=True))
    largest = jnp.take_along_axis(per_layer, strongest, axis=0)[0]
    together = jnp.stack([largest, per_layer.mean(axis=0), per_layer[-1]], axis=-1)
    # the released layout interleaves the three per feature
    return together.reshape(together.shape[0], -1) @ merge.kernel[...] + merge.bias[...]
