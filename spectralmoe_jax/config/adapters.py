"""Sections `config.model.adapter`, one for each kind of adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from spectralmoe_jax.config.fields import Section, at_least, between, one_of, option


@dataclasses.dataclass(frozen=True)
class AdapterSection(Section):
    """Base class of the sections `config.model.adapter`.

    Attributes:
      kind: value of the section's key `kind`.
    """

    place: ClassVar[str] = "config.model.adapter"
    kind: ClassVar[str]

    token_groups: str = option(
        "mean",
        "What the adapter refines where an encoder has several tokens in a place (galileo): their `mean`, "
        "whose change is added to each, or `each` of them.",
        one_of("mean", "each"),
    )


DISPATCH_FROM = 64
"""Least number of experts for which `auto` dispatches.

At the published rank, so many experts span more dimensions than a token has.
"""

ADAPTER_PRESETS: dict[str, dict[str, Any]] = {
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
    # settings of the published checkpoints
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
class SpectralMoEConfig(AdapterSection):
    """The dual-gated mixture of low-rank token experts.

    `preset` fills every switch that is none; a switch that is set takes precedence over the preset.
    """

    kind: ClassVar[str] = "spectral_moe"

    preset: str = option(
        "paper",
        "Which of the two the switches follow where the publication and the released code differ.",
        one_of(*ADAPTER_PRESETS),
    )
    num_experts: int = option(6, "Number of experts E.", between(1, 10_000))
    top_k: int = option(1, "Number of experts that a token uses, at most E.")
    num_tokens: int = option(
        100, "Tokens M of each expert; equal to `model.head.num_queries`.", between(1, 10_000)
    )
    rank: int | tuple[int, ...] = option(16, "Rank R of the tokens, or one rank for each expert.")
    query_dim: int = option(256, "Width of the linked queries; equal to `model.head.width`.", at_least(1))
    gating: str = option(
        "laplace",
        "Gate: `laplace` (distance), `gaussian` (squared Euclidean distance) or `softmax` (product).",
        one_of("laplace", "gaussian", "softmax"),
    )
    distance: str | None = option(None, "Distance used by the laplace gate.", one_of("l1", "l2"))
    token_map: str | None = option(
        None,
        "Product of features and tokens: `dot` (f . T[t]) or `sum_product` (sum of f times sum of T[t]).",
        one_of("dot", "sum_product"),
    )
    combination: str | None = option(
        None,
        "Combination of the chosen experts: `gated_sum`, or `log_sum_exp`, which does not use the gates.",
        one_of("gated_sum", "log_sum_exp"),
    )
    fusion: str | None = option(
        None,
        "Fusion of visual and depth features; `none` uses the visual ones only.",
        one_of("cross_attention", "diagonal", "add", "none"),
    )
    fusion_value: str | None = option(
        None, "Modality that supplies the values of the cross-attention.", one_of("depth", "visual")
    )
    router: str = option("dual", "One router for each modality, or one for both.", one_of("dual", "shared"))
    use_depth: bool = option(True, "Use the depth modality.")
    balance: str | None = option(None, "Balance loss.", one_of("importance", "importance_and_load"))
    balance_over_modalities: str | None = option(
        None, "How the balance losses of the modalities are combined.", one_of("mean", "sum")
    )
    balance_weight: float | None = option(None, "Weight of the balance loss.")
    full_softmax: bool = option(
        False,
        "Normalise the gates over all E experts before the top-k cut, so that with k = 1 the task's loss "
        "reaches the router.",
    )
    noise_epsilon: float = option(
        1e-2, "Lower bound on the standard deviation of the gates' noise in training."
    )
    scale_init: float = option(1e-3, "Initial scale of the refinement.")
    zero_start: bool = option(
        False,
        "Start with an output projection of zero: the features are at first those of the frozen encoder.",
    )
    strategy: str = option(
        "auto",
        "How the experts are computed: `coordinates` (every expert for every token), `dispatch` (tokens "
        "sorted by the experts they chose), or `auto`, by the number of experts.",
        one_of("auto", "coordinates", "dispatch"),
    )

    def __post_init__(self) -> None:
        """Fill in the preset's switches, and check all fields."""
        self.require("preset", self.preset in ADAPTER_PRESETS, f"must be {one_of(*ADAPTER_PRESETS).words}")
        for key, value in {**ADAPTER_PRESETS[self.preset]}.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if self.fusion_value is None:
            object.__setattr__(self, "fusion_value", "depth")
        if not self.use_depth:
            object.__setattr__(self, "fusion", "none")
        super().__post_init__()
        in_range = 1 <= self.top_k <= self.num_experts
        self.require("top_k", in_range, f"must be between 1 and num_experts = {self.num_experts}")
        fits = len(self.ranks) == self.num_experts and min(self.ranks) >= 1
        must = f"must be one positive rank, or a tuple of num_experts = {self.num_experts} of them"
        self.require("rank", fits, must)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each expert."""
        return self.rank if isinstance(self.rank, tuple) else (self.rank,) * self.num_experts

    @property
    def num_modalities(self) -> int:
        """Modalities J: the visual one, and depth where it is used."""
        return 2 if self.use_depth else 1

    @property
    def num_routers(self) -> int:
        """Routers: one for each modality, or one for both."""
        return self.num_modalities if self.router == "dual" else 1

    @property
    def is_linear(self) -> bool:
        """True if the experts combine linearly, so that expert coordinates describe the result."""
        return self.combination == "gated_sum" or self.top_k == 1

    @property
    def dispatches(self) -> bool:
        """True if each token is sent only to the experts that it chose."""
        if self.strategy == "auto":
            return self.num_experts >= DISPATCH_FROM
        return self.strategy == "dispatch"

    @property
    def in_coordinates(self) -> bool:
        """True if updates stay in expert coordinates until the last product of a layer."""
        return self.is_linear and not self.dispatches


@dataclasses.dataclass(frozen=True)
class NoAdapterConfig(AdapterSection):
    """No adapter: the frozen encoder as it is."""

    kind: ClassVar[str] = "none"


@dataclasses.dataclass(frozen=True)
class FullConfig(AdapterSection):
    """Full fine-tuning: every weight of the visual encoder is trained."""

    kind: ClassVar[str] = "full"


@dataclasses.dataclass(frozen=True)
class BitFitConfig(AdapterSection):
    """BitFit (arXiv 2106.10199): the biases of the visual encoder are trained."""

    kind: ClassVar[str] = "bitfit"


@dataclasses.dataclass(frozen=True)
class ReinConfig(AdapterSection):
    """Rein (arXiv 2312.04265)."""

    kind: ClassVar[str] = "rein"

    # at least 2: the first token only takes part in the softmax
    num_tokens: int = option(
        100, "Tokens M of each layer; equal to `model.head.num_queries`.", between(2, 10_000)
    )
    rank: int = option(16, "Rank R of the tokens T = A B.", at_least(1))
    query_dim: int = option(256, "Width of the linked queries; equal to `model.head.width`.", at_least(1))
    scale_init: float = option(1e-3, "Initial scale of the refinement.")
    link_query_features: bool = option(
        False, "Derive the head's query features from the queries by a linear map, instead of learning them."
    )


@dataclasses.dataclass(frozen=True)
class DepthForgeConfig(ReinConfig):
    """DepthForge (arXiv 2504.12753): Rein on depth tokens too, with a refinement of the feature maps."""

    kind: ClassVar[str] = "depthforge"
    use_depth: ClassVar[bool] = True

    gate_width: int = option(64, "Channels inside the refinement's channel gate.", at_least(1))
    maps: int = option(
        4, "Feature maps that are refined; equal to the number of `model.out_layers`.", at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class SETConfig(ReinConfig):
    """SET (arXiv 2407.18568): Rein on the spectrum of the features."""

    kind: ClassVar[str] = "set"


@dataclasses.dataclass(frozen=True)
class FADAConfig(ReinConfig):
    """FADA (NeurIPS 2024): Rein on the frequencies of the features."""

    kind: ClassVar[str] = "fada"


@dataclasses.dataclass(frozen=True)
class LoRAConfig(AdapterSection):
    """LoRA (arXiv 2106.09685) on the query and the value projections."""

    kind: ClassVar[str] = "lora"

    lora_rank: int = option(8, "Rank of the weight update.", at_least(1))
    lora_alpha: float = option(8.0, "The weight update is scaled by `lora_alpha / lora_rank`.")


@dataclasses.dataclass(frozen=True)
class AdaptFormerConfig(AdapterSection):
    """AdaptFormer (arXiv 2205.13535): a branch parallel to the feed-forward block."""

    kind: ClassVar[str] = "adaptformer"

    bottleneck: int = option(64, "Width of the branch.", at_least(1))
    branch_scale: float = option(0.1, "Factor on the branch's output.")


@dataclasses.dataclass(frozen=True)
class VPTConfig(AdapterSection):
    """Deep visual prompt tuning (arXiv 2203.12119)."""

    kind: ClassVar[str] = "vpt"

    num_prompts: int = option(150, "Prompt tokens in every layer.", between(1, 10_000))


ADAPTERS: dict[str, type[AdapterSection]] = {
    section.kind: section
    for section in (
        SpectralMoEConfig, NoAdapterConfig, FullConfig, BitFitConfig, ReinConfig, DepthForgeConfig, SETConfig,
        FADAConfig, LoRAConfig, AdaptFormerConfig, VPTConfig,
    )
}  # fmt: skip
"""Section class of every built-in adapter by kind; the first kind is the default."""


@dataclasses.dataclass(frozen=True)
class OwnAdapterConfig:
    """The section of a user's own adapter, whose keys are checked when its class is loaded.

    Attributes:
      kind: `module:Class` or `file.py:Class`.
      settings: the other keys.
    """

    kind: str
    settings: Mapping[str, Any]

    @property
    def num_experts(self) -> int:
        """Number of experts that the section gives; 1 if it gives none."""
        return self.settings.get("num_experts", 1)
