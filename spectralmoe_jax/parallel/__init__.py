"""Parallel training: the device mesh with its sharding rules, sharded weights, and runs of many processes."""

from spectralmoe_jax.config.schema import RULES, ParallelConfig
from spectralmoe_jax.parallel.expert_parallel import by_expert, gather_experts
from spectralmoe_jax.parallel.mesh import Layout, active_layout, by_rows, constrain

__all__ = [
    "RULES",
    "Layout",
    "ParallelConfig",
    "active_layout",
    "by_expert",
    "by_rows",
    "constrain",
    "gather_experts",
]
