"""BitFit (arXiv 2106.10199): the biases of the visual encoder are trained."""

from __future__ import annotations

from typing import ClassVar

from spectralmoe_jax.adapters.base import Path, Rule
from spectralmoe_jax.adapters.baselines import NoAdapter
from spectralmoe_jax.config.adapters import BitFitConfig


class BitFit(NoAdapter):
    """The biases of the visual encoder are trained, those of its norms included (arXiv 2106.10199).

    They are not decayed: decay would pull pretrained biases to zero.
    """

    Config: ClassVar[type] = BitFitConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"^backbone/visual/.*bias$", 0.0, 1.0),)

    def trains(self, path: Path) -> bool:
        return path[-1].endswith("bias")
