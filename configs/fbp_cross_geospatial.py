"""Five-Billion-Pixels, cross-geospatial: 126 Gaofen-2 images source, 24 of other places target.

Published (arXiv 2603.13352 and the authors' released configuration files): DINOv3 ViT-L/16 or DOFA
ViT-L/16, and a DINOv2 ViT-L depth encoder, all frozen, six experts, crops of 512, batches of 8, AdamW at
1e-4. Which images are target was not published: see docs/benchmarks.md on `split.txt`. DOFA was pretrained
on data that includes Five-Billion-Pixels: its scores here are not those of unseen images.

  spectralmoe prepare fbp_cross_geospatial --source DOWNLOADED --out data
  spectralmoe train --config configs/fbp_cross_geospatial.py --workdir runs/fbp_cross_geospatial
  --config configs/fbp_cross_geospatial.py:experts=3
  --config configs/fbp_cross_geospatial.py:dofa
"""

from ml_collections import ConfigDict

from data_pipelines.benchmarks import get_benchmark


def get_config(arg: str = "") -> ConfigDict:
    words = arg.split(",") if arg else []
    dofa = "dofa" in words
    experts = next((int(word.removeprefix("experts=")) for word in words if word != "dofa"), 6)
    benchmark = get_benchmark("fbp_cross_geospatial")
    config = ConfigDict()
    config.name = "fbp_cross_geospatial"
    config.seed = 0

    config.bands = benchmark.bands  # nir, red, green, blue
    config.classes = ConfigDict()
    config.classes.names = benchmark.classes
    config.classes.palette = benchmark.palette

    config.data = ConfigDict()
    config.data.kind = "prepared"
    config.data.benchmark = "fbp_cross_geospatial"
    config.data.root = "data/fbp_cross_geospatial"
    config.data.source = ("source",)
    config.data.target = ("target",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint by
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
    config.model.pixel_mean = (112.067327, 83.535213, 88.392715, 82.128708)
    config.model.pixel_std = (73.937849, 65.736182, 64.700772, 63.703369)
    config.model.out_layers = (7, 11, 15, 23)

    config.model.visual = ConfigDict()
    if dofa:
        config.model.visual.preset = "dofa_l"
        config.model.visual.table_size = 32  # of crops of 512
    else:
        config.model.visual.preset = "dinov3_l"
        config.model.visual.extra_bands = "modulo"  # the fourth band takes the first channel's kernel
    config.model.visual.weights = ""  # a file, a Hugging Face folder or hf://owner/name
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
    if dofa:
        config.model.head.scales = (1.0, 1.0, 1.0, 1.0)  # the released code resizes DINOv3's features only

    config.loss = ConfigDict()
    config.loss.num_points = 12544

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 66_160  # 20 epochs of 26,460 tiles in batches of 8
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50
    config.train.evaluate_every = 3308
    config.train.checkpoint_every = 1000

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config
