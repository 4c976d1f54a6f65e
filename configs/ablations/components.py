"""The publication's ablation of the adapter's parts: its five rows, with the method as published.

Every switch that the base sets itself is unset. A base without a depth encoder gets one with random weights;
see `depth_encoder`.

  spectralmoe ablate configs/ablations/components.py --workdir runs/components
"""

from spectralmoe_jax.ablation import PAPER, Grid, base_config, depth_encoder


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    return Grid(
        title="Components of the adapter",
        base=base,
        common=depth_encoder(base_config(base)) | PAPER,
        variants={
            "full": {},
            "one expert": {"model.adapter.num_experts": 1},
            "shared gate": {"model.adapter.router": "shared"},
            "no depth": {"model.adapter.use_depth": False},
            "addition": {"model.adapter.fusion": "add"},
        },
        reference="full",
    )
