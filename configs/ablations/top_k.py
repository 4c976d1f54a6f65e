"""Number of experts that a token uses, from one to all of the base's.

spectralmoe ablate configs/ablations/top_k.py --workdir runs/top_k
"""

from spectralmoe_jax.ablation import Grid, base_config


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    experts = base_config(base).model.adapter.num_experts
    return Grid(
        title=f"Experts a token uses, of {experts}",
        base=base,
        variants={f"k = {k}": {"model.adapter.top_k": k} for k in range(1, experts + 1)},
        reference="k = 1",
    )
