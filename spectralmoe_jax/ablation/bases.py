"""Former place of functions in `spectralmoe_jax.ablation.grid`, for grid files that import them from here."""

from spectralmoe_jax.ablation.grid import base_config, depth_encoder, own_weights, random_encoder, sizes_of

__all__ = ["base_config", "depth_encoder", "own_weights", "random_encoder", "sizes_of"]
