"""PyTorch's side of `step_parts.py`: an adapter layer, deformable attention and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from timing import Run
from torch_adapter import Adapter
from torch_model import HeadLoss, Targets, head_config
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import Mask2FormerConfig
from spectralmoe_jax.config.schema import LossConfig


class TorchParts:
    """Runs of single parts on a device, each forward and with gradients.

    Attributes:
      device: the device.
      narrow: tokens and values are bfloat16, and products are computed in it under autocast.
    """

    def __init__(self, device: torch.device, dtype: str):
        self.device, self.narrow = device, dtype == "bfloat16"

    def layer(self, config: SpectralMoEConfig, inputs: np.ndarray) -> dict[str, Run]:
        """Make an adapter's layer of visual and depth tokens (2, B, N, D)."""
        adapter = Adapter(config, 1, inputs.shape[-1]).to(self.device)
        torch.nn.init.normal_(adapter.layers[0].b, std=0.1)
        torch.nn.init.normal_(adapter.layers[0].w_gate)
        tokens = [self._narrowed(x) for x in inputs]
        return self._runs(lambda *given: adapter(0, *given), tokens, list(adapter.parameters()))

    def attention(self, arrays: Sequence[np.ndarray], shapes: Sequence[tuple[int, int]]) -> dict[str, Run]:
        """Make deformable attention of value, locations and weights, as transformers orders them."""
        value, *rest = arrays
        tensors = [self._narrowed(value), *(torch.from_numpy(x).to(self.device) for x in rest)]
        return self._runs(
            lambda value, *rest: (multi_scale_deformable_attention(value, shapes, *rest),), tensors
        )

    def loss(
        self, classes: np.ndarray, masks: np.ndarray, labels: np.ndarray, config: LossConfig
    ) -> dict[str, Run]:
        """Make the loss of class logits (K, B, Q, C + 1), mask logits (K, B, Q, h, w), labels (B, H, W)."""
        outputs, queries, width = len(classes), classes.shape[2], classes.shape[3]
        sizes = Mask2FormerConfig(num_classes=width - 1, num_queries=queries)
        criterion, targets = (
            HeadLoss(head_config(sizes, config), config).to(self.device),
            Targets(labels, self.device),
        )
        tensors = [torch.from_numpy(x).to(self.device) for x in (*classes, *masks)]
        return self._runs(lambda *both: (criterion(both[:outputs], both[outputs:], targets),), tensors)

    def _narrowed(self, array: np.ndarray) -> torch.Tensor:
        """Move an array to the device, in the dtype of the computation."""
        return torch.from_numpy(array).to(self.device, torch.bfloat16 if self.narrow else torch.float32)

    def _runs(
        self, function: Callable, inputs: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor] = ()
    ) -> dict[str, Run]:
        """Make the runs of a function of tensors, with gradients of these and of its parameters."""
        leaves = [x.requires_grad_() for x in inputs]
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow)

        def forward() -> None:
            """Run without gradients."""
            with torch.no_grad(), autocast:
                function(*leaves)
            wait()

        def gradients() -> None:
            """Run with gradients."""
            for leaf in (*leaves, *parameters):
                leaf.grad = None
            with autocast:
                out = function(*leaves)
            sum(x.float().square().sum() for x in out).backward()
            wait()

        return {"forward": forward, "with gradients": gradients}
