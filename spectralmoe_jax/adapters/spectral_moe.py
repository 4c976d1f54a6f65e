"""SpectralMoE: the dual-gated mixture of low-rank token experts (arXiv 2603.13352, section 3).

The file follows the method. For one layer, with patch tokens f_j of the modalities j (visual v, depth d):

  1. route      logits_e = -dist(f, w_e) + eps_e (softplus(f W_noise)_e + 1e-2), g = softmax(top k logits)
  2. experts    T_e = A_e B_e, p_e = softmax(f T_e^T / sqrt(D)), dz_e = p_e[1:] (T_e[1:] W_t + b_t)
  3. combine    D_j = sum_e g_e dz_e
  4. fuse       delta = softmax(D_v D_d^T / sqrt(D)) D_d
  5. output     f_v <- f_v + alpha ((delta + f_v) W_d + b_d)
  6. balance    loss = lambda mean_j cv^2(sum of g_j over all tokens)
  7. link       Q_l = mean_e(T_e) W_q + b_q, Q = [max_l Q_l, mean_l Q_l, Q_{L-1}] W_m + b_m

These numbers are the equation numbers of the comments below. They state the `paper` preset; the functions
name what the `released` preset and the other switches compute instead (`config/adapters.py`).

Expert coordinates: every dz_e lies in the span of the E*R rows of B_e W_t and of b_t, the directions. Where
experts combine linearly, an update is therefore kept as E*R + 1 coordinates in place of D numbers until the
output multiplies them with directions W_d. The result is the same function.
"""

from __future__ import annotations

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.scipy.special import ndtr

from spectralmoe_jax.adapters.base import Adapter, Grid, LayerOutput, Projection, merge_layers
from spectralmoe_jax.adapters.expert_dispatch import dispatch, dispatched_updates
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.layers import attend, project, softmax, wide_type
from spectralmoe_jax.parallel import by_expert, by_rows, constrain, gather_experts

HIGHEST = jax.lax.Precision.HIGHEST
INSIDE = "tokens within the spans of the experts"  # what the backward pass keeps of `gated_sum`


class SpectralMoE(Adapter):
    """The adapter of all layers.

    Attributes:
      experts_a: A, (L, E, M, R), R the largest rank. An expert of smaller rank is zero beyond its rank in A
        and B, where the gradient of a product of zeros keeps it.
      experts_b: B, (L, E, R, D), zero at the start.
      w_gate, w_noise: (L, J, D, E), zero at the start; J = 1 for a shared router.
      token_to_feature: W_t and b_t, shared by all layers as are all that follow.
      delta_to_feature: W_d and b_d, zero at the start with `zero_start`.
      scale: alpha.
      transform: W_q and b_q.
      merge: W_m and b_m.
    """

    Config: ClassVar[type] = SpectralMoEConfig

    def __init__(
        self, config: SpectralMoEConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        experts, rank = config.num_experts, max(config.ranks)
        self.config = config
        self.experts_a = nnx.Param(_initial_a(rngs.params(), config, layers, param_dtype))
        self.experts_b = nnx.Param(jnp.zeros((layers, experts, rank, width), param_dtype))
        routers = (layers, config.num_routers, width, experts)
        self.w_gate = nnx.Param(jnp.zeros(routers, param_dtype))
        self.w_noise = nnx.Param(jnp.zeros(routers, param_dtype))
        self.token_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.delta_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.transform = Projection(width, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * config.query_dim, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        if config.zero_start:
            for weight in (self.delta_to_feature.kernel, self.delta_to_feature.bias):
                weight.set_value(jnp.zeros_like(weight[...]))

    def stacked(self) -> dict[str, Array]:
        """Experts and routers of all layers."""
        return {
            "a": self.experts_a[...],
            "b": self.experts_b[...],
            "w_gate": self.w_gate[...],
            "w_noise": self.w_noise[...],
        }

    def layer(
        self,
        weights: dict[str, Array],
        visual: Array,
        depth: Array | None,
        noise: Array | None = None,
        grid: Grid | None = None,
    ) -> LayerOutput:
        """Refine the patch tokens of one layer.

        Args:
          weights: one layer's slice of `stacked()`.
          visual: patch tokens (B, N, D).
          depth: patch tokens (B, N, D); None without the depth modality.
          noise: in training (J, B, N, E) standard normal draws, or a key for them; None in evaluation.
          grid: not used.
        """
        config, dtype = self.config, visual.dtype
        a, b = weights["a"], weights["b"]  # (E, M, R), (E, R, D)
        if noise is not None and jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
            noise = self.draw_noise(noise, visual.shape[0], visual.shape[1])
        modalities = [visual]
        if config.use_depth:
            assert depth is not None
            modalities.append(depth)

        # 1. route every modality; a shared router routes both
        routings = []
        for j, tokens in enumerate(modalities):
            router = min(j, config.num_routers - 1)
            w_gate, w_noise = weights["w_gate"][router], weights["w_noise"][router]  # (D, E) each
            routings.append(route(tokens, w_gate, w_noise, config, None if noise is None else noise[j]))

        # 2. experts: the directions that all updates lie in
        basis = directions(b, self.token_to_feature.kernel[...], self.token_to_feature.bias[...])

        # 3. combine the chosen experts of every modality that the fusion needs
        needed = 1 if config.fusion == "none" else len(modalities)
        updates = [
            combine(tokens, a, b, basis, routing, config)  # (B, N, X): X = E*R + 1 in coordinates, else D
            for tokens, routing in zip(modalities[:needed], routings[:needed], strict=True)
        ]

        # 4. fuse visual and depth update; inner products of coordinates need those of the directions
        gram = basis @ basis.T if config.in_coordinates else None  # (X, X)
        delta = fuse(updates[0], updates[1] if needed > 1 else None, gram, visual.shape[-1], config)

        # 5. output, eq. 5: delta W_d + f_v W_d + b_d, from coordinates straight to D
        #    alpha scales the weights: kept for its own gradient, the change of all layers would be large
        kernel = self.scale[...] * self.delta_to_feature.kernel[...]  # (D, D)
        output_kernel = basis @ kernel if config.in_coordinates else kernel  # (X, D)
        wide = wide_type(dtype)
        change = (
            project(visual, kernel, wide)
            + project(delta.astype(dtype), output_kernel, wide)
            + self.scale[...] * self.delta_to_feature.bias[...]
        )  # (B, N, D)
        refined = visual + change.astype(dtype)

        # 6. balance
        strongest = jnp.stack([routing.indices[..., 0] for routing in routings])  # (J, B, N)
        return LayerOutput(refined, balance_loss(routings, config), strongest)

    def draw_noise(self, key: Array, batch: int, tokens: int) -> Array:
        """Standard normal draws for one layer's routers: (J, B, N, E), visual first."""
        shape = (self.config.num_modalities, batch, tokens, self.config.num_experts)
        return jax.random.normal(key, shape, wide_type(self.w_gate.dtype))

    def queries(self) -> Array:
        """Query position embeddings of the mask decoder, eq. 7: (M, query_dim), at least float32."""
        # 7. link: mean_e(A_e B_e) W_q = mean_e(A_e (B_e W_q)), which never forms the tokens
        kernel, bias = self.transform.kernel[...], self.transform.bias[...]
        b_queries = jnp.einsum("lerd,dq->lerq", self.experts_b[...], kernel)
        tokens = jnp.einsum("lemr,lerq->lmq", self.experts_a[...], b_queries)
        return merge_layers(tokens / self.config.num_experts + bias, self.merge)


def _initial_a(key: Array, config: SpectralMoEConfig, layers: int, dtype) -> Array:
    """Kaiming uniform with a = sqrt(5): bound 1/sqrt(rank), zero beyond an expert's rank; (L, E, M, R)."""
    ranks = jnp.asarray(config.ranks, dtype)[:, None, None]
    shape = (layers, config.num_experts, config.num_tokens, max(config.ranks))
    draws = jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(ranks)
    return jnp.where(jnp.arange(shape[-1]) < ranks, draws, 0.0)


# 1. Route (eq. 1). Noisy top-k gating and the smooth load follow Shazeer et al. 2017 (arXiv 1701.06538,
# appendix A), distance gates SpectralMoE (section 3.2). All of it is computed in at least float32.


class Routing(NamedTuple):
    """Experts of every token of one modality.

    Attributes:
      gates: g, (B, N, E), zero outside the top k.
      chosen: (B, N, E) bool, the top k.
      indices: (B, N, k) int32, the top k, the strongest first.
      load: (E,), tokens of each expert; in training the number that is expected under fresh noise.
    """

    gates: Array
    chosen: Array
    indices: Array
    load: Array


def route(
    tokens: Array, w_gate: Array, w_noise: Array, config: SpectralMoEConfig, noise: Array | None = None
) -> Routing:
    """Choose the top k experts of every token.

    Args:
      tokens: (B, N, D), any float dtype.
      w_gate: (D, E).
      w_noise: (D, E).
      config: the settings.
      noise: standard normal draws (B, N, E) in training, None in evaluation.
    """
    dtype = wide_type(w_gate.dtype)
    tokens = tokens.astype(dtype)
    num_experts, k = config.num_experts, config.top_k
    distances = by_expert(lambda t, w: clean_logits(t, w, config), tokens, w_gate.astype(dtype))
    clean = gather_experts(distances)  # (B, N, E)
    logits, deviation = clean, None
    if noise is not None:
        spread = by_expert(_product, tokens, w_noise.astype(dtype))
        deviation = jax.nn.softplus(gather_experts(spread)) + config.noise_epsilon  # (B, N, E)
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


def clean_logits(tokens: Array, w_gate: Array, config: SpectralMoEConfig) -> Array:
    """Negative distance (`softmax`: product) of every token to every expert's gate vector.

    tokens (B, N, D), w_gate (D, E) -> (B, N, E), all of one dtype. The squared distance of `gaussian` leaves
    out the token's own square, which is the same for all experts: it changes neither the choice of experts
    nor their gates nor the load, but in float32 the logits would be rounded to its last digit. Gradients
    through the load, at N = 256, D = 128, then err by 1e-4 to 3e-4 of the largest, and by 1e-5 to 3e-5
    without it.
    """
    if config.gating == "laplace" and config.distance == "l1":
        return -l1_distances(tokens, w_gate)
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


@jax.custom_vjp
def l1_distances(tokens: Array, w: Array) -> Array:
    """Sum of absolute differences of every token and every column: (B, N, D), (D, E) -> (B, N, E).

    Differentiated automatically, it would keep the signs of all differences. The gradient of a difference of
    0 is 0, as in torch.cdist.
    """
    # one expert at a time: the (B, N, D) difference fuses into its sum and is never stored
    return jnp.stack([jnp.sum(jnp.abs(tokens - column), axis=-1) for column in w.T], axis=-1)


def _l1_backward(operands: tuple[Array, Array], slopes: Array) -> tuple[Array, Array]:
    tokens, w = operands
    joined = tokens.reshape(-1, tokens.shape[-1])  # (B * N, D)
    slopes = slopes.reshape(joined.shape[0], -1)  # (B * N, E)
    of_tokens, of_w = jnp.zeros_like(joined), []
    for e, column in enumerate(w.T):
        signs = jnp.sign(joined - column)
        of_tokens = of_tokens + signs * slopes[:, e : e + 1]
        of_w.append(jnp.matmul(slopes[:, e], signs, precision=HIGHEST))  # sums faster than a reduction
    return of_tokens.reshape(tokens.shape), -jnp.stack(of_w, axis=-1)


l1_distances.defvjp(lambda tokens, w: (l1_distances(tokens, w), (tokens, w)), _l1_backward)


def _product(tokens: Array, w: Array) -> Array:
    """(B, N, D), (D, E) -> (B, N, E)."""
    return project(tokens, w, None, HIGHEST)


def _smooth_load(clean: Array, logits: Array, deviation: Array, values: Array, k: int) -> Array:
    """Expected number of tokens that an expert gets under a fresh draw of its own noise: (E,)."""
    threshold_if_in = values[..., k : k + 1]
    threshold_if_out = values[..., k - 1 : k]
    threshold = jnp.where(logits > threshold_if_in, threshold_if_in, threshold_if_out)
    return jnp.sum(ndtr((clean - threshold) / deviation), axis=(0, 1))


# 2. Experts (eq. 2), in coordinates.


def token_map(tokens: Array, a: Array, b: Array, config: SpectralMoEConfig) -> Array:
    """Attention p_e of every token over the M tokens of every expert.

    `sum_product` scores by (sum of f) (sum of T_e[m]) in place of the product <f, T_e[m]>.

    Args:
      tokens: f, (B, N, D).
      a: (E, M, R).
      b: (E, R, D).
      config: the settings.

    Returns:
      (E, B, N, M), at least float32. With experts in front, products with their tokens are not transposed.
    """
    wide = wide_type(tokens.dtype)
    if config.token_map == "dot":
        # f B_e^T, (B, N, E, R)
        z = checkpoint_name(by_expert(_inside, tokens, b.astype(tokens.dtype)), INSIDE)
        z = jnp.moveaxis(z.astype(tokens.dtype), 2, 0)  # (E, B, N, R)
        scores = jnp.einsum("ebnr,emr->ebnm", z, a.astype(tokens.dtype), preferred_element_type=wide)
    else:
        feature_sum = jnp.sum(tokens.astype(wide), axis=-1)  # (B, N)
        token_sum = jnp.einsum("emr,er->em", a, jnp.sum(b, axis=-1)).astype(wide)
        scores = feature_sum[..., None] * token_sum[:, None, None]  # (E, B, N, M)
    return softmax(scores / jnp.sqrt(tokens.shape[-1]).astype(wide))


def _inside(tokens: Array, b: Array) -> Array:
    """(B, N, D), (E, R, D) -> (B, N, E, R), at least float32."""
    experts, rank, width = b.shape
    inside = project(tokens, b.reshape(-1, width).T, wide_type(tokens.dtype))
    return inside.reshape(*tokens.shape[:-1], experts, rank)


def directions(b: Array, kernel: Array, bias: Array) -> Array:
    """Rows B_e W_t of all experts and b_t, which coordinates multiply: (E*R + 1, D).

    Args:
      b: (E, R, D).
      kernel: W_t, (D, D).
      bias: b_t, (D,).
    """
    rows = jnp.einsum("erd,dc->erc", b, kernel)
    rows = constrain(constrain(rows, "expert", None, None), None, None, None)
    return jnp.concatenate([rows.reshape(-1, kernel.shape[1]), bias[None]], axis=0)


# 3. Combine (eq. 3).


def combine(
    tokens: Array, a: Array, b: Array, basis: Array, routing: Routing, config: SpectralMoEConfig
) -> Array:
    """Combine the updates of the chosen experts of one modality.

    `log_sum_exp` gives log sum_e exp(dz_e) in place of the gated sum and does not use the gates.

    Args:
      tokens: (B, N, D).
      a: (E, M, R).
      b: (E, R, D).
      basis: `directions`, (E*R + 1, D).
      routing: the chosen experts.
      config: the settings.

    Returns:
      Coordinates (B, N, E*R + 1) where `config.in_coordinates`, else the update (B, N, D).
    """
    if config.in_coordinates:
        gates = routing.gates if config.combination == "gated_sum" else routing.chosen
        return gated_sum(tokens, a, b, gates, config)
    if config.dispatches:
        inside = dispatch(tokens, routing.indices, a, b, config)
        updates = dispatched_updates(inside, routing.indices, basis, config.num_experts)  # (B, N, k, D)
        if config.combination == "log_sum_exp":
            return jax.nn.logsumexp(updates, axis=2)
        gates = jnp.take_along_axis(routing.gates, routing.indices, axis=-1)
        return jnp.einsum("bnk,bnkd->bnd", gates.astype(updates.dtype), updates)  # eq. 3
    chosen = []  # the update of every chosen expert, (B, N, D) each
    for rank in range(config.top_k):
        x = gated_sum(tokens, a, b, _nth_chosen(routing.chosen, rank), config)
        chosen.append(jnp.einsum("bnx,xd->bnd", x, basis.astype(x.dtype)))
    return jax.nn.logsumexp(jnp.stack(chosen), axis=0)


@functools.partial(
    jax.checkpoint,
    static_argnums=4,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(INSIDE),
)
def gated_sum(tokens: Array, a: Array, b: Array, gates: Array, config: SpectralMoEConfig) -> Array:
    """Gated sum of the experts' updates, in coordinates.

    With experts spread over devices each computes those of its own, and these numbers are what crosses. The
    backward pass computes the attention p_e again: kept for all layers it would be large.

    Args:
      tokens: (B, N, D).
      a: (E, M, R).
      b: (E, R, D).
      gates: (B, N, E), the factor of each expert's update.
      config: the settings.

    Returns:
      (B, N, E*R + 1), at least float32; its product with `directions` is the update D_j.
    """
    # eq. 2: p_e[1:] A_e[1:]; the first token is a sink, it takes part in the softmax alone
    p = token_map(tokens, a, b, config)  # (E, B, N, M)
    rows = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1).at[:, 0].set(0)  # (E, M, R + 1)
    inside = jnp.einsum("ebnm,emr->ebnr", p, rows.astype(p.dtype))
    inside = jnp.moveaxis(inside, 0, 2)  # (B, N, E, R + 1)
    # eq. 3: D_j = sum_e g_e dz_e, g_e times the coordinates of dz_e; those of the bias b_t are shared
    gated = inside * gates.astype(p.dtype)[..., None]  # (B, N, E, R + 1)
    bias = jnp.sum(gated[..., -1], axis=-1, keepdims=True)  # (B, N, 1)
    gated = gather_experts(gated[..., :-1])
    return jnp.concatenate([gated.reshape(*gated.shape[:2], -1), bias], axis=-1)


def _nth_chosen(chosen: Array, n: int) -> Array:
    """The n-th of the chosen experts of every token, in order of their number: (B, N, E) bool."""
    order = jnp.cumsum(chosen, axis=-1)
    return chosen & (order == n + 1)


# 4. Fuse (eq. 4).


def fuse(
    visual: Array, depth: Array | None, gram: Array | None, width: int, config: SpectralMoEConfig
) -> Array:
    """Fuse the updates of the two modalities.

    `cross_attention` is equation 4, its value the depth or the visual update. `diagonal` exchanges query and
    key and keeps the diagonal of the attention: w = softmax(D_d D_v^T / sqrt(D)), delta[n] = w[n, n] D_v[n].

    Args:
      visual: D_v, (B, N, X), coordinates or plain updates (X = D).
      depth: D_d, likewise; None without the depth modality.
      gram: (X, X), inner products of the directions; None where X is D.
      width: D.
      config: the settings.

    Returns:
      delta, (B, N, X).
    """
    if config.fusion == "none" or depth is None:
        return visual
    if config.fusion == "add":
        return visual + depth
    if config.fusion == "cross_attention":
        query = visual if gram is None else jnp.einsum("bnx,xy->bny", visual, gram.astype(visual.dtype))
        value = depth if config.fusion_value == "depth" else visual
        query, key, value = (x[:, :, None] for x in (query, depth, value))  # one head
        return attend(query, key, value, scale=width**-0.5)[:, :, 0]  # eq. 4
    scale = 1.0 / jnp.sqrt(width).astype(visual.dtype)
    logits = _inner(depth, visual, gram) * scale  # (B, N, N), query depth
    diagonal = jnp.diagonal(logits, axis1=1, axis2=2)  # (B, N)
    weight = jnp.exp(diagonal - jax.nn.logsumexp(logits, axis=-1))
    return weight[..., None] * visual


def _inner(left: Array, right: Array, gram: Array | None) -> Array:
    """Inner products of two updates (B, N, X): (B, N, N)."""
    if gram is not None:
        left = jnp.einsum("bnx,xy->bny", left, gram.astype(left.dtype))
    return jnp.einsum("bnx,bkx->bnk", left, right)


# 6. Balance (eq. 6). The output (5) and the link (7) are methods of `SpectralMoE`.


def balance_loss(routings: list[Routing], config: SpectralMoEConfig) -> Array:
    """Balance loss of one layer over its modalities, weight applied: a scalar.

    `importance_and_load` adds cv^2 of the load to that of the importance.
    """
    terms = []
    for routing in routings:
        term = squared_variation(jnp.sum(routing.gates, axis=(0, 1)))  # of the importance (E,)
        if config.balance == "importance_and_load":
            term = term + squared_variation(routing.load)
        terms.append(term)
    total = sum(terms[1:], terms[0])
    if config.balance_over_modalities == "mean":
        total = total / len(terms)
    assert config.balance_weight is not None  # filled by the preset
    return config.balance_weight * total


def squared_variation(x: Array) -> Array:
    """cv^2 of a vector (E,): unbiased variance over squared mean; 0 for a single entry."""
    if x.shape[0] == 1:
        return jnp.zeros((), x.dtype)
    return jnp.var(x, ddof=1) / (jnp.mean(x) ** 2 + 1e-10)
