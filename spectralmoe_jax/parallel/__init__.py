"""One mesh of devices, one table of what lies where on it, one place that applies the table."""

from spectralmoe_jax.parallel.expert_parallel import by_expert, gather_experts
from spectralmoe_jax.parallel.mesh import Layout, active_layout, by_rows, constrain
from spectralmoe_jax.parallel.settings import RULES, ParallelSettings

__all__ = [
    "RULES",
    "Layout",
    "ParallelSettings",
    "active_layout",
    "by_expert",
    "by_rows",
    "constrain",
    "gather_experts",
]
