"""The adapter in plain PyTorch, written from the formulas of arXiv 2603.13352.

Tokens are sorted by their expert, so that each goes through one expert alone; everything else is computed as
it is written. For k = 1, two modalities, two or more experts of one rank and the laplace gate: there the one
gate is 1, and both readings combine experts to the update of the chosen one. Letters of shapes are those of
`spectralmoe_jax.adapters.base`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralmoe_jax.config.adapters import SpectralMoEConfig


class AdapterLayer(nn.Module):
    """Experts and routers of one layer.

    Attributes:
      a: (E, M, R).
      b: (E, R, D), zero at the start.
      w_gate, w_noise: (J, D, E), zero at the start.
    """

    def __init__(self, config: SpectralMoEConfig, width: int):
        super().__init__()
        (rank,) = set(config.ranks)
        self.a = nn.Parameter(torch.empty(config.num_experts, config.num_tokens, rank))
        self.b = nn.Parameter(torch.zeros(config.num_experts, rank, width))
        self.w_gate = nn.Parameter(torch.zeros(2, width, config.num_experts))
        self.w_noise = nn.Parameter(torch.zeros(2, width, config.num_experts))
        nn.init.uniform_(self.a, -(rank**-0.5), rank**-0.5)


class Adapter(nn.Module):
    """The adapter of all layers.

    Attributes:
      layers: experts and routers by layer.
      token_to_feature: W_t and b_t.
      delta_to_feature: W_d and b_d.
      transform: W_q and b_q.
      merge: W_m and b_m.
      scale: alpha.
    """

    def __init__(self, config: SpectralMoEConfig, layers: int, width: int):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([AdapterLayer(config, width) for _ in range(layers)])
        self.token_to_feature, self.delta_to_feature = nn.Linear(width, width), nn.Linear(width, width)
        self.transform = nn.Linear(width, config.query_dim)
        self.merge = nn.Linear(3 * config.query_dim, config.query_dim)
        self.scale = nn.Parameter(torch.tensor(config.scale_init))

    def forward(
        self, layer: int, visual: Tensor, depth: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Refine the patch tokens of one layer.

        Args:
          layer: number of the layer.
          visual: patch tokens (B, N, D).
          depth: patch tokens of the depth encoder (B, N, D).
          noise: (J, B, N, E), standard normal draws in training, None in evaluation.

        Returns:
          The refined tokens (B, N, D) and the balance loss ().
        """
        weights, updates, balances = self.layers[layer], [], []
        for j, tokens in enumerate((visual, depth)):
            draws = None if noise is None else noise[j]
            choice, balance = self._route(tokens, weights.w_gate[j], weights.w_noise[j], draws)
            updates.append(self._updates(tokens, choice, weights.a, weights.b))
            balances.append(balance)
        total = sum(balances[1:], balances[0])
        if self.config.balance_over_modalities == "mean":
            total = total / len(balances)
        change = self.delta_to_feature(self._fuse(*updates) + visual)
        return visual + self.scale * change, self.config.balance_weight * total

    def _route(
        self, tokens: Tensor, w_gate: Tensor, w_noise: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Choose the expert of every token: (B, N, D) -> (B, N) int64, and cv^2 of the routing ()."""
        tokens = tokens.to(w_gate.dtype)
        distance = 1.0 if self.config.distance == "l1" else 2.0
        clean = logits = -torch.cdist(tokens, w_gate.T.expand(len(tokens), -1, -1), p=distance)  # (B, N, E)
        deviation = torch.ones(())
        if noise is not None:
            deviation = F.softplus(tokens @ w_noise) + self.config.noise_epsilon
            logits = clean + noise * deviation
        best, order = logits.topk(2, dim=-1)
        choice = order[..., 0]
        count = F.one_hot(choice, logits.shape[-1]).sum((0, 1)).to(clean.dtype)  # (E,), of the gates too
        balance = squared_variation(count)
        if self.config.balance == "importance_and_load":
            if noise is not None:
                others = torch.where(logits > best[..., 1:], best[..., 1:], best[..., :1])
                count = torch.special.ndtr((clean - others) / deviation).sum((0, 1))
            balance = balance + squared_variation(count)
        return choice, balance

    def _updates(self, tokens: Tensor, choice: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Compute dz of the chosen expert of every token (B, N, D), one expert's tokens after the other's."""
        flat, choice = tokens.flatten(0, 1), choice.flatten()
        order = choice.argsort(stable=True)
        groups = flat[order].split(choice.bincount(minlength=len(a)).tolist())
        parts = []
        for rows, of_expert in zip(groups, a @ b, strict=True):  # rows (S, D), of_expert T (M, D)
            if self.config.token_map == "dot":
                scores = rows @ of_expert.T
            else:
                scores = rows.sum(-1, keepdim=True) * of_expert.sum(-1)
            p = (scores / math.sqrt(rows.shape[-1])).softmax(-1)  # (S, M)
            parts.append(p[:, 1:] @ self.token_to_feature(of_expert[1:]))
        return torch.cat(parts)[order.argsort()].view(*tokens.shape[:2], -1)

    def _fuse(self, visual: Tensor, depth: Tensor) -> Tensor:
        """Fuse the updates (B, N, D) of the two modalities."""
        scale = visual.shape[-1] ** -0.5
        if self.config.fusion == "cross_attention":
            return (visual @ depth.mT * scale).softmax(-1) @ depth
        weights = (depth @ visual.mT * scale).softmax(-1).diagonal(dim1=1, dim2=2)  # (B, N)
        return weights[..., None] * visual

    def queries(self) -> Tensor:
        """Query position embeddings of the mask decoder: (M, query_dim)."""
        tokens = torch.stack([(layer.a @ layer.b).mean(0) for layer in self.layers])  # (L, M, D)
        of_layers = self.transform(tokens)
        three = torch.stack([of_layers.max(0).values, of_layers.mean(0), of_layers[-1]], dim=-1)
        return self.merge(three.flatten(1))


def squared_variation(x: Tensor) -> Tensor:
    """cv^2 of a vector (E,): unbiased variance over squared mean."""
    return x.var() / (x.mean() ** 2 + 1e-10)
