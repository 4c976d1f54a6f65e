"""Number of experts, 1 to 12.

spectralmoe ablate configs/ablations/experts.py --workdir runs/experts
"""

from spectralmoe_jax.ablation import Grid


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    return Grid(
        title="Number of experts",
        base=base,
        variants={f"E = {experts}": {"model.adapter.num_experts": experts} for experts in range(1, 13)},
        reference="E = 6",
    )
