"""BitFit (arXiv 2106.10199): the biases of the visual encoder are trained."""

from __future__ import annotations

from typing import ClassVar

from spectralmoe_jax.adapters.base import Adapter, Path, Rule
from spectralmoe_jax.config.adapters import BitFitConfig


class BitFit(Adapter):
    """Training of the biases of the visual encoder, those of its norms included.

    They are not decayed: decay would pull pretrained biases to zero.
    """

    Config: ClassVar[type] = BitFitConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"^backbone/visual/.*bias$", 0.0, 1.0),)

    def trains(self, path: Path) -> bool:
        """Return True for biases."""
        return path[-1].endswith("bias")
