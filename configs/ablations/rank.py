"""Rank of an expert: powers of two, and the base's own rank.

spectralmoe ablate configs/ablations/rank.py --workdir runs/rank
"""

from spectralmoe_jax.ablation import Grid, base_config


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    own = base_config(base).model.adapter.rank
    return Grid(
        title="Rank of an expert",
        base=base,
        variants={f"r = {rank}": {"model.adapter.rank": rank} for rank in sorted({1, 2, 4, 8, 16, 32, own})},
        reference=f"r = {own}",
    )
