"""The dual-gated mixture of low-rank token experts (arXiv 2603.13352, section 3).

Parameters of all layers are stacked on a leading axis, so that the encoder's scan slices them with
its own blocks. One layer is `SpectralMoE.layer`, a pure function of its slice.

The router of one modality, and the loss that keeps its experts busy.

Noisy top-k gating and the smooth load follow Shazeer et al. 2017 (arXiv 1701.06538, appendix A);
distance gates follow SpectralMoE (arXiv 2603.13352, section 3.2). All of it is at least float32.

Low-rank token experts, evaluated in their own coordinates.

Expert e holds m tokens T_e = A_e B_e of rank r. Everything it can add to a feature lies in the span
of the r rows of B_e W_t and of the bias b_t, so a token's update is kept as r numbers an expert plus
one: E*r + 1 coordinates instead of d, with the same result.

How the depth update refines the visual one, in expert coordinates or in d dimensions.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.scipy.special import ndtr

from spectralmoe_jax.adapters.base import Grid, LayerOutput, Projection, merged
from spectralmoe_jax.adapters.expert_dispatch import dispatched
from spectralmoe_jax.adapters.expert_dispatch import updates as all_updates
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.parallel import by_expert, by_rows, constrain, gather_experts

HIGHEST = jax.lax.Precision.HIGHEST


class Routing(NamedTuple):
    """gates: (B, N, E), zero outside the top k. chosen: (B, N, E) bool. indices: (B, N, k) int32, the chosen
    experts, the strongest first. load: (E,) float."""

    gates: Array
    chosen: Array
    indices: Array
    load: Array


def clean_logits(tokens: Array, w_gate: Array, config: SpectralMoEConfig) -> Array:
    """Negative distance (or the product) of every token to every expert's gate vector.

    tokens (B, N, D), w_gate (D, E) -> (B, N, E), all of one dtype. The squared distance of `gaussian` comes
    without the token's own square, the same for all experts: it changes neither the choice of experts
    nor their gates nor the load. In float32 the logits would be rounded to its last digit. Gradients through
    the load, at N = 256, D = 128, then err by 1e-4 to 3e-4 of the largest, and by 1e-5 to 3e-5 without it.
    """
    if config.gating == "laplace" and config.distance == "l1":
        # one expert at a time: the (B, N, D) difference fuses into its sum and is never stored
        distances = [jnp.sum(jnp.abs(tokens - w), axis=-1) for w in w_gate.T]
        return -jnp.stack(distances, axis=-1)
    product = _product(tokens, w_gate)
    if config.gating == "softmax":
        return product
    relative = jnp.sum(w_gate**2, axis=0) - 2 * product
    if config.gating == "gaussian":
        return -relative
    squared = jnp.maximum(jnp.sum(tokens**2, axis=-1, keepdims=True) + relative, 0.0)
    # a token on its gate vector has distance 0 and, as in torch.cdist, gradient 0
    positive = squared > 0
    return -jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _product(tokens: Array, w: Array) -> Array:
    return jnp.einsum("bnd,de->bne", tokens, w, precision=HIGHEST)


def route(
    tokens: Array, w_gate: Array, w_noise: Array, config: SpectralMoEConfig, noise: Array | None = None
) -> Routing:
    """Choose the top k experts of every token.

    Args:
      tokens: (B, N, D), any float dtype; the router computes in at least float32.
      w_gate, w_noise: (D, E).
      noise: standard normal draws (B, N, E) in training, None in evaluation.
    """
    dtype = jnp.promote_types(jnp.float32, w_gate.dtype)
    tokens = tokens.astype(dtype)
    num_experts, k = config.num_experts, config.top_k
    distances = by_expert(lambda t, w: clean_logits(t, w, config), tokens, w_gate.astype(dtype))
    clean = gather_experts(distances)  # (B, N, E)
    logits, deviation = clean, None
    if noise is not None:
        spread = by_expert(_product, tokens, w_noise.astype(dtype))
        deviation = jax.nn.softplus(gather_experts(spread)) + config.noise_epsilon
        logits = clean + noise.astype(dtype) * deviation

    values, indices = by_rows(lambda x: jax.lax.top_k(x, min(k + 1, num_experts)), logits)  # (B, N, k+1)
    selected = jax.nn.one_hot(indices[..., :k], num_experts, dtype=dtype)  # (B, N, k, E)
    if config.full_softmax:
        gates = jax.nn.softmax(logits, axis=-1) * selected.sum(axis=-2)
    else:
        gates = jnp.einsum("bnk,bnke->bne", jax.nn.softmax(values[..., :k], axis=-1), selected)
    if deviation is not None and k < num_experts:
        load = _smooth_load(clean, logits, deviation, values, k)
    else:
        load = jnp.sum(gates > 0, axis=(0, 1)).astype(dtype)
    return Routing(gates, selected.sum(axis=-2) > 0, indices[..., :k], load)


def _smooth_load(clean: Array, logits: Array, deviation: Array, values: Array, k: int) -> Array:
    """Expected number of tokens an expert gets under a fresh noise draw of its own: (E,)."""
    threshold_if_in = values[..., k : k + 1]
    threshold_if_out = values[..., k - 1 : k]
    threshold = jnp.where(logits > threshold_if_in, threshold_if_in, threshold_if_out)
    return jnp.sum(ndtr((clean - threshold) / deviation), axis=(0, 1))


def squared_variation(x: Array) -> Array:
    """cv^2 of a vector (E,): unbiased variance over squared mean; 0 for a single entry."""
    if x.shape[0] == 1:
        return jnp.zeros((), x.dtype)
    return jnp.var(x, ddof=1) / (jnp.mean(x) ** 2 + 1e-10)


def balance_loss(routings: list[Routing], config: SpectralMoEConfig) -> Array:
    """The balance loss of one layer over its modalities, weight applied: a scalar."""
    terms = []
    for routing in routings:
        term = squared_variation(jnp.sum(routing.gates, axis=(0, 1)))
        if config.balance == "importance_and_load":
            term = term + squared_variation(routing.load)
        terms.append(term)
    total = sum(terms[1:], terms[0])
    if config.balance_over_modalities == "mean":
        total = total / len(terms)
    assert config.balance_weight is not None  # filled by the preset
    return config.balance_weight * total


def token_map(tokens: Array, a: Array, b: Array, config: SpectralMoEConfig) -> Array:
    """Softmax attention of every feature over the m tokens of every expert.

    tokens (B, N, D), a (E, M, R), b (E, R, D) -> (B, N, E, M), at least float32.
    """
    wide = jnp.promote_types(jnp.float32, tokens.dtype)
    if config.token_map == "dot":
        z = by_expert(_inside, tokens, b.astype(tokens.dtype))
        scores = jnp.einsum("bner,emr->bnem", z.astype(tokens.dtype), a.astype(tokens.dtype),
                            preferred_element_type=wide)  # fmt: skip
    else:
        feature_sum = jnp.sum(tokens.astype(wide), axis=-1)  # (B, N)
        token_sum = jnp.einsum("emr,er->em", a, jnp.sum(b, axis=-1))
        scores = feature_sum[:, :, None, None] * token_sum.astype(wide)
    return jax.nn.softmax(scores / jnp.sqrt(tokens.shape[-1]).astype(wide), axis=-1)


def _inside(tokens: Array, b: Array) -> Array:
    """(B, N, D), (E, R, D) -> (B, N, E, R), at least float32."""
    wide = jnp.promote_types(jnp.float32, tokens.dtype)
    return jnp.einsum("bnd,erd->bner", tokens, b, preferred_element_type=wide)


def coordinates(tokens: Array, a: Array, b: Array, weights: Array, config: SpectralMoEConfig) -> Array:
    """The weighted sum of the experts' updates, in expert coordinates.

    With experts spread over devices each computes those of its own, and these numbers are what crosses.

    Args:
      tokens: (B, N, D). a: (E, M, R). b: (E, R, D).
      weights: (B, N, E), the factor of each expert's update.

    Returns: (B, N, E*R + 1), at least float32; `x @ directions(...)` is the update itself.
    """
    p = token_map(tokens, a, b, config)[..., 1:]  # the first token is a sink: it takes no part below
    inside = jnp.einsum("bnem,emr->bner", p, a[:, 1:].astype(p.dtype))
    weights = weights.astype(p.dtype)
    inside = gather_experts(inside * weights[..., None])  # (B, N, E, R)
    mass = jnp.sum(p.sum(axis=-1) * weights, axis=-1, keepdims=True)  # (B, N, 1), of the bias
    return jnp.concatenate([inside.reshape(*inside.shape[:2], -1), mass], axis=-1)


def directions(b: Array, kernel: Array, bias: Array) -> Array:
    """The rows that coordinates multiply: (E*R + 1, D). b (E, R, D), kernel (D, D), bias (D,)."""
    rows = constrain(constrain(jnp.einsum("erd,dc->erc", b, kernel), "expert", None, None), None, None, None)
    return jnp.concatenate([rows.reshape(-1, kernel.shape[1]), bias[None]], axis=0)


def combine(
    tokens: Array, a: Array, b: Array, basis: Array, routing: Routing, config: SpectralMoEConfig
) -> Array:
    """Combine the chosen experts of one modality; basis: `directions`, (E*R + 1, D).

    Returns: coordinates (B, N, E*R + 1) where `config.in_coordinates`, else the update (B, N, D).
    """
    if config.in_coordinates:
        weights = routing.gates if config.combination == "gated_sum" else routing.chosen
        return coordinates(tokens, a, b, weights, config)
    if config.dispatches:
        inside = dispatched(tokens, routing.indices, a, b, config)
        updates = all_updates(inside, routing.indices, basis, config.num_experts)  # (B, N, k, D)
        if config.combination == "log_sum_exp":
            return jax.nn.logsumexp(updates, axis=2)
        gates = jnp.take_along_axis(routing.gates, routing.indices, axis=-1)
        return jnp.einsum("bnk,bnkd->bnd", gates.astype(updates.dtype), updates)
    alone = []
    for rank in range(config.top_k):
        only = _nth_chosen(routing.chosen, rank)
        x = coordinates(tokens, a, b, only, config)
        alone.append(jnp.einsum("bnx,xd->bnd", x, basis.astype(x.dtype)))
    return jax.nn.logsumexp(jnp.stack(alone), axis=0)


def _nth_chosen(chosen: Array, n: int) -> Array:
    """Of the chosen experts of a token, in order of their number, the n-th alone: (B, N, E) bool."""
    order = jnp.cumsum(chosen, axis=-1)
    return chosen & (order == n + 1)


def fuse(
    visual: Array, depth: Array | None, gram: Array | None, width: int, config: SpectralMoEConfig
) -> Array:
    """Fuse the two modalities' updates.

    Args:
      visual, depth: (B, N, X), coordinates or plain updates (X = D).
      gram: (X, X) inner products of the directions, or None where X is D itself.
      width: D, which sets the attention's scale 1/sqrt(D).

    Returns: (B, N, X), in the same representation.
    """
    if config.fusion == "none" or depth is None:
        return visual
    if config.fusion == "add":
        return visual + depth
    scale = 1.0 / jnp.sqrt(width).astype(visual.dtype)
    if config.fusion == "cross_attention":
        logits = _inner(visual, depth, gram) * scale  # (B, N, N), query visual
        value = depth if config.fusion_value == "depth" else visual
        return jnp.einsum("bnk,bkx->bnx", jax.nn.softmax(logits, axis=-1), value)
    logits = _inner(depth, visual, gram) * scale
    diagonal = jnp.diagonal(logits, axis1=1, axis2=2)  # (B, N)
    weight = jnp.exp(diagonal - jax.nn.logsumexp(logits, axis=-1))
    return weight[..., None] * visual


def _inner(left: Array, right: Array, gram: Array | None) -> Array:
    if gram is not None:
        left = jnp.einsum("bnx,xy->bny", left, gram.astype(left.dtype))
    return jnp.einsum("bnx,bkx->bnk", left, right)


class SpectralMoE(nnx.Module):
    """The adapter of all layers.

    Attributes (L layers, E experts, M tokens an expert, R the largest rank, J routers, D width):
      experts_a: (L, E, M, R); experts_b: (L, E, R, D). An expert of smaller rank is zero beyond its
        rank on both sides, where the gradient of a product of zeros keeps it.
      w_gate, w_noise: (L, J, D, E), zero at the start.
      token_to_feature: W_t. delta_to_feature: W_d. scale: alpha. transform: W_q. merge: W_m.
    """

    Config: ClassVar[type] = SpectralMoEConfig

    def __init__(self, config: SpectralMoEConfig, *, layers: int, width: int,
                 param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        e, r = config.num_experts, max(config.ranks)
        self.config = config
        self.experts_a = nnx.Param(_initial_a(rngs.params(), config, layers, param_dtype))
        self.experts_b = nnx.Param(jnp.zeros((layers, e, r, width), param_dtype))
        routers = (layers, config.num_routers, width, e)
        self.w_gate = nnx.Param(jnp.zeros(routers, param_dtype))
        self.w_noise = nnx.Param(jnp.zeros(routers, param_dtype))
        self.token_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.delta_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.transform = Projection(width, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * config.query_dim, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))

    def stacked(self) -> dict[str, Array]:
        """What a scan over layers slices: every leaf has the layer axis first."""
        return {
            "a": self.experts_a[...],
            "b": self.experts_b[...],
            "w_gate": self.w_gate[...],
            "w_noise": self.w_noise[...],
        }

    def draw_noise(self, key: Array, batch: int, tokens: int) -> Array:
        """Standard normal draws for one layer's routers: (J, B, N, E), visual first."""
        shape = (self.config.num_modalities, batch, tokens, self.config.num_experts)
        return jax.random.normal(key, shape, jnp.promote_types(jnp.float32, self.w_gate.dtype))

    def layer(self, weights: dict[str, Array], visual: Array, depth: Array | None,
              noise: Array | None = None, grid: Grid | None = None) -> LayerOutput:  # fmt: skip
        """Refine the patch tokens of one layer.

        Args:
          weights: one layer's slice of `stacked()`.
          visual, depth: patch tokens (B, N, D); depth is None without the depth modality.
          noise: in training (J, B, N, E) standard normal draws, or a key for them; None in evaluation.
          grid: not used.
        """
        if noise is not None and jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
            noise = self.draw_noise(noise, visual.shape[0], visual.shape[1])
        config, dtype = self.config, visual.dtype
        wide = jnp.promote_types(jnp.float32, dtype)
        a, b = weights["a"], weights["b"]
        modalities = [visual]
        if config.use_depth:
            assert depth is not None
            modalities.append(depth)
        routings = [
            route(
                tokens,
                weights["w_gate"][min(j, config.num_routers - 1)],
                weights["w_noise"][min(j, config.num_routers - 1)],
                config,
                None if noise is None else noise[j],
            )
            for j, tokens in enumerate(modalities)
        ]
        basis = directions(b, self.token_to_feature.kernel[...], self.token_to_feature.bias[...])
        needed = modalities[:1] if config.fusion == "none" else modalities
        updates = [
            combine(tokens, a, b, basis, routing, config)
            for tokens, routing in zip(needed, routings, strict=False)
        ]
        gram = basis @ basis.T if config.in_coordinates else None
        delta = fuse(updates[0], updates[1] if len(updates) > 1 else None, gram, visual.shape[-1], config)

        kernel = self.delta_to_feature.kernel[...]
        way_back = basis @ kernel if config.in_coordinates else kernel
        change = (
            jnp.einsum("bnd,dc->bnc", visual, kernel.astype(dtype), preferred_element_type=wide)
            + jnp.einsum("bnx,xc->bnc", delta.astype(dtype), way_back.astype(dtype),
                         preferred_element_type=wide)
            + self.delta_to_feature.bias[...]
        )  # fmt: skip
        refined = visual + (self.scale[...] * change).astype(dtype)
        strongest = jnp.stack([r.indices[..., 0] for r in routings])
        return LayerOutput(refined, balance_loss(routings, config), strongest)

    def queries(self) -> Array:
        """The query position embedding of the mask decoder: (M, query_dim), at least float32."""
        kernel, bias = self.transform.kernel[...], self.transform.bias[...]
        small = jnp.einsum("lerd,dq->lerq", self.experts_b[...], kernel)
        per_layer = jnp.einsum("lemr,lerq->lmq", self.experts_a[...], small) / self.config.num_experts + bias
        return merged(per_layer, self.merge)


def _initial_a(key: Array, config: SpectralMoEConfig, layers: int, dtype) -> Array:
    """Kaiming uniform with a = sqrt(5): bound 1/sqrt(rank), zero beyond an expert's rank."""
    ranks = jnp.asarray(config.ranks, dtype)[:, None, None]
    shape = (layers, config.num_experts, config.num_tokens, max(config.ranks))
    draws = jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(ranks)
    return jnp.where(jnp.arange(shape[-1]) < ranks, draws, 0.0)
