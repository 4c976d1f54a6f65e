"""Former place of the adapter's presets, for grid files that import them from here."""

from spectralmoe_jax.config.adapters import ADAPTER_PRESETS as PRESETS

__all__ = ["PRESETS"]
