"""WHU-OHS: from hyperspectral scenes of some regions to scenes of others.

DOFA ViT-L/16 and a DINOv2 ViT-L depth encoder, both frozen, six experts, flips as the only augmentation,
AdamW at 1e-4. `split.txt` must list the source and target scenes: see docs/benchmarks.md. For the data
set's own split: `--config.data.source=train --config.data.target=test`.

Source: arXiv 2603.13352 and the authors' released configuration files.
Score: 59.83 % mIoU on the target, published; not measured here.
Cost: device, hours and memory neither published nor measured; `spectralmoe compile` gives the memory.

  spectralmoe prepare whu_ohs --source DOWNLOADED --out data
  spectralmoe train --config configs/whu_ohs.py --workdir runs/whu_ohs
  --config configs/whu_ohs.py:experts=3
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, experts=6)
    config = common.published("whu_ohs")  # band 1 to band 32, 466 to 940 nm
    config.sensor = "orbita_ohs"

    config.data.source = ("source",)
    config.data.target = ("target",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint

    config.augment.scale = (1.0, 1.0)
    config.augment.max_class_share = 1.0
    config.augment.photometric = False

    config.model.pixel_mean = (0.0,) * 32
    config.model.pixel_std = (10000.0,) * 32  # pixels are reflectance x 10000
    common.use_dofa(config)
    config.model.depth.bands = ("band 2", "band 7", "band 15")  # 480, 566, 686 nm, in the published order
    config.model.adapter.num_experts = given.experts

    config.train.batch_size = 4  # (unsure) from the released file's name; the publication gives 8 throughout
    config.train.steps = 10_945  # 20 epochs of about 2,189 patches in batches of 4
    config.train.evaluate_every = 547
    config.train.checkpoint_every = 547
    return config
