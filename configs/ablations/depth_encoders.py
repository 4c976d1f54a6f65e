"""Depth encoders: none, and published ones of the base's size, or else random ones of its sizes.

To use weights of published encoders, name the files in WEIGHTS, in a copy of this file; the weights of the
base's own encoder are taken from the base.

  spectralmoe ablate configs/ablations/depth_encoders.py --workdir runs/depth_encoders
"""

from spectralmoe_jax.ablation import Grid, base_config, sizes_of
from spectralmoe_jax.ablation.grid import own_weights, random_encoder

FAMILIES = ("dinov3", "dinov2", "clip")
PUBLISHED = {
    "s": ("prompt_depth_anything_s", "depth_anything_v2_s", "dinov2_s", "dinov3_s"),
    "b": ("depth_anything_v2_b", "dinov2_b", "dinov3_b"),
    "l": ("prompt_depth_anything_l", "depth_anything_v2_l", "dinov2_l", "dinov3_l"),
}
WEIGHTS = dict.fromkeys((name for names in PUBLISHED.values() for name in names), "")


def get_grid(base: str = "configs/quickstart.py") -> Grid:
    config = base_config(base)
    sizes, bands = sizes_of(config), (config.model.get("depth") or {}).get("bands")
    own = own_weights(config.model.get("depth"))
    if sizes.published:
        place = {"patch_size": sizes.patch_size, "table_size": sizes.grid}
        sections = {
            name: {"preset": name, "weights": WEIGHTS[name] or own.get(name, ""), **place}
            for name in PUBLISHED[sizes.published]
        }
    else:
        sections = {kind: random_encoder(kind, sizes) for kind in FAMILIES}
    if bands is not None:
        sections = {name: section | {"bands": bands} for name, section in sections.items()}
    variants = {
        name: {"model.depth": section, "model.adapter.use_depth": True} for name, section in sections.items()
    }
    return Grid(
        title="Depth encoders",
        base=base,
        variants={"none": {"model.depth": None, "model.adapter.use_depth": False}, **variants},
        reference="none",
    )
