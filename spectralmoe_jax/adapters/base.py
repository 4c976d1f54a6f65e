"""The base class of adapters, the glossary of dimensions, and the parts that several adapters share.

An adapter refines the patch tokens of an encoder layer by layer. `registry.py` finds one by its name;
`docs/adding_an_adapter.md` makes one.

Dimensions, as in the shapes of docstrings and comments of the whole model:

  B  images of a batch                      E  experts of a layer
  N  patch tokens of an image, N = h * w    M  tokens of an expert (or of a layer, without experts)
  T  all tokens: class, storage and patch   R  rank of the tokens T = A B
  D  width of a token or feature            J  modalities: visual, depth
  L  layers of the encoder                  k  experts that a token is routed to
  K  outputs of the mask decoder            P  sampling points
  Q  queries of the mask decoder            h, w  patch grid, or any feature map
  C  classes; channels of an image          H, W  pixels of the image
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.layers import wide_type

Path = tuple[str, ...]
Weights = dict[Path, Array]  # weights of one block by path, such as ("attention", "qkv", "kernel")
Edit = Callable[[Weights], Weights]  # from the weights of a block to the replacements of some of them
Beside = Callable[
    [Array], Array
]  # from the normalised input of a feed-forward block to a change of its output
Rule = tuple[str, float, float]  # (regular expression, factor on weight decay, factor on learning rate)
Grid = tuple[int, int]  # patches along height and width: (h, w)


class LayerOutput(NamedTuple):
    """Result of an adapter's layer.

    Attributes:
      tokens: (B, N, D), the refined patch tokens.
      auxiliary_loss: scalar, its weight applied; the mean over layers is added to the task's loss.
      experts: (J, B, N) int32, the strongest expert of every token for each modality, the visual one first;
        None without experts.
    """

    tokens: Array
    auxiliary_loss: Array
    experts: Array | None = None


class RunBlock(Protocol):
    """The encoder block of one layer."""

    def __call__(self, tokens: Array, edit: Edit | None = None, beside: Beside | None = None) -> Array:
        """Run the block: (B, T, D) -> (B, T, D).

        Args:
          tokens: class, storage and patch tokens, and those that the adapter puts before them.
          edit: returns replacements of some of the block's weights.
          beside: a branch beside the feed-forward block: takes its normalised input (B, T, D), and returns
            what is added to the block's output.
        """
        ...


class Adapter(nnx.Module):
    """Base class of adapters; without any override, the encoder's tokens stay as they are.

    The parameters of all layers are stacked on a leading axis, so that the scan over layers slices them
    together with the encoder's blocks.

    Attributes:
      Config: dataclass of the settings, the keys of `config.model.adapter` beside `kind`. With
        `use_depth = True` in it the adapter reads depth tokens; one with experts has `num_experts`.
      optimizer_rules: first-match rules that come before the default ones, over full names of parameters
        such as `backbone/adapter/scale`.
      adds_tokens: whether `block` runs the encoder's blocks on additional tokens.
      config: the settings, an instance of `Config`.
    """

    Config: ClassVar[type]
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ()
    adds_tokens: ClassVar[bool] = False

    def __init__(self, config: Any, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
        """Make the parameters.

        Args:
          config: the settings.
          layers: L.
          width: D.
          param_dtype: of the parameters, float32 or float64.
          rngs: draws the initial values.
        """
        self.config: Any = config

    def stacked(self) -> Any:
        """Parameters by layer: a pytree, every leaf with a leading axis of L layers."""
        return {}

    def block(self, weights: Any, visual: Array, run: RunBlock) -> Array:
        """Run the visual block of one layer.

        Args:
          weights: one layer's slice of `stacked()`.
          visual: all tokens (B, T, D).
          run: the block.

        Returns:
          The tokens after the block, (B, T, D).
        """
        return run(visual)

    def layer(
        self, weights: Any, visual: Array, depth: Array | None, noise: Array | None, grid: Grid
    ) -> LayerOutput:
        """Refine the patch tokens of one layer, after its block.

        Args:
          weights: one layer's slice of `stacked()`.
          visual: patch tokens (B, N, D), row by row.
          depth: patch tokens of the depth encoder (B, N, D); None unless `Config` has `use_depth`.
          noise: a random key of this layer in training, None in evaluation.
          grid: (h, w), N = h * w.
        """
        return unchanged(visual)

    def queries(self) -> Array | None:
        """Query position embeddings of the mask decoder, (Q, D of the head); None for learned ones."""
        return None

    def query_features(self, queries: Array) -> Array | None:
        """Query features of the mask decoder, (Q, D of the head), from `queries()`; None for learned ones."""
        return None

    def refine_maps(self, maps: list[Array], scales: Sequence[float]) -> tuple[list[Array], Sequence[float]]:
        """Refine the feature maps before the head.

        Args:
          maps: (B, h, w, D) of the chosen layers, finest first.
          scales: how much the head resizes each map.

        Returns:
          The maps, and how much the head has to resize each of them now.
        """
        return maps, scales

    def trains(self, path: Path) -> bool:
        """Return True for a weight of the visual encoder that is trained.

        Args:
          path: of the weight, such as ("blocks", "norm1", "bias").
        """
        return False

    @classmethod
    def chooses_weights(cls) -> bool:
        """Return True if `trains` chooses the weights of the visual encoder that are trained."""
        return cls.trains is not Adapter.trains


def uses_depth(config: Any) -> bool:
    """Return True if an adapter with these settings reads depth tokens."""
    return bool(getattr(config, "use_depth", False))


def unchanged(visual: Array) -> LayerOutput:
    """Output of a layer that adds no loss: its tokens (B, N, D) as they are."""
    return LayerOutput(visual, jnp.zeros((), wide_type(visual.dtype)))


class Projection(nnx.Module):
    """A linear map whose kernel and bias can also be read on their own.

    Attributes:
      kernel: (in, out).
      bias: (out,).
    """

    def __init__(self, in_features: int, out_features: int, *, param_dtype, rngs: nnx.Rngs):
        # Kaiming uniform with a = sqrt(5), torch's default for a linear layer: bound 1/sqrt(fan in)
        bound = in_features**-0.5
        shape = (in_features, out_features)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), shape[1:], param_dtype, -bound, bound))

    def __call__(self, x: Array) -> Array:
        """(..., in) -> (..., out), in at least float32."""
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=wide_type(x.dtype))
        return y + self.bias[...]


class QueryLink(nnx.Module):
    """Queries from the tokens of all layers (Rein, arXiv 2312.04265, section 3.3).

    Attributes:
      transform: W_q, from the tokens of a layer to its queries.
      merge: W_m, from the queries of all layers to the decoder's.
    """

    def __init__(self, width: int, query_dim: int, *, param_dtype, rngs: nnx.Rngs):
        self.transform = Projection(width, query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * query_dim, query_dim, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Tokens (L, M, D) -> query position embeddings (M, query_dim)."""
        return merge_layers(self.transform(tokens), self.merge)


def merge_layers(per_layer: Array, merge: Projection) -> Array:
    """Queries of all layers (L, M, query_dim) -> [max, mean, last of them] W_m + b_m, (M, query_dim)."""
    # By index, as torch.max: the gradient of jnp.max compares values, and a compiler that computes them
    # twice with different rounding then finds none equal and divides by zero.
    strongest = jax.lax.stop_gradient(jnp.argmax(per_layer, axis=0, keepdims=True))
    largest = jnp.take_along_axis(per_layer, strongest, axis=0)[0]
    together = jnp.stack([largest, per_layer.mean(axis=0), per_layer[-1]], axis=-1)  # (M, query_dim, 3)
    # the released layout interleaves the three per feature
    return together.reshape(together.shape[0], -1) @ merge.kernel[...] + merge.bias[...]
