"""Land cover from Sentinel-2, all 13 bands: train on clear dates, test on a hazy one.

Four dates of one place in Slovenia, files as they are, reflectance x 10000. Bands are found by the names in
the files; wavelengths come from the sensor. The place is the same, so this tests a change of season and
atmosphere, not of place; it is a small example of real files, not a benchmark. Labels are a raster, or the
same land cover as polygons.

Source: our own, on the eo-learn project's example data (MIT; contains modified Copernicus Sentinel data).
Score: none published; classifiers on frozen features, with other halves and dates, in docs/results.md.
Cost: not measured; designed for two CPU cores.

  spectralmoe train --config configs/sentinel2_landcover.py --config.data.root=DIR --workdir runs/s2
  spectralmoe train --config configs/sentinel2_landcover.py:polygons ...
  spectralmoe train --config configs/sentinel2_landcover.py:galileo ...   # a frozen foundation model
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, labels=("raster", "polygons"), encoder=("small", "galileo"))
    config = common.small("sentinel2_landcover")
    config.sensor = "sentinel2"
    config.bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
    config.classes.names = ("cultivated", "forest", "grassland", "shrubland", "artificial surface")
    config.classes.palette = ((230, 196, 92), (38, 115, 62), (160, 208, 96), (150, 120, 70), (206, 72, 62))

    config.data.kind = "geotiff"
    config.data.root = "data/sentinel2"
    config.data.image_glob = "{domain}.tif"
    config.data.mask_template = {"raster": "landcover.tif", "polygons": "landcover.gpkg"}[given.labels]
    config.data.label_attribute = {"raster": "", "polygons": "LULC_ID"}[given.labels]
    config.data.label_values = (1, 2, 3, 4, 8)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.source = ("scene_1", "scene_2", "scene_3")
    config.data.target = ("scene_0",)
    config.data.holdout_domains = ("scene_3",)  # a date of its own: windows of one place would be too alike
    config.data.crop = 64

    config.augment.scale = (0.8, 1.2)
    config.augment.max_class_share = 0.9
    config.augment.gain = 0.1
    config.augment.offset = 0.1
    config.augment.drop_bands = 0.1
    config.augment.tilt = 0.1

    config.loss.unlabelled = "excluded"

    # of the clear dates
    config.model.pixel_mean = (1333, 1037, 885, 670, 944, 2079, 2571, 2517, 2831, 968, 24, 1417, 798)
    config.model.pixel_std = (331, 369, 371, 413, 417, 505, 559, 575, 587, 286, 21, 522, 489)
    config.model.visual.kind = "dofa"
    config.model.visual.patch_size = 4
    config.model.visual.table_size = 16
    config.model.adapter.scale_init = 0.1

    config.train.steps = 300
    config.train.evaluate_every = 100
    config.train.checkpoint_every = 100

    config.evaluate.window = 64
    config.evaluate.overlap = 16

    if given.encoder == "galileo":
        common.use_galileo(config)
        config.model.visual.stored_as = "x10000"
    return config
