"""The two versions of the method: the publication's, and that of the code that trained its checkpoints.

Every switch that the base sets itself is unset, so that each version is complete; the gate is normalised over
the chosen experts only, as in both.

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
