"""The simulated two-sensor benchmark: train on one sensor, test on another. Needs no data.

Source: our own; `spectralmoe quickstart` runs it.
Arguments: `small` (the default), an encoder trained on the source, or `galileo`, a frozen foundation model.
Score: none published; measured with `small`: 80 % mIoU on held-out source scenes and 60 % on the target,
with `galileo` (two seeds) 86 % and 51 %. The best constant prediction reaches 5 %.
Cost: about three minutes on two CPU cores (Xeon, 2.1 GHz), measured; memory not measured.
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, encoder=("small", "galileo"))
    config = common.small("quickstart")
    config.bands = ("blue", "green", "red", "nir")
    config.classes.names = ("field", "woodland", "water", "road", "building", "bare soil")
    config.classes.palette = (
        (182, 208, 110),
        (38, 115, 62),
        (62, 133, 199),
        (92, 92, 98),
        (206, 72, 62),
        (214, 170, 118),
    )

    config.data.kind = "synthetic"
    config.data.source = ("sensor_a",)
    config.data.target = ("sensor_b",)
    config.data.scenes_source = 24
    config.data.scenes_target = 8
    config.data.scene_size = 256
    config.data.scene_seed = 0
    config.data.holdout = 0.15
    config.data.crop = 96

    config.augment.scale = (1.0, 1.0)
    config.augment.max_class_share = 0.75

    config.model.pixel_mean = (895.0, 1088.0, 1139.0, 2218.0)  # reflectances x 10000
    config.model.pixel_std = (539.0, 612.0, 806.0, 1352.0)
    config.model.visual.kind = "dinov3"
    config.model.visual.patch_size = 4
    config.model.visual.storage_tokens = 1
    config.model.adapter.scale_init = 0.1

    config.train.steps = 180
    config.train.evaluate_every = 180
    config.train.checkpoint_every = 90

    config.evaluate.window = 96
    config.evaluate.overlap = 32

    if given.encoder == "galileo":
        common.use_galileo(config)
        config.model.visual.stored_as = "x10000"
        config.model.visual.resolution = 10.0
        # roads are a few pixels wide: smaller patches, as many of them, and a head that learns pixels
        config.model.visual.patch_size = 2
        config.model.head.labels = "pixels"
        config.data.crop = config.evaluate.window = 16
        config.evaluate.overlap = 8
        config.evaluate.batch_size = 128
        config.train.batch_size = 16
        config.train.probe_tiles = 1024
    return config
