"""Land cover from Sentinel-2, all 13 bands: clear dates to train on, a hazy one to test on.

Four dates of one place in Slovenia as they lie (of the eo-learn project's example data, MIT; contains
modified Copernicus Sentinel data), reflectance x 10000. Bands are found by the names in the files, their
wavelengths by the sensor. The place is the same, so this tests the season and the air, not the ground; it is
a small example of real files, no benchmark. Labels are a raster, or the same land cover as polygons:

  spectralmoe train --config configs/sentinel2_landcover.py --config.data.root=DIR --workdir runs/s2
  spectralmoe train --config configs/sentinel2_landcover.py:polygons ...
"""

from ml_collections import ConfigDict


def get_config(labels: str = "raster") -> ConfigDict:
    config = ConfigDict()
    config.name = "sentinel2_landcover"
    config.seed = 0

    config.sensor = "sentinel2"
    config.bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    config.classes = ConfigDict()
    config.classes.names = ("cultivated", "forest", "grassland", "shrubland", "artificial surface")
    config.classes.palette = ((230, 196, 92), (38, 115, 62), (160, 208, 96), (150, 120, 70), (206, 72, 62))

    config.data = ConfigDict()
    config.data.kind = "geotiff"
    config.data.root = "data/sentinel2"
    config.data.image_glob = "{domain}.tif"
    config.data.mask_template = {"raster": "landcover.tif", "polygons": "landcover.gpkg"}[labels]
    config.data.label_values = (1, 2, 3, 4, 8)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.label_attribute = "LULC_ID" if labels == "polygons" else ""
    config.data.source = ("scene_1", "scene_2", "scene_3")
    config.data.target = ("scene_0",)
    config.data.holdout_domains = ("scene_3",)  # a date of its own: windows of one place would be too alike
    config.data.crop = 64
    config.data.workers = 0

    config.augment = ConfigDict()
    config.augment.scale = (0.8, 1.2)
    config.augment.scale_step = 0.1
    config.augment.max_edge = 1024
    config.augment.max_class_share = 0.9
    config.augment.flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.turns = True
    config.augment.photometric = False  # is made for 8-bit images
    config.augment.gain = 0.1
    config.augment.offset = 0.1
    config.augment.drop_bands = 0.1
    config.augment.tilt = 0.1

    config.model = ConfigDict()
    config.model.dtype = "float32"
    config.model.remat = "none"
    # of the clear dates
    config.model.pixel_mean = (1333, 1037, 885, 670, 944, 2079, 2571, 2517, 2831, 968, 24, 1417, 798)
    config.model.pixel_std = (331, 369, 371, 413, 417, 505, 559, 575, 587, 286, 21, 522, 489)
    config.model.out_layers = (0, 1, 2, 3)

    config.model.visual = ConfigDict()
    config.model.visual.kind = "dofa"
    config.model.visual.width = 64
    config.model.visual.layers = 4
    config.model.visual.heads = 2
    config.model.visual.patch_size = 4
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
    config.evaluate.window = 64
    config.evaluate.overlap = 16
    config.evaluate.batch_size = 8
    return config
