"""ISPRS: from Potsdam in red, green and blue to Vaihingen in near infrared, red and green.

DINOv3 ViT-L/16 and a DINOv2 ViT-L depth encoder, both frozen, six experts, crops of 512, batches of 8, AdamW
at 1e-4.

Source: arXiv 2603.13352 and the authors' released configuration files.
Score: 64.99 % mIoU on the target, published; not measured here.
Cost: device, hours and memory neither published nor measured; `spectralmoe compile` gives the memory.

  spectralmoe prepare potsdam_vaihingen --source DOWNLOADED --out data
  spectralmoe train --config configs/potsdam_vaihingen.py --workdir runs/potsdam_vaihingen
  --config configs/potsdam_vaihingen.py:experts=3
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=6)
    config = common.published("potsdam_vaihingen")  # red, green, blue; Vaihingen has nir, red, green instead

    config.data.source = ("potsdam",)
    config.data.target = ("vaihingen_train", "vaihingen_test")
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (0.5, 2.0)

    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.visual.preset = "dinov3_l"
    config.model.adapter.num_experts = given.experts

    config.train.steps = 13_680  # 20 epochs of 5,472 tiles in batches of 8
    config.train.evaluate_every = 684
    config.train.checkpoint_every = 684
    return config
