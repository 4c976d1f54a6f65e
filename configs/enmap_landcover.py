"""Land cover from EnMAP, 224 bands: tiles of the west to train on, tiles of the east to test on.

Surface reflectance x 10000 near Potsdam, tiles of 32 x 32 pixels of 30 m, most of them unlabelled (of the
EnMAP-Box project's test data). The wavelengths stand in the files; DOFA makes its patch embedding from them.

  spectralmoe train --config configs/enmap_landcover.py --config.data.root=PATH/enmap --workdir runs/enmap
"""

from ml_collections import ConfigDict

from data_pipelines.sensors import SENSORS

WEST = ("128_0", "128_32", "128_96", "160_96", "192_64", "192_96", "64_0", "96_32", "96_96")
EAST = ("128_128", "160_128", "160_160", "192_128", "96_128")  # row and column of the tile in the scene


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "enmap_landcover"
    config.seed = 0

    config.sensor = "enmap"
    config.bands = tuple(band.name for band in SENSORS["enmap"].bands)  # all 224
    config.classes = ConfigDict()
    config.classes.names = ("roof", "pavement", "low vegetation", "tree", "soil", "water")
    config.classes.palette = (
        (206, 72, 62),
        (92, 92, 98),
        (182, 208, 110),
        (38, 115, 62),
        (214, 170, 118),
        (62, 133, 199),
    )

    config.data = ConfigDict()
    config.data.kind = "geotiff"
    config.data.root = "data/enmap"
    config.data.image_glob = "images/enmap_potsdam_tile_{domain}.tif"
    config.data.mask_template = "labels/{stem}.tif"
    config.data.label_values = (1, 2, 3, 4, 5, 6)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.source = WEST
    config.data.target = EAST
    config.data.holdout_domains = ("128_96", "96_96")
    config.data.crop = 32
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale = (1.0, 1.0)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 1.0
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = False  # is made for 8-bit images
    config.augment.gain = 0.05
    config.augment.tilt = 0.05

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.pixel_mean = (1700.0,) * len(config.bands)
    config.model.pixel_std = (1200.0,) * len(config.bands)
    config.model.out_layers = (0, 1, 2, 3)

    config.model.visual = ConfigDict()
    config.model.visual.kind = "dofa"
    config.model.visual.width = 64
    config.model.visual.layers = 4
    config.model.visual.heads = 2
    config.model.visual.patch_size = 2
    config.model.visual.table_size = 16
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
    config.model.head.scales = (2.0, 1.0, 0.5, 0.25)

    config.loss = ConfigDict()
    config.loss.num_points = 512

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 300
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 30
    config.train.clip_norm = 1.0
    config.train.log_every = 10
    config.train.evaluate_every = 100
    config.train.checkpoint_every = 100

    config.evaluate = ConfigDict()
    config.evaluate.window = 32
    config.evaluate.overlap = 16
    config.evaluate.batch_size = 8
    return config
