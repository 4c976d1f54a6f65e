"""Visual encoders: published ones of the base's size, or else a random one per family, of its sizes.

To use weights of published encoders, name the files in WEIGHTS, in a copy of this file; the weights of the
base's own encoder are taken from the base.

  spectralmoe ablate configs/ablations/backbones.py --workdir runs/backbones
"""

from spectralmoe_jax.ablation import Grid, base_config, sizes_of
from spectralmoe_jax.ablation.grid import own_weights, random_encoder

FAMILIES = ("dinov3", "dinov2", "dofa", "clip", "eva02", "sam")
PUBLISHED = {
    "b": ("dinov3_b", "dinov2_b", "dofa_b", "clip_b16", "eva02_b", "sam_b"),
    "l": ("dinov3_l", "dinov2_l", "dofa_l", "clip_l14", "eva02_l", "sam_l"),
    "s": ("dinov3_s", "dinov2_s"),
}
WEIGHTS = dict.fromkeys((name for names in PUBLISHED.values() for name in names), "")


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    config = base_config(base)
    sizes, trainable = sizes_of(config), config.model.visual.get("trainable", False)
    own = own_weights(config.model.get("visual"))
    if sizes.published:
        place = {"patch_size": sizes.patch_size, "table_size": sizes.grid, "trainable": trainable}
        sections = {
            name: {"preset": name, "weights": WEIGHTS[name] or own.get(name, ""), **place}
            for name in PUBLISHED[sizes.published]
        }
    else:
        sections = {kind: random_encoder(kind, sizes) | {"trainable": trainable} for kind in FAMILIES}
    return Grid(
        title="Visual encoders",
        base=base,
        variants={name: {"model.visual": section} for name, section in sections.items()},
        reference=next(iter(sections)),
    )
