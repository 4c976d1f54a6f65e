"""Gates: by distance or by product, normalised over the chosen experts or over all of them.

spectralmoe ablate configs/ablations/gating.py --workdir runs/gating
"""

from spectralmoe_jax.ablation import Grid

GATES = {
    "laplace, L1": {"model.adapter.gating": "laplace", "model.adapter.distance": "l1"},
    "laplace, L2": {"model.adapter.gating": "laplace", "model.adapter.distance": "l2"},
    "gaussian": {"model.adapter.gating": "gaussian"},
    "softmax": {"model.adapter.gating": "softmax"},
}


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    return Grid(
        title="Gates",
        base=base,
        variants={
            f"{name}; over {among}": {**gate, "model.adapter.full_softmax": among == "all"}
            for among in ("the chosen", "all")
            for name, gate in GATES.items()
        },
        reference="laplace, L1; over the chosen",
    )
