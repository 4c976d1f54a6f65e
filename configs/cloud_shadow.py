"""Clouds and their shadows across sensors: Landsat-5 source, Landsat-7 target, straight from the GeoTIFFs.

Top-of-atmosphere reflectance in six named bands, one scene of 512 x 512 pixels per sensor. A scene is cut
into windows, a few of which are held out to choose the checkpoint. Any third sensor whose files have these
bands, in whatever order, can be a target too; for Landsat 8, the image is
PATH/cloudshadow/landsat8_image.tif and the labels are landsat8_label.tif.

Source: our own, on the test data of DLR's ukis-csmask (Apache-2.0).
Arguments: `small` (the default), an encoder trained on the source, or `galileo`, a frozen foundation model.

Score: none published; ours with `galileo`, and of smaller runs without, in docs/results.md.
Cost: with `galileo` about 80 seconds of one CPU core; without not measured.

  spectralmoe train --config configs/cloud_shadow.py:galileo --config.data.root=PATH/cloudshadow \
    --workdir runs/clouds
  spectralmoe evaluate --workdir runs/clouds --config.data.target=landsat7,landsat8 \
    --config.data.sensors=landsat5=landsat5,landsat7=landsat7,landsat8=landsat8
"""

from ml_collections import ConfigDict

from spectralmoe_jax.configs import common


def get_config(args: str = "") -> ConfigDict:
    given = common.arguments(args, encoder=("small", "galileo"))
    config = common.small("cloud_shadow")
    config.sensor = "landsat5"
    config.bands = ("blue", "green", "red", "nir", "swir16", "swir22")
    config.classes.names = ("clear", "cloud", "cloud shadow")
    config.classes.palette = ((116, 160, 98), (245, 245, 245), (58, 62, 92))

    config.data.kind = "geotiff"
    config.data.root = "data/cloudshadow"
    config.data.image_glob = "{domain}_image.tif"
    config.data.mask_template = "{domain}_label.tif"
    config.data.label_values = (1, 2, 3)  # as stored, in the order of the classes
    config.data.ignore_values = (0,)
    config.data.tile = 128
    # DOMAIN=SENSOR: the sensor whose names identify a domain's bands (B4 is near infrared on Landsat 5 and 7,
    # red on Landsat 8); domains not named here use config.sensor
    config.data.sensors = ("landsat5=landsat5", "landsat7=landsat7")
    config.data.source = ("landsat5",)
    config.data.target = ("landsat7",)
    config.data.holdout = 0.2
    config.data.crop = 96

    config.augment.scale = (0.7, 1.4)
    config.augment.max_class_share = 0.9
    config.augment.gain = 0.1  # sensors are calibrated differently
    config.augment.tilt = 0.1

    config.model.pixel_mean = (0.179, 0.180, 0.158, 0.278, 0.169, 0.104)
    config.model.pixel_std = (0.096, 0.146, 0.157, 0.153, 0.142, 0.115)
    config.model.visual.kind = "dinov3"
    config.model.visual.patch_size = 4
    config.model.visual.storage_tokens = 1
    config.model.adapter.scale_init = 0.1

    config.train.steps = 300
    config.train.evaluate_every = 100
    config.train.checkpoint_every = 100

    config.evaluate.window = 96
    config.evaluate.overlap = 32

    if given.encoder == "galileo":
        common.use_galileo(config)
        config.model.visual.stored_as = "unit"  # reflectance from 0 to 1
        # positions are counted in metres; those of 30 m are beyond what the encoder was trained on
        config.model.visual.resolution = 10.0
    return config
