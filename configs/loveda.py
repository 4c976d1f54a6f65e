"""LoveDA: from rural to urban scenes.

DINOv3 ViT-L/16 and a DINOv2 ViT-L depth encoder, both frozen, three experts, crops of 512, batches of 8,
AdamW at 1e-4. The published number of steps fits four tiles of each of the 1,366 + 992 rural images
(unsure), which corresponds to `--config.data.source=train_rural,val_rural`.

Source: arXiv 2603.13352 and the authors' released configuration files.
Score: 59.11 % mIoU on the target, published; not measured here.
Cost: device, hours and memory neither published nor measured; `spectralmoe compile` gives the memory.

  spectralmoe prepare loveda --source DOWNLOADED --out data
  spectralmoe train --config configs/loveda.py --workdir runs/loveda
  --config configs/loveda.py:experts=6
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=3)
    config = common.published("loveda")  # red, green, blue

    config.data.source = ("train_rural",)
    config.data.target = ("val_urban",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (0.5, 2.0)

    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.visual.preset = "dinov3_l"
    config.model.adapter.num_experts = given.experts

    config.train.steps = 23_580  # 20 epochs of 9,432 tiles in batches of 8
    config.train.evaluate_every = 1179
    config.train.checkpoint_every = 1000
    return config
