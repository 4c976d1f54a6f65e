"""Other ways to adapt the same encoder, and what training it whole or not at all gives.

A base without a depth encoder gets one of random weights for the two that use it; see `depth_encoder`.

  spectralmoe ablate configs/ablations/peers.py --workdir runs/peers
"""

from spectralmoe_jax.ablation import Grid, base_config, depth_encoder

WITH_DEPTH = ("spectral_moe", "depthforge")
WITHOUT = ("none", "full", "rein", "set", "fada", "lora", "adaptformer", "vpt", "bitfit")


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    variants: dict[str, dict] = {kind: {"model.adapter.kind": kind} for kind in WITH_DEPTH}
    for kind in WITHOUT:
        variants[kind] = {"model.adapter.kind": kind, "model.adapter.use_depth": False}
    return Grid(
        title="Adapters",
        base=base,
        common=depth_encoder(base_config(base)),
        variants=variants | {"none, linear head": {**variants["none"], "model.head.kind": "linear"}},
        reference="spectral_moe",
    )
