"""Settings that several configurations share, and parsing of their arguments after the colon.

A run's own file starts from `published` or `small` and sets what differs, so it reads as a list of choices.
A copy of such a file runs from anywhere: it imports this module from the installed package.
"""

from collections.abc import Mapping
from types import SimpleNamespace

from ml_collections import ConfigDict

from data_pipelines.datasets import get_dataset
from spectralmoe_jax.errors import UserError


def arguments(given: str, **allowed: int | tuple[str, ...]) -> SimpleNamespace:
    """Parse the text after the colon: words and `name=number`, separated by commas.

    Args:
      given: for example `dofa,experts=3`; empty for the defaults.
      allowed: the default of each argument by name: a number, which `name=number` replaces, or the words to
        choose from, the default first.

    Returns:
      The values by name.

    Raises:
      UserError: an argument is unknown, given twice, or not a number; the message lists what is allowed.
    """
    values: dict[str, int | str] = {}
    for argument in filter(None, given.split(",")):
        name, value = _parse_argument(argument, allowed)
        if name in values:
            raise UserError(f"argument {argument!r} after the colon: {name} is already {values[name]}")
        values[name] = value
    defaults = {name: value[0] if isinstance(value, tuple) else value for name, value in allowed.items()}
    return SimpleNamespace(**(defaults | values))


def _parse_argument(argument: str, allowed: Mapping[str, int | tuple[str, ...]]) -> tuple[str, int | str]:
    """Return the name and value of one argument."""
    before, _, number = argument.partition("=")
    for name, default in allowed.items():
        if isinstance(default, tuple) and argument in default:
            return name, argument
        if isinstance(default, int) and before == name and number.isdecimal():
            return name, int(number)
    forms = (
        " or ".join(default) if isinstance(default, tuple) else f"{name}=NUMBER"
        for name, default in allowed.items()
    )
    raise UserError(f"argument {argument!r} after the colon is not known; allowed: {', '.join(forms)}")


def published(name: str) -> ConfigDict:
    """Settings of the published runs on a prepared benchmark (arXiv 2603.13352, the authors' released files).

    Frozen ViT-L encoders, the adapter as released, Mask2Former, AdamW at 1e-4 with polynomial decay. A run
    adds source and target domains, the range of scales, pixel statistics, the visual encoder, the number of
    experts, and the number of steps.

    Args:
      name: name of the benchmark, which supplies bands and classes.
    """
    benchmark = get_dataset(name)
    config = ConfigDict()
    config.name = name
    config.seed = 0

    config.bands = benchmark.bands
    config.classes = ConfigDict()
    config.classes.names = benchmark.classes
    config.classes.palette = benchmark.palette

    config.data = ConfigDict()
    config.data.kind = "prepared"
    config.data.benchmark = name
    config.data.root = f"data/{name}"
    config.data.crop = 512
    config.data.workers = 4

    config.augment = ConfigDict()
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.75
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.0
    config.augment.turns = False
    config.augment.photometric = True  # on red, green and blue only

    config.model = ConfigDict()
    config.model.weights = ""  # the released segmenter, or BACKBONE,CHECKPOINT; or set the encoders' below
    config.model.dtype = "bfloat16"
    config.model.remat = "layer"
    config.model.out_layers = (7, 11, 15, 23)

    config.model.visual = ConfigDict()
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
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 0
    config.train.clip_norm = None
    config.train.log_every = 50

    config.evaluate = ConfigDict()
    config.evaluate.window = 512
    config.evaluate.overlap = 256
    config.evaluate.batch_size = 8
    return config


def use_dofa(config: ConfigDict) -> None:
    """Use DOFA ViT-L/16 as the visual encoder of a published run."""
    config.model.visual.preset = "dofa_l"
    config.model.visual.table_size = 32  # for crops of 512
    config.model.head.scales = (1.0, 1.0, 1.0, 1.0)  # the released code resizes DINOv3's features only


def small(name: str) -> ConfigDict:
    """Settings of the small runs: an encoder of four layers, trained from random weights on two CPU cores.

    A run adds bands, classes and data, the range of scales, pixel statistics, the kind of encoder and its
    patch size, and the number of steps. There is no depth encoder: none is published at this size.
    """
    config = ConfigDict()
    config.name = name
    config.seed = 0

    config.classes = ConfigDict()

    config.data = ConfigDict()
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = False  # designed for 8-bit images

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.out_layers = (0, 1, 2, 3)

    config.model.visual = ConfigDict()
    config.model.visual.width = 64
    config.model.visual.layers = 4
    config.model.visual.heads = 2
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
    config.model.adapter.full_softmax = True  # with one expert per token, the task loss reaches the router

    config.model.head = ConfigDict()
    config.model.head.num_queries = 12
    config.model.head.width = 32
    config.model.head.num_heads = 4
    config.model.head.encoder_layers = 1
    config.model.head.decoder_layers = 2
    config.model.head.encoder_ffn = 64
    config.model.head.decoder_ffn = 64
    config.model.head.group_norm_groups = 8
    config.model.head.scales = (
        2.0,
        1.0,
        0.5,
        0.25,
    )  # with a patch size of 4: masks at half of the image's resolution

    config.loss = ConfigDict()
    config.loss.num_points = 512

    config.train = ConfigDict()
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.05
    config.train.betas = (0.9, 0.999)
    config.train.eps = 1e-8
    config.train.power = 0.9
    config.train.warmup_steps = 30
    config.train.clip_norm = 1.0
    config.train.log_every = 10

    config.evaluate = ConfigDict()
    config.evaluate.batch_size = 8
    return config


def use_galileo(config: ConfigDict) -> None:
    """Use Galileo-nano, frozen, as the visual encoder of a small run (arXiv 2502.09356).

    Its weights (MIT, 4 MB) come from the Hugging Face hub, or from a folder with config.json and encoder.pt
    given as `config.model.visual.weights`. A run adds `stored_as`, how its files store reflectance.

    The encoder attends within windows of 8 x 8 patches of 4 pixels, as in pretraining; crops are one such
    window, since a linear head needs no more, and windows overlap by half.
    """
    config.data.crop = 32
    config.evaluate.window = 32
    config.evaluate.overlap = 16
    config.evaluate.batch_size = 32

    # a head that is fitted to frozen features does better on held-out source images without augmentation
    config.augment.scale = (1.0, 1.0)
    config.augment.gain = config.augment.offset = config.augment.tilt = config.augment.drop_bands = 0.0

    config.model.visual = ConfigDict()
    config.model.visual.preset = "galileo_nano"
    config.model.visual.weights = "hf://nasaharvest/galileo/models/nano"
    config.model.visual.patch_size = 4
    config.model.visual.window = 8
    config.model.visual.trainable = False
    config.model.out_layers = (3,)  # the last one, after the last norm
    del config.model.pixel_mean  # the encoder has its own statistics
    del config.model.pixel_std

    # a linear head that starts fitted to the frozen features and is trained slowly, and an adapter that
    # starts at no change: docs/frozen_encoders.md
    config.model.head = ConfigDict()
    config.model.head.kind = "linear"
    config.model.head.labels = "patches"  # as `spectralmoe probe`
    config.model.adapter.zero_start = True
    config.train.head_start = "probe"
    config.train.probe_tiles = 256
    # the largest penalty that the held-out source cannot tell from the best, as `spectralmoe probe` chooses
    # it on Landsat 5: 300 for a sum over 13,000 places
    config.train.probe_penalty = 0.02
    config.train.lr_factors = ConfigDict()
    config.train.lr_factors.head = 0.1  # it starts at its optimum
    config.train.learning_rate = 5e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 10
    config.train.steps = 100
    config.train.evaluate_every = 25
    config.train.checkpoint_every = 25
