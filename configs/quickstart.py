"""The generated two-sensor benchmark: train on one sensor, test on another. Needs no data.

Small enough for `spectralmoe quickstart` to finish in under five minutes on two CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "quickstart"
    config.seed = 0

    config.bands = ("blue", "green", "red", "nir")
    config.classes = ConfigDict()
    config.classes.names = ("field", "woodland", "water", "road", "building", "bare soil")
    config.classes.palette = (
        (182, 208, 110),
        (38, 115, 62),
        (62, 133, 199),
        (92, 92, 98),
        (206, 72, 62),
        (214, 170, 118),
    )

    config.data = ConfigDict()
    config.data.kind = "synthetic"
    config.data.source = ("sensor_a",)
    config.data.target = ("sensor_b",)
    config.data.scenes_source = 24
    config.data.scenes_target = 8
    config.data.scene_size = 256
    config.data.scene_seed = 0
    config.data.holdout = 0.15
    config.data.crop = 96
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale = (1.0, 1.0)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.75
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = False  # is made for 8-bit images; these are reflectances x 10000

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.pixel_mean = (895.0, 1088.0, 1139.0, 2218.0)
    config.model.pixel_std = (539.0, 612.0, 806.0, 1352.0)
    config.model.out_layers = (0, 1, 2, 3)

    config.model.visual = ConfigDict()
    config.model.visual.kind = "dinov3"
    config.model.visual.width = 64
    config.model.visual.layers = 4
    config.model.visual.heads = 2
    config.model.visual.patch_size = 4
    config.model.visual.storage_tokens = 1
    config.model.visual.layer_scale = 1.0
    config.model.visual.trainable = True  # there are no pretrained weights to freeze

    config.model.depth = None

    config.model.adapter = ConfigDict()
    config.model.adapter.preset = "paper"
    config.model.adapter.use_depth = False
    config.model.adapter.num_experts = 4
    config.model.adapter.top_k = 1
    config.model.adapter.num_tokens = 12
    config.model.adapter.rank = 8
    config.model.adapter.query_dim = 32
    config.model.adapter.gating = "laplace"
    config.model.adapter.balance_weight = 0.1
    config.model.adapter.full_softmax = True  # lets the task teach the router, too
    config.model.adapter.scale_init = 0.1

    config.model.head = ConfigDict()
    config.model.head.num_queries = 12
    config.model.head.width = 32
    config.model.head.num_heads = 4
    config.model.head.encoder_layers = 1
    config.model.head.decoder_layers = 2
    config.model.head.encoder_ffn = 64
    config.model.head.decoder_ffn = 64
    config.model.head.group_norm_groups = 8
    config.model.head.scales = (2.0, 1.0, 0.5, 0.25)  # masks at half of the image's resolution

    config.loss = ConfigDict()
    config.loss.num_points = 512

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 180
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 30
    config.train.clip_norm = 1.0
    config.train.log_every = 10
    config.train.evaluate_every = 180
    config.train.checkpoint_every = 90

    config.evaluate = ConfigDict()
    config.evaluate.window = 96
    config.evaluate.overlap = 32
    config.evaluate.batch_size = 8
    return config
