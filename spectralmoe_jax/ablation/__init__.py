"""Grids of runs: named variants of a configuration, each over several seeds, ending in one table."""

from spectralmoe_jax.ablation.grid import PAPER, Grid, base_config, depth_encoder, sizes_of

__all__ = ["PAPER", "Grid", "base_config", "depth_encoder", "sizes_of"]
