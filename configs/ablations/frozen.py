"""What an adapter adds to a frozen foundation model.

Both readings of SpectralMoE, the peers that are used most, and the frozen encoder alone, all with the same
head, start and steps. The last two variants have another head and no adapter. Such heads have no fitted
start: they have 150 steps instead of 100, with the learning rate and the sizes of the small runs.

  spectralmoe ablate configs/ablations/frozen.py --workdir runs/frozen --config.data.root=PATH/cloudshadow
"""

from spectralmoe_jax.ablation import PAPER, Grid
from spectralmoe_jax.configs import common

SMALL = common.small("")
MASK_HEAD = {
    "model.adapter.kind": "none", "model.out_layers": (0, 1, 2, 3), "train.head_start": "random",
    "train.lr_factors.head": 1.0, "train.schedule": "poly", "train.steps": 150, "train.evaluate_every": 50,
    "train.checkpoint_every": 50,
    **{f"train.{key}": SMALL.train[key] for key in ("learning_rate", "warmup_steps")},
}  # fmt: skip


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
            "frozen, Mask2Former": {**MASK_HEAD, "model.head": SMALL.model.head.to_dict()},
            "frozen, plain mask decoder": {
                **MASK_HEAD,
                "model.head": {
                    "kind": "pmt",
                    "num_queries": 12,
                    "blocks": 2,
                    "mask_starts": (0.0, 0.3),
                    "mask_ends": (0.15, 0.5),
                },
            },
        },
        reference="SpectralMoE, paper",
        seeds=(0, 1, 2, 3, 4),
        seeded=("data.holdout_seed",),
    )
