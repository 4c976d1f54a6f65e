"""LoveDA: rural scenes source, urban scenes target.

Published (arXiv 2603.13352 and the authors' released configuration files): DINOv3 ViT-L/16 and a DINOv2
ViT-L depth encoder, both frozen, three experts, crops of 512, batches of 8, AdamW at 1e-4. The published
number of steps fits four tiles of each of the 1,366 + 992 rural images (unsure), which is
`--config.data.source=train_rural,val_rural`.

  spectralmoe prepare loveda --source DOWNLOADED --out data
  spectralmoe train --config configs/loveda.py --workdir runs/loveda
  --config configs/loveda.py:experts=6
"""

from ml_collections import ConfigDict

from data_pipelines.benchmarks import get_benchmark


def get_config(arg: str = "") -> ConfigDict:
    experts = int(arg.removeprefix("experts=") or 3)
    benchmark = get_benchmark("loveda")
    config = ConfigDict()
    config.name = "loveda"
    config.seed = 0

    config.bands = benchmark.bands  # red, green, blue
    config.classes = ConfigDict()
    config.classes.names = benchmark.classes
    config.classes.palette = benchmark.palette

    config.data = ConfigDict()
    config.data.kind = "prepared"
    config.data.benchmark = "loveda"
    config.data.root = "data/loveda"
    config.data.source = ("train_rural",)
    config.data.target = ("val_urban",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint by
    config.data.crop = 512
    config.data.workers = 4

    config.augment = ConfigDict()
    config.augment.scale = (0.5, 2.0)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.75
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.0
    config.augment.turns = False
    config.augment.photometric = True

    config.model = ConfigDict()
    config.model.weights = ""  # the released segmenter, or BACKBONE,CHECKPOINT; or the encoders' own below
    config.model.dtype = "bfloat16"
    config.model.remat = "layer"
    config.model.pixel_mean = (123.675, 116.28, 103.53)
    config.model.pixel_std = (58.395, 57.12, 57.375)
    config.model.out_layers = (7, 11, 15, 23)

    config.model.visual = ConfigDict()
    config.model.visual.preset = "dinov3_l"
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

    config.loss = ConfigDict()
    config.loss.num_points = 12544

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.steps = 23_580  # 20 epochs of 9,432 tiles in batches of 8
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50
    config.train.evaluate_every = 1179
    config.train.checkpoint_every = 1000

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config
