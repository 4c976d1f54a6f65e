"""Five-Billion-Pixels, cross-geospatial: from 126 Gaofen-2 images to 24 of other places.

DINOv3 ViT-L/16 or DOFA ViT-L/16, and a DINOv2 ViT-L depth encoder, all frozen, six experts, crops of 512,
batches of 8, AdamW at 1e-4. The list of target images was not published: see `split.txt` in
docs/benchmarks.md. DOFA was pretrained on data that includes Five-Billion-Pixels, so its scores here are not
scores on unseen images.

Source: arXiv 2603.13352 and the authors' released configuration files.
Score: 60.32 % mIoU on the target, published, for images that are not known; not measured here.
Cost: device and hours neither published nor measured. Memory: as for fbp_cross_sensor.py.

  spectralmoe prepare fbp_cross_geospatial --source DOWNLOADED --out data
  spectralmoe train --config configs/fbp_cross_geospatial.py --workdir runs/fbp_cross_geospatial
  --config configs/fbp_cross_geospatial.py:experts=3
  --config configs/fbp_cross_geospatial.py:dofa
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=6, visual=("dinov3", "dofa"))
    config = common.published("fbp_cross_geospatial")  # nir, red, green, blue

    config.data.source = ("source",)
    config.data.target = ("target",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (0.6, 1.2)

    config.model.pixel_mean = (112.067327, 83.535213, 88.392715, 82.128708)
    config.model.pixel_std = (73.937849, 65.736182, 64.700772, 63.703369)
    if given.visual == "dofa":
        common.use_dofa(config)
    else:
        config.model.visual.preset = "dinov3_l"
        config.model.visual.extra_bands = "modulo"  # the fourth band takes the first channel's kernel
    config.model.adapter.num_experts = given.experts

    config.train.steps = 66_160  # 20 epochs of 26,460 tiles in batches of 8
    config.train.evaluate_every = 3308
    config.train.checkpoint_every = 1000
    return config
