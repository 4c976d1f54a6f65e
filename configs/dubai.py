"""Dubai aerial images: train on four places, test on two never seen.

No pretrained weights are needed: the encoder is small and trains too (`config.model.visual.trainable`),
on two CPU cores; crop, width and depth were chosen by measurement (docs/results.md). There is no pretrained
depth encoder either, so the depth modality is off.

  spectralmoe train --config configs/dubai.py --config.data.root=PATH/dubai --workdir runs/dubai

Images: Mohammed Bin Rashid Space Centre; labels: Humans in the Loop, CC0 1.0.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "dubai"
    config.seed = 0

    config.bands = ("red", "green", "blue")
    config.classes = ConfigDict()
    config.classes.names = ("building", "land", "road", "vegetation", "water")
    config.classes.palette = ((60, 16, 152), (132, 41, 246), (110, 193, 228), (254, 221, 58), (226, 169, 41))

    config.data = ConfigDict()
    config.data.kind = "image_folder"
    config.data.root = "data/dubai"
    config.data.image_glob = "*/images/*.jpg"
    config.data.mask_template = "{domain}/masks/{stem}.png"
    config.data.source = ("tile_1", "tile_2", "tile_3", "tile_4")
    config.data.target = ("tile_5", "tile_6")
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint by
    config.data.ignore_colours = ((155, 155, 155),)
    config.data.crop = 192
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale = (0.5, 2.0)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.75
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = True

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.out_layers = (0, 1, 2, 3)

    config.model.visual = ConfigDict()
    config.model.visual.kind = "dinov3"
    config.model.visual.width = 192
    config.model.visual.layers = 4
    config.model.visual.heads = 2
    config.model.visual.patch_size = 12
    config.model.visual.storage_tokens = 4
    config.model.visual.layer_scale = 1.0
    config.model.visual.trainable = True

    config.model.depth = None

    config.model.adapter = ConfigDict()
    config.model.adapter.preset = "paper"
    config.model.adapter.use_depth = False
    config.model.adapter.num_experts = 6
    config.model.adapter.top_k = 1
    config.model.adapter.num_tokens = 20
    config.model.adapter.rank = 8
    config.model.adapter.query_dim = 64
    config.model.adapter.gating = "laplace"
    config.model.adapter.balance_weight = 0.1
    config.model.adapter.full_softmax = True  # with one expert a token, this lets the task teach the router

    config.model.head = ConfigDict()
    config.model.head.num_queries = 20
    config.model.head.width = 64
    config.model.head.num_heads = 4
    config.model.head.encoder_layers = 1
    config.model.head.decoder_layers = 3
    config.model.head.encoder_ffn = 128
    config.model.head.decoder_ffn = 128
    config.model.head.group_norm_groups = 8
    config.model.head.scales = (3.0, 1.5, 0.75, 0.375)  # masks at a quarter of the image's resolution

    config.loss = ConfigDict()
    config.loss.num_points = 1024

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 1200
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 100
    config.train.clip_norm = 1.0
    config.train.log_every = 20
    config.train.evaluate_every = 300
    config.train.checkpoint_every = 150

    config.evaluate = ConfigDict()
    config.evaluate.window = 192
    config.evaluate.overlap = 64
    config.evaluate.batch_size = 8
    return config
