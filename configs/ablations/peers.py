"""Other adapters for the same frozen encoder, and the encoder trained fully or not at all.

The encoder is frozen in all variants but `full`, which trains it at a tenth of the learning rate. On a base
without pretrained weights the others adapt a random encoder. A base without a depth encoder gets one with
random weights for the two variants that use it; see `depth_encoder`. `depthforge` refines as many maps as the
base's head reads.

  spectralmoe ablate configs/ablations/peers.py --workdir runs/peers
"""

from spectralmoe_jax.ablation import Grid, base_config, depth_encoder

KINDS = ("spectral_moe", "none", "full", "rein", "depthforge", "set", "fada", "lora", "adaptformer", "vpt",
         "bitfit")  # fmt: skip
OWN = {"full": {"train.lr_factors.visual": 0.1}}


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    config = base_config(base)
    maps = len(config.model.out_layers)
    own = OWN | ({} if maps == 4 else {"depthforge": {"model.adapter.maps": maps}})
    return Grid(
        title="Adapters",
        base=base,
        common=depth_encoder(config) | {"model.visual.trainable": False},
        variants={
            **{kind: {"model.adapter.kind": kind} | own.get(kind, {}) for kind in KINDS},
            "none, linear head": {"model.adapter.kind": "none", "model.head.kind": "linear"},
        },
        reference="spectral_moe",
    )
