"""What an adapter adds to a frozen foundation model: the same encoder, head, start and steps for all.

Both readings of SpectralMoE, the peers that are used most, and the frozen encoder with the same head.

  spectralmoe ablate configs/ablations/frozen.py --workdir runs/frozen --config.data.root=PATH/cloudshadow
"""

from spectralmoe_jax.ablation import Grid

KINDS = {"frozen": "none", "LoRA": "lora", "Rein": "rein"}


def get_grid(base: str = "configs/cloud_shadow.py:galileo") -> Grid:
    return Grid(
        title="Adapters of a frozen foundation model",
        base=base,
        variants={
            "SpectralMoE, paper": {"model.adapter.preset": "paper"},
            "SpectralMoE, released": {"model.adapter.preset": "released"},
            **{name: {"model.adapter.kind": kind} for name, kind in KINDS.items()},
        },
        reference="SpectralMoE, paper",
        seeds=(0, 1, 2, 3, 4),
    )
