"""What the adapter can be: every switch in which the publication and the released code differ."""

from __future__ import annotations

import dataclasses

from spectralmoe_jax.errors import UserError

CHOICES = {
    "gating": ("laplace", "gaussian", "softmax"),
    "distance": ("l1", "l2"),
    "token_map": ("dot", "sum_product"),
    "combination": ("gated_sum", "log_sum_exp"),
    "fusion": ("cross_attention", "diagonal", "add", "none"),
    "fusion_value": ("depth", "visual"),
    "router": ("dual", "shared"),
    "balance": ("importance", "importance_and_load"),
    "balance_over_modalities": ("mean", "sum"),
    "strategy": ("auto", "coordinates", "dispatch"),
}

DISPATCH_FROM = 64
"""Experts from which on `auto` dispatches: at the published rank they span more than a token's width."""

PRESETS: dict[str, dict] = {
    # arXiv 2603.13352, sections 3.2 to 3.4; the balance weight is not published
    "paper": {
        "distance": "l1",
        "token_map": "dot",
        "combination": "gated_sum",
        "fusion": "cross_attention",
        "fusion_value": "depth",
        "balance": "importance",
        "balance_over_modalities": "mean",
        "balance_weight": 1.0,
    },
    # what the published checkpoints were trained with
    "released": {
        "distance": "l2",
        "token_map": "sum_product",
        "combination": "log_sum_exp",
        "fusion": "diagonal",
        "balance": "importance_and_load",
        "balance_over_modalities": "sum",
        "balance_weight": 1e3,
    },
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Settings of the dual-gated mixture of low-rank token experts.

    `preset` fills every switch that is left at None; a switch that is given wins over the preset.

    Attributes:
      num_experts: E. top_k: experts a token uses, 1..E. num_tokens: m, equal to the head's queries.
      rank: r, or a tuple with one rank an expert. query_dim: width of the linked queries.
      gating: `laplace` (distance), `gaussian` (squared Euclidean) or `softmax` (product).
      distance: of the laplace gate, `l1` or `l2`.
      token_map: `dot` (f . T[t]) or `sum_product` (sum f times sum T[t]).
      combination: of the top-k experts, `gated_sum` or `log_sum_exp` (gates unused).
      fusion: `cross_attention`, `diagonal`, `add` or `none` (visual only).
      fusion_value: value of the cross-attention, `depth` or `visual`.
      router: `dual` (one a modality) or `shared`. use_depth: False drops the depth modality whole.
      balance, balance_over_modalities, balance_weight: the balance loss.
      full_softmax: normalise gates over all E before the top-k cut, so that with k=1 the task
        loss reaches the router.
      noise_epsilon: floor of the noise deviation in training.
      strategy: how the same numbers are computed: `coordinates`, every expert for every token; `dispatch`,
        tokens sorted by the experts they chose; `auto`, by the number of experts.
    """

    preset: str = "paper"
    num_experts: int = 6
    top_k: int = 1
    num_tokens: int = 100
    rank: int | tuple[int, ...] = 16
    query_dim: int = 256
    gating: str = "laplace"
    distance: str | None = None
    token_map: str | None = None
    combination: str | None = None
    fusion: str | None = None
    fusion_value: str | None = None
    router: str = "dual"
    use_depth: bool = True
    balance: str | None = None
    balance_over_modalities: str | None = None
    balance_weight: float | None = None
    full_softmax: bool = False
    noise_epsilon: float = 1e-2
    scale_init: float = 1e-3
    strategy: str = "auto"

    def __post_init__(self):
        prefix = "config.model.adapter"
        if self.preset not in PRESETS:
            raise UserError(f"{prefix}.preset = {self.preset!r}: choose from {', '.join(PRESETS)}")
        for key, value in PRESETS[self.preset].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.fusion_value is None:
            object.__setattr__(self, "fusion_value", "depth")
        if not self.use_depth:
            object.__setattr__(self, "fusion", "none")
        if isinstance(self.rank, list):
            object.__setattr__(self, "rank", tuple(self.rank))
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"{prefix}.{key} = {getattr(self, key)!r}: choose from {', '.join(allowed)}")
        for key in ("num_experts", "num_tokens", "query_dim"):
            if getattr(self, key) < 1:
                raise UserError(f"{prefix}.{key} = {getattr(self, key)}: must be at least 1")
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(
                f"{prefix}.top_k = {self.top_k}: must be between 1 and num_experts = {self.num_experts}"
            )
        if len(self.ranks) != self.num_experts or min(self.ranks) < 1:
            raise UserError(
                f"{prefix}.rank = {self.rank}: give one positive rank, or a tuple of num_experts = "
                f"{self.num_experts} of them"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """One rank an expert."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,) * self.num_experts

    @property
    def num_modalities(self) -> int:
        return 2 if self.use_depth else 1

    @property
    def num_routers(self) -> int:
        return self.num_modalities if self.router == "dual" else 1

    @property
    def is_linear(self) -> bool:
        """Whether the experts combine linearly, so that expert coordinates describe the result."""
        return self.combination == "gated_sum" or self.top_k == 1

    @property
    def dispatches(self) -> bool:
        """Whether tokens go to the experts they chose, rather than every expert to every token."""
        if self.strategy == "auto":
            return self.num_experts >= DISPATCH_FROM
        return self.strategy == "dispatch"

    @property
    def in_coordinates(self) -> bool:
        """Whether updates stay in expert coordinates until the last product of a layer."""
        return self.is_linear and not self.dispatches
