"""Baselines without parameters of their own: the frozen encoder, and the whole encoder fine-tuned."""

from __future__ import annotations

from typing import ClassVar

from spectralmoe_jax.adapters.base import Adapter, Path
from spectralmoe_jax.config.adapters import FullConfig, NoAdapterConfig


class NoAdapter(Adapter):
    """The frozen encoder: its tokens stay as they are."""

    Config: ClassVar[type] = NoAdapterConfig


class Full(Adapter):
    """Fine-tuning of every weight of the visual encoder that its features depend on."""

    Config: ClassVar[type] = FullConfig

    def trains(self, path: Path) -> bool:
        """Return True: all are trained."""
        return True
