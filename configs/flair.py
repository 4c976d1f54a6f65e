"""FLAIR #1: 50 domains of French departments and years source, ten others target.

Published (arXiv 2603.13352 and the authors' released configuration files): DINOv3 ViT-L/16 or DOFA
ViT-L/16, and a DINOv2 ViT-L depth encoder, all frozen, six experts, crops of 512, batches of 8, AdamW at
1e-4, on all 50 domains. Here eight of them choose the checkpoint instead. The released code takes the first
band for near infrared on this benchmark too, where it is red; here depth encoder and photometric distortion
get red, green and blue.

  spectralmoe prepare flair --source DOWNLOADED --out data
  spectralmoe train --config configs/flair.py --workdir runs/flair
  --config configs/flair.py:experts=3
  --config configs/flair.py:dofa
"""

from ml_collections import ConfigDict

from data_pipelines.benchmarks import get_benchmark


def get_config(arg: str = "") -> ConfigDict:
    words = arg.split(",") if arg else []
    dofa = "dofa" in words
    experts = next((int(word.removeprefix("experts=")) for word in words if word != "dofa"), 6)
    benchmark = get_benchmark("flair")
    config = ConfigDict()
    config.name = "flair"
    config.seed = 0

    config.bands = benchmark.bands  # red, green, blue, nir
    config.classes = ConfigDict()
    config.classes.names = benchmark.classes
    config.classes.palette = benchmark.palette

    config.data = ConfigDict()
    config.data.kind = "prepared"
    config.data.benchmark = "flair"
    config.data.root = "data/flair"
    config.data.source = ("train", "validation")
    config.data.target = ("test",)
    config.data.holdout = 0.0
    config.data.holdout_domains = (  # those of the split "validation", to choose the best checkpoint by
        "D004_2021", "D014_2020", "D029_2021", "D031_2019",
        "D058_2020", "D066_2021", "D067_2021", "D070_2020",
    )  # fmt: skip
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
    config.model.pixel_mean = (105.08, 110.87, 101.82, 106.38)
    config.model.pixel_std = (52.17, 45.38, 44.0, 39.69)
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
    config.train.steps = 77_140  # 10 epochs of 61,712 patches in batches of 8
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50
    config.train.evaluate_every = 7714
    config.train.checkpoint_every = 1000

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config
