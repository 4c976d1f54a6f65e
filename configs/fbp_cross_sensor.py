"""Five-Billion-Pixels, cross-sensor: from Gaofen-2 to Sentinel-2, Gaofen-1 and PlanetScope.

DINOv3 ViT-L/16 or DOFA ViT-L/16, and a DINOv2 ViT-L depth encoder, all frozen, six experts, crops of 512,
batches of 8, AdamW at 1e-4. The published checkpoint was probably chosen on the target; here it is chosen
on a tenth of the source. DOFA was pretrained on data that includes Five-Billion-Pixels, so its scores here
are not scores on unseen images.

Source: arXiv 2603.13352 and the authors' released configuration files; `:dinov3_7b` is our own and
unpublished.
Score: 66.19 % mIoU on the target, published; not measured here.
Cost: hours neither published nor measured. Memory per TPU chip, compiled and not run (docs/scaling.md):
4.13 GiB with one image per chip, 6.17 GiB with eight; `:dinov3_7b` over 16 v5e chips: 5.07 GiB with one.

  spectralmoe prepare fbp_cross_sensor --source DOWNLOADED --out data
  spectralmoe train --config configs/fbp_cross_sensor.py --workdir runs/fbp_cross_sensor
  --config configs/fbp_cross_sensor.py:experts=3
  --config configs/fbp_cross_sensor.py:dofa
  --config configs/fbp_cross_sensor.py:dinov3_7b    7B parameters, sharded over 16 devices
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=6, visual=("dinov3", "dofa", "dinov3_7b"))
    config = common.published("fbp_cross_sensor")  # nir, red, green, blue

    config.data.source = ("gaofen2",)
    config.data.target = ("beijing", "guangzhou", "wuhan", "chengdu", "shanghai")
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (0.6, 1.2)

    config.model.pixel_mean = (110.714, 85.357, 88.594, 82.444)
    config.model.pixel_std = (72.380, 65.591, 63.937, 63.005)
    if given.visual == "dofa":
        common.use_dofa(config)
    else:
        config.model.visual.preset = "dinov3_l"
        config.model.visual.extra_bands = "modulo"  # the fourth band takes the first channel's kernel
    config.model.adapter.num_experts = given.experts

    config.train.steps = 78_760  # 20 epochs of 31,500 tiles in batches of 8
    config.train.evaluate_every = 3938
    config.train.checkpoint_every = 1000

    if given.visual == "dinov3_7b":
        config.model.visual.preset = "dinov3_7b"
        config.model.out_layers = (9, 19, 29, 39)
        config.model.depth = None  # no depth encoder is published at this width and depth
        config.model.adapter.use_depth = False
        config.train.batch_size = 16
        config.parallel = ConfigDict()
        config.parallel.data = -1  # all remaining devices
        config.parallel.fsdp = 16  # 28 GB of frozen weights, each device's share gathered a layer at a time
        config.parallel.expert = 1
    return config
