"""The two readings of the method: the publication, and the code that its checkpoints were trained with.

Every switch that the base sets itself is unset, so that each reading is whole; the gate is over the
chosen experts alone, as in both.

  spectralmoe ablate configs/ablations/semantics.py --workdir runs/semantics
"""

from spectralmoe_jax.ablation import PAPER, Grid, base_config, depth_encoder


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    return Grid(
        title="The publication's reading and the released code's",
        base=base,
        common=depth_encoder(base_config(base)) | PAPER | {"model.adapter.full_softmax": False},
        variants={name: {"model.adapter.preset": name} for name in ("paper", "released")},
        reference="paper",
    )
