"""OpenEarthMap: from regions on some continents to regions on others.

DINOv3 ViT-L/16 and a DINOv2 ViT-L depth encoder, both frozen, three experts, crops of 512, batches of 8,
AdamW at 1e-4. The list of target regions was not published: see `split.txt` in docs/benchmarks.md.

Source: arXiv 2603.13352 and the authors' released configuration files.
Score: 68.57 % mIoU on the target, published, for regions that are not known; not measured here.
Cost: device, hours and memory neither published nor measured; `spectralmoe compile` gives the memory.

  spectralmoe prepare open_earth_map --source DOWNLOADED --out data
  spectralmoe train --config configs/open_earth_map.py --workdir runs/open_earth_map
  --config configs/open_earth_map.py:experts=6
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=3)
    config = common.published("open_earth_map")  # red, green, blue

    config.data.source = ("source_train", "source_val")
    config.data.target = ("target",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (0.5, 2.0)

    config.model.pixel_mean = (118.246, 120.441, 100.838)
    config.model.pixel_std = (49.52, 44.578, 48.335)
    config.model.visual.preset = "dinov3_l"
    config.model.adapter.num_experts = given.experts

    config.train.steps = 20_500  # 20 epochs of about 8,200 tiles in batches of 8
    config.train.evaluate_every = 1025
    config.train.checkpoint_every = 1025
    return config
