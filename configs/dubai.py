"""Dubai aerial images: train on four places, test on two unseen ones.

No pretrained weights are needed: the encoder is small and is trained as well. Crop, width and depth were
chosen by measurement (docs/results.md). There is no pretrained depth encoder either, so the depth modality is
off.

Source: our own. Images: Mohammed Bin Rashid Space Centre; labels: Humans in the Loop, CC0 1.0.
Score: 41.2 % mIoU on the target and 57.9 % held out, measured, mean of five seeds; none published.
Cost: 32 minutes on one CPU core (Xeon, 2.8 GHz), measured; memory not measured.

  spectralmoe train --config configs/dubai.py --config.data.root=PATH/dubai --workdir runs/dubai
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config() -> ConfigDict:
    config = common.small("dubai")
    config.bands = ("red", "green", "blue")
    config.classes.names = ("building", "land", "road", "vegetation", "water")
    config.classes.palette = ((60, 16, 152), (132, 41, 246), (110, 193, 228), (254, 221, 58), (226, 169, 41))

    config.data.kind = "image_folder"
    config.data.root = "data/dubai"
    config.data.image_glob = "*/images/*.jpg"
    config.data.mask_template = "{domain}/masks/{stem}.png"
    config.data.source = ("tile_1", "tile_2", "tile_3", "tile_4")
    config.data.target = ("tile_5", "tile_6")
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint
    config.data.ignore_colours = ((155, 155, 155),)
    config.data.crop = 192

    config.augment.scale = (0.5, 2.0)
    config.augment.max_class_share = 0.75
    config.augment.photometric = True

    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.visual.kind = "dinov3"
    config.model.visual.width = 192
    config.model.visual.patch_size = 12
    config.model.visual.storage_tokens = 4

    config.model.adapter.num_experts = 6
    config.model.adapter.num_tokens = 20
    config.model.adapter.query_dim = 64

    config.model.head.num_queries = 20
    config.model.head.width = 64
    config.model.head.decoder_layers = 3
    config.model.head.encoder_ffn = 128
    config.model.head.decoder_ffn = 128
    config.model.head.scales = (3.0, 1.5, 0.75, 0.375)  # masks at a quarter of the image's resolution

    config.loss.num_points = 1024

    config.train.steps = 1200
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.log_every = 20
    config.train.evaluate_every = 300
    config.train.checkpoint_every = 150

    config.evaluate.window = 192
    config.evaluate.overlap = 64
    return config
