"""Clouds and their shadows across sensors: Landsat-5 source, Landsat-7 target, straight from the GeoTIFFs.

Top-of-atmosphere reflectance in six named bands, one scene of 512 x 512 pixels a sensor (of the test data of
DLR's ukis-csmask, Apache-2.0). A scene is cut into windows, a few of which are held out to choose the
checkpoint by. Any third sensor whose files have these bands, in whatever order, is a target too:

  spectralmoe train --config configs/cloud_shadow.py --config.data.root=PATH/cloudshadow --workdir runs/clouds
  spectralmoe evaluate --workdir runs/clouds --config.data.target=landsat7,landsat8 \
    --config.data.sensors=landsat5=landsat5,landsat7=landsat7,landsat8=landsat8

Its image is PATH/cloudshadow/landsat8_image.tif, its labels landsat8_label.tif. `data.sensors` says by whose
names a domain's bands are found: B4 is near infrared on Landsat 5 and 7, and red on Landsat 8.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "cloud_shadow"
    config.seed = 0

    config.sensor = "landsat5"
    config.bands = ("blue", "green", "red", "nir", "swir16", "swir22")
    config.classes = ConfigDict()
    config.classes.names = ("clear", "cloud", "cloud shadow")
    config.classes.palette = ((116, 160, 98), (245, 245, 245), (58, 62, 92))

    config.data = ConfigDict()
    config.data.kind = "geotiff"
    config.data.root = "data/cloudshadow"
    config.data.image_glob = "{domain}_image.tif"
    config.data.mask_template = "{domain}_label.tif"
    config.data.label_values = (1, 2, 3)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.tile = 128
    config.data.sensors = ("landsat5=landsat5", "landsat7=landsat7")  # DOMAIN=SENSOR; others: config.sensor
    config.data.source = ("landsat5",)
    config.data.target = ("landsat7",)
    config.data.holdout = 0.2
    config.data.crop = 96
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale = (0.7, 1.4)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.9
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = False  # is made for 8-bit images
    config.augment.gain = 0.1  # sensors are calibrated differently
    config.augment.tilt = 0.1

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.pixel_mean = (0.179, 0.180, 0.158, 0.278, 0.169, 0.104)
    config.model.pixel_std = (0.096, 0.146, 0.157, 0.153, 0.142, 0.115)
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
    config.evaluate.window = 96
    config.evaluate.overlap = 32
    config.evaluate.batch_size = 8
    return config
