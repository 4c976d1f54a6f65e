"""Weight of the balance loss, from 0 to 1000; the published one is not known.

spectralmoe ablate configs/ablations/balance_weight.py --workdir runs/balance_weight
"""

from spectralmoe_jax.ablation import Grid

WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    return Grid(
        title="Weight of the balance loss",
        base=base,
        variants={f"weight {weight:g}": {"model.adapter.balance_weight": weight} for weight in WEIGHTS},
        reference="weight 1",
    )
