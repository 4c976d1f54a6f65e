"""WHU-OHS: hyperspectral scenes of some regions source, of others target.

Published (arXiv 2603.13352 and the authors' released configuration files): DOFA ViT-L/16 and a DINOv2 ViT-L
depth encoder, both frozen, six experts, flips as the only augmentation, AdamW at 1e-4. Which scenes are
source and which target is for `split.txt` to say, see docs/benchmarks.md. For the dataset's own split:
`--config.data.source=train --config.data.target=test`.

  spectralmoe prepare whu_ohs --source DOWNLOADED --out data
  spectralmoe train --config configs/whu_ohs.py --workdir runs/whu_ohs
  --config configs/whu_ohs.py:experts=3
"""

from ml_collections import ConfigDict

from data_pipelines.benchmarks import get_benchmark


def get_config(arg: str = "") -> ConfigDict:
    experts = int(arg.removeprefix("experts=") or 6)
    benchmark = get_benchmark("whu_ohs")
    config = ConfigDict()
    config.name = "whu_ohs"
    config.seed = 0

    config.bands = benchmark.bands  # band 1 to band 32, 466 to 940 nm
    config.sensor = "orbita_ohs"
    config.classes = ConfigDict()
    config.classes.names = benchmark.classes
    config.classes.palette = benchmark.palette

    config.data = ConfigDict()
    config.data.kind = "prepared"
    config.data.benchmark = "whu_ohs"
    config.data.root = "data/whu_ohs"
    config.data.source = ("source",)
    config.data.target = ("target",)
    config.data.holdout = 0.1  # of the source, to choose the best checkpoint by
    config.data.crop = 512
    config.data.workers = 4

    config.augment = ConfigDict()
    config.augment.scale = (1.0, 1.0)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 1.0
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.0
    config.augment.turns = False
    config.augment.photometric = False

    config.model = ConfigDict()
    config.model.weights = ""  # the released segmenter, or BACKBONE,CHECKPOINT; or the encoders' own below
    config.model.dtype = "bfloat16"
    config.model.remat = "layer"
    config.model.pixel_mean = (0.0,) * 32
    config.model.pixel_std = (10000.0,) * 32  # pixels are reflectance x 10000
    config.model.out_layers = (7, 11, 15, 23)

    config.model.visual = ConfigDict()
    config.model.visual.preset = "dofa_l"
    config.model.visual.table_size = 32  # of crops of 512
    config.model.visual.weights = ""  # a file, a Hugging Face folder or hf://owner/name
    config.model.visual.trainable = False

    config.model.depth = ConfigDict()
    config.model.depth.preset = "prompt_depth_anything_l"
    config.model.depth.weights = ""
    config.model.depth.bands = ("band 2", "band 7", "band 15")  # 480, 566, 686 nm, in the published order
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
    config.model.head.scales = (1.0, 1.0, 1.0, 1.0)  # the released code resizes DINOv3's features only

    config.loss = ConfigDict()
    config.loss.num_points = 12544

    config.train = ConfigDict()
    config.train.batch_size = (
        4  # (unsure) of the released file's name; the publication says 8 for all benchmarks
    )
    config.train.steps = 10_945  # 20 epochs of about 2,189 patches in batches of 4
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50
    config.train.evaluate_every = 547
    config.train.checkpoint_every = 547

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config
