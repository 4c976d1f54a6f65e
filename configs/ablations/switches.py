"""From the publication's version to the released code's, one switch at a time, and all at once.

Every switch that the base sets itself is unset first, so that the reference is the publication's version,
with the gate normalised over the chosen experts only, as in both versions.

  spectralmoe ablate configs/ablations/switches.py --workdir runs/switches
"""

from spectralmoe_jax.ablation import PAPER, Grid, base_config, depth_encoder
from spectralmoe_jax.config.adapters import ADAPTER_PRESETS

RELEASED = ADAPTER_PRESETS["released"]


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    alone = {
        f"{switch} = {value:g}" if switch == "balance_weight" else f"{switch} = {value}": {
            f"model.adapter.{switch}": value
        }
        for switch, value in RELEASED.items()
    }
    return Grid(
        title="Each switch between the two readings alone",
        base=base,
        common=depth_encoder(base_config(base)) | PAPER | {"model.adapter.full_softmax": False},
        variants={
            "paper": {},
            **alone,
            "fusion_value = visual": {"model.adapter.fusion_value": "visual"},
            "released": {"model.adapter.preset": "released"},
        },
        reference="paper",
    )
