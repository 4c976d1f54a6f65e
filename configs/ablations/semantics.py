"""The two readings of the method: the publication, and the code that its checkpoints were trained with.

Every switch that the base sets itself is unset, so that each reading is whole.

  spectralmoe ablate configs/ablations/semantics.py --workdir runs/semantics
"""

from spectralmoe_jax.ablation import Grid, base_config, depth_encoder

SWITCHES = ("distance", "token_map", "combination", "fusion", "fusion_value", "balance",
            "balance_over_modalities", "balance_weight")  # fmt: skip


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    unset = {f"model.adapter.{switch}": None for switch in SWITCHES}
    return Grid(
        title="The publication's reading and the released code's",
        base=base,
        common=depth_encoder(base_config(base)) | unset,
        variants={name: {"model.adapter.preset": name} for name in ("paper", "released")},
        reference="paper",
    )
