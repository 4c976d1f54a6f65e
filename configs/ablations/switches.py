"""From the publication's reading to the released code's, one switch at a time, and all at once.

Every switch that the base sets itself is unset first.

  spectralmoe ablate configs/ablations/switches.py --workdir runs/switches
"""

from spectralmoe_jax.ablation import Grid, base_config, depth_encoder
from spectralmoe_jax.adapters.settings import PRESETS

RELEASED = PRESETS["released"]


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    unset = {f"model.adapter.{switch}": None for switch in (*RELEASED, "fusion_value")}
    alone = {
        f"{switch} = {value:g}" if switch == "balance_weight" else f"{switch} = {value}": {
            f"model.adapter.{switch}": value
        }
        for switch, value in RELEASED.items()
    }
    return Grid(
        title="Each switch between the two readings alone",
        base=base,
        common=depth_encoder(base_config(base)) | {"model.adapter.preset": "paper"} | unset,
        variants={
            "paper": {},
            **alone,
            "fusion_value = visual": {"model.adapter.fusion_value": "visual"},
            "released": {"model.adapter.preset": "released"},
        },
        reference="paper",
    )
