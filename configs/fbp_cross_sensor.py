"""Five-Billion-Pixels, cross-sensor: Gaofen-2 source, Sentinel-2, GF-1 and PlanetScope targets.

The published setting (arXiv 2603.13352): DINOv3 ViT-L/16 and a DINOv2 ViT-L depth encoder, both frozen,
six experts, crops of 512, batches of 8, AdamW at 1e-4.

  --config configs/fbp_cross_sensor.py           # as published
  --config configs/fbp_cross_sensor.py:experts=3
"""

from ml_collections import ConfigDict

NAMES_AND_COLOURS = (
    ("industrial area", (200, 0, 0)),
    ("paddy field", (0, 200, 0)),
    ("irrigated field", (150, 250, 0)),
    ("dry cropland", (150, 200, 150)),
    ("garden land", (200, 0, 200)),
    ("arbor forest", (150, 0, 250)),
    ("shrub forest", (150, 150, 250)),
    ("park", (200, 150, 200)),
    ("natural meadow", (250, 200, 0)),
    ("artificial meadow", (200, 200, 0)),
    ("river", (0, 0, 200)),
    ("urban residential", (250, 0, 150)),
    ("lake", (0, 150, 200)),
    ("pond", (0, 200, 250)),
    ("fish pond", (150, 200, 250)),
    ("snow", (250, 250, 250)),
    ("bare land", (200, 200, 200)),
    ("rural residential", (200, 150, 150)),
    ("stadium", (250, 200, 150)),
    ("square", (150, 150, 0)),
    ("road", (250, 150, 150)),
    ("overpass", (250, 150, 0)),
    ("railway station", (250, 200, 250)),
    ("airport", (200, 150, 0)),
)


def get_config(arg: str = "") -> ConfigDict:
    experts = int(arg.removeprefix("experts=") or 6)
    config = ConfigDict()
    config.name = "fbp_cross_sensor"
    config.seed = 0

    config.bands = ("nir", "red", "green", "blue")
    config.classes = ConfigDict()
    config.classes.names = tuple(name for name, _ in NAMES_AND_COLOURS)
    config.classes.palette = tuple(colour for _, colour in NAMES_AND_COLOURS)

    config.data = ConfigDict()
    config.data.kind = "image_folder"
    config.data.root = "data/five_billion_pixels"
    config.data.image_glob = "*/images/*.tif"
    config.data.mask_template = "{domain}/masks/{stem}.png"
    config.data.source = ("gaofen2",)
    config.data.target = ("sentinel2", "gf1", "planetscope")
    config.data.holdout = 0.1
    config.data.ignore_colours = ((0, 0, 0),)
    config.data.crop = 512
    config.data.workers = 4

    config.augment = ConfigDict()
    config.augment.scale = (0.6, 1.2)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.75
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.0
    config.augment.turns = False
    config.augment.photometric = True  # on red, green and blue only

    config.model = ConfigDict()
    config.model.weights = ""  # the released segmenter, or BACKBONE,CHECKPOINT; or the encoders' own below
    config.model.dtype = "bfloat16"
    config.model.remat = "layer"
    config.model.pixel_mean = (110.714, 85.357, 88.594, 82.444)
    config.model.pixel_std = (72.380, 65.591, 63.937, 63.005)
    config.model.out_layers = (7, 11, 15, 23)

    config.model.visual = ConfigDict()
    config.model.visual.preset = "dinov3_l"
    config.model.visual.weights = ""  # a file, a Hugging Face folder or hf://owner/name
    config.model.visual.extra_bands = "modulo"  # the fourth band takes the first channel's kernel
    config.model.visual.trainable = False

    config.model.depth = ConfigDict()
    config.model.depth.preset = "prompt_depth_anything_l"
    config.model.depth.weights = ""
    config.model.depth.bands = ("red", "green", "blue")
    config.model.depth.patch_size = 16  # published with 14: kernels and positions are resampled
    config.model.depth.table_size = 32

    config.model.adapter = ConfigDict()
    config.model.adapter.preset = "released"
    config.model.adapter.num_experts = experts
    config.model.adapter.top_k = 1
    config.model.adapter.num_tokens = 100
    config.model.adapter.rank = 16
    config.model.adapter.query_dim = 256
    config.model.adapter.gating = "laplace"

    config.model.head = ConfigDict()
    config.model.head.num_queries = 100
    config.model.head.width = 256
    config.model.head.encoder_layers = 6
    config.model.head.decoder_layers = 9

    config.loss = ConfigDict()
    config.loss.num_points = 12544

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 80_000  # 20 epochs of about 31,500 tiles in batches of 8
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50
    config.train.evaluate_every = 4000
    config.train.checkpoint_every = 1000

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config
