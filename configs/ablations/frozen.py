"""What an adapter adds to a frozen foundation model: the same encoder, head, start and steps for all.

Both readings of SpectralMoE, the peers that are used most, and the frozen encoder with the same head.

  spectralmoe ablate configs/ablations/frozen.py --workdir runs/frozen --config.data.root=PATH/cloudshadow
"""

from spectralmoe_jax.ablation import PAPER, Grid


def get_grid(base: str = "configs/cloud_shadow.py:galileo") -> Grid:
    return Grid(
        title="Adapters of a frozen foundation model",
        base=base,
        variants={
            "SpectralMoE, paper": PAPER,
            "SpectralMoE, released": {"model.adapter.preset": "released"},
            "frozen": {"model.adapter.kind": "none"},
            "LoRA": {"model.adapter.kind": "lora"},
            # starts at no change of the features, as the others do
            "Rein": {"model.adapter.kind": "rein", "model.adapter.scale_init": 0.0},
        },
        reference="SpectralMoE, paper",
        seeds=(0, 1, 2, 3, 4),
        seeded=("data.holdout_seed",),
    )
