"""A trained model in Python: loaded once, arrays in and arrays out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.calibration import (
    Calibration,
    calibration_file,
    calibration_of,
    entropy_of,
    make_distance,
    probabilities_of,
    weights_digest,
)
from spectralmoe_jax.inference.geotiff import predict_scene
from spectralmoe_jax.inference.model_files import config_of_model
from spectralmoe_jax.inference.polygons import OUTLINES, Outlines
from spectralmoe_jax.inference.predict_step import make_features, make_predict
from spectralmoe_jax.inference.products import PRODUCTS, make_products, with_distance
from spectralmoe_jax.inference.segmenter_weights import load_segmenter
from spectralmoe_jax.inference.sliding_window import (
    Predict,
    fitted_batch,
    mean_over_windows,
    predict_images,
)
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import inference_layout
from spectralmoe_jax.sensors import place_of

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


def load(
    model: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    stream: str | None = None,
    allow_code: bool = False,
) -> Model:
    """Load a trained model once, to use it many times.

    >>> import spectralmoe_jax
    >>> model = spectralmoe_jax.load("runs/quickstart")
    >>> model.bands
    ('blue', 'green', 'red', 'nir')

    Args:
      model: folder that `spectralmoe train` wrote; weight files, several separated by commas; or a name on
        the Hugging Face hub, `hf://owner/name`.
      config: configuration in any form of `config.load.Configuration`; None for the model's own. Weight
        files carry one if `spectralmoe convert` wrote them from a run.
      stream: in a run on several sensors, the one whose bands and statistics to use.
      allow_code: whether the model's own configuration may name code, an adapter or a data source of one's
        own: True runs it.

    Raises:
      UserError: names the file or key that is wrong, or the code that the model names.
    """
    run = config_of_model(model, allow_code=allow_code) if config is None else as_run_config(config)
    run = run.stream(stream) if stream else run
    layout = inference_layout(run)
    return Model(load_segmenter(model, run, layout), run, layout, calibration_file(model))


def predict(
    checkpoint: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    allow_code: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Map one scene with a trained model; to map several, `load` it once.

    Args:
      checkpoint: the model, as `load` takes it.
      config: as in `load`.
      input: raster with the bands of the configuration.
      output: map to write.
      allow_code: as in `load`.
      **options: what to write beside the map, as in `Model.map`.

    Returns:
      See `Model.map`.

    Raises:
      UserError: names the file or key that is wrong.
    """
    return load(checkpoint, config, allow_code=allow_code).map(input, output, **options)


class Model:
    """A trained segmenter: NumPy arrays in, NumPy arrays out, images of any size.

    Images are cut into windows of `config.evaluate`, whose overlaps are blended. The program is compiled at
    the first call and kept. Arrays hold pixel values as the files store them: normalisation is part of the
    model.

    Attributes:
      config: configuration of the run.
      segmenter: the segmenter with its weights.
      classes: names of the classes.
      palette: colours of the classes, (red, green, blue) in 0..255; None if the configuration has none.
      bands: names of the bands, in the order that images have by default.
      sensor: name of the sensor, or None.
      pixel_mean: mean of each band that the model subtracts, in stored values.
      pixel_std: deviation of each band that it divides by.
      calibration_file: where `spectralmoe calibrate` keeps the model's calibration, or None.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: RunConfig,
        layout: Layout | None = None,
        calibration: Path | None = None,
    ):
        self.config, self.segmenter = config, segmenter
        self.calibration_file = calibration
        self.classes, self.palette = tuple(config.classes.names), config.classes.palette
        self.bands, self.sensor = tuple(config.bands), config.sensor
        self.pixel_mean = np.asarray(segmenter.pixel_mean[...])
        self.pixel_std = np.asarray(segmenter.pixel_std[...])
        self._predict = make_predict(segmenter, layout, config.evaluate.tta)
        self._encode = make_features(segmenter, layout)

    def __repr__(self) -> str:
        return f"Model({self.config.name!r}, bands={self.bands}, classes={self.classes})"

    def predict(self, image: np.ndarray, bands: Sequence[str | None] | None = None) -> np.ndarray:
        """Return the class of every pixel.

        >>> import numpy as np, spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> image = np.random.default_rng(0).uniform(0, 3000, (100, 130, 4))
        >>> classes = model.predict(image)
        >>> classes.shape, classes.dtype
        ((100, 130), dtype('uint8'))
        >>> set(np.unique(classes)) <= set(range(len(model.classes)))
        True

        Args:
          image: raw pixels (H, W, bands), or several images of one size (B, H, W, bands).
          bands: names of the image's bands, of which the model takes its own; None if they are the model's.

        Returns:
          Numbers of classes (H, W) or (B, H, W) uint8.

        Raises:
          UserError: the image has other bands, or values that are not finite.
        """
        return self.scores(image, bands).argmax(axis=-1).astype(np.uint8)

    def probabilities(self, image: np.ndarray, bands: Sequence[str | None] | None = None) -> np.ndarray:
        """Return the probability of every class in every pixel.

        They are calibrated by the temperature that `spectralmoe calibrate` fitted; without one, they are the
        shares of the scores.

        >>> import numpy as np, spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> image = np.random.default_rng(0).uniform(0, 3000, (100, 130, 4))
        >>> probabilities = model.probabilities(image)
        >>> probabilities.shape
        (100, 130, 6)
        >>> bool(np.allclose(probabilities.sum(axis=-1), 1))
        True

        Args:
          image: as in `predict`.
          bands: as in `predict`.

        Returns:
          (H, W, C) or (B, H, W, C) float32, which add up to one.

        Raises:
          UserError: as in `predict`.
        """
        return probabilities_of(self.scores(image, bands), self.temperature)

    def uncertainty(self, image: np.ndarray, bands: Sequence[str | None] | None = None) -> np.ndarray:
        """Return how unsure the model is of every pixel, and how far the pixel is from the source.

        Entropy of the probabilities over its largest value, in 0..1; and the Mahalanobis distance of the
        features from those of the source, above 1 where 95 % of held-out source patches are nearer.

        >>> import numpy as np, spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> _ = spectralmoe_jax.calibrate("runs/quickstart")  # doctest: +SKIP
        >>> image = np.random.default_rng(0).uniform(0, 3000, (100, 130, 4))
        >>> model.uncertainty(image).shape  # doctest: +SKIP
        (100, 130, 2)

        Args:
          image: as in `predict`.
          bands: as in `predict`.

        Returns:
          (H, W, 2) or (B, H, W, 2) float32.

        Raises:
          UserError: as in `predict`, or the model has no calibration.
        """
        images = self._images(image, bands)
        settings = fitted_batch(self.config.evaluate, images.shape[1:3], len(images))
        scores = predict_images(list(images), self._predict, settings)
        distances = predict_images(list(images), self._distance, settings)
        found = [
            np.concatenate([entropy_of(probabilities_of(s, self.temperature))[..., None], d], axis=-1)
            for s, d in zip(scores, distances, strict=True)
        ]
        return found[0] if np.ndim(image) == 3 else np.stack(found)

    def scores(self, image: np.ndarray, bands: Sequence[str | None] | None = None) -> np.ndarray:
        """Return the scores of the classes, whose largest decides.

        Those of Mask2Former are sums over queries, and do not add up to one.

        >>> import numpy as np, spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> images = np.random.default_rng(0).uniform(0, 3000, (2, 64, 64, 4))
        >>> model.scores(images).shape
        (2, 64, 64, 6)

        Args:
          image: as in `predict`.
          bands: as in `predict`.

        Returns:
          (H, W, C) or (B, H, W, C) float32, not negative.

        Raises:
          UserError: as in `predict`.
        """
        images = self._images(image, bands)
        settings = fitted_batch(self.config.evaluate, images.shape[1:3], len(images))
        found = predict_images(list(images), self._predict, settings)
        return found[0] if np.ndim(image) == 3 else np.stack(found)

    def features(self, image: np.ndarray, bands: Sequence[str | None] | None = None) -> np.ndarray:
        """Return the adapted features of every patch, the last of those that the head reads.

        Features of a place are the mean over the windows that contain it.

        >>> import numpy as np, spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> image = np.random.default_rng(0).uniform(0, 3000, (100, 130, 4))
        >>> features = model.features(image)
        >>> features.shape[:2]  # patches of 4 x 4 pixels
        (25, 33)

        Args:
          image: as in `predict`.
          bands: as in `predict`.

        Returns:
          (h, w, D) or (B, h, w, D) float32, h = H / patch, rounded up.

        Raises:
          UserError: as in `predict`.
        """
        images, patch = self._images(image, bands), self.segmenter.config.visual.patch_size
        settings = fitted_batch(self.config.evaluate, images.shape[1:3])
        whole = dataclasses.replace(settings, overlap=settings.overlap - settings.overlap % patch)
        found = [mean_over_windows(each, self._encode, whole, patch) for each in images]
        return found[0] if np.ndim(image) == 3 else np.stack(found)

    def map(
        self,
        scene: str | os.PathLike[str] | DatasetReader,
        output: str | os.PathLike[str],
        *,
        confidence: bool = False,
        probabilities: bool = False,
        uncertainty: bool = False,
        preview: str | os.PathLike[str] | None = None,
        vector: str | os.PathLike[str] | None = None,
        outlines: Outlines = OUTLINES,
        check_values: str | None = None,
        tags: Mapping[str, str] | None = None,
        progress: Callable[[int], None] = lambda pixels: None,
    ) -> dict[str, Any]:
        """Map a scene of any size into a georeferenced raster; see `inference.geotiff.predict_scene`.

        >>> import spectralmoe_jax
        >>> model = spectralmoe_jax.load("runs/quickstart")
        >>> done = model.map("runs/quickstart/sensor_b/images/scene_000.tif", "map.tif")
        >>> sorted(done["shares"]) == sorted(model.classes)
        True

        Args:
          scene: raster with the model's bands: a file, a name that GDAL opens (`https://...`, `/vsi...`), or
            an open rasterio dataset, which is read anew by its name.
          output: map to write, a GeoTIFF.
          confidence: write the probability of the chosen class, as `<output stem>_confidence.tif`.
          probabilities: write those of all classes, as `<output stem>_probabilities.tif`.
          uncertainty: write what `Model.uncertainty` returns, as `<output stem>_uncertainty.tif`.
          preview: PNG to write, or None.
          vector: file of polygons to write (.gpkg, .geojson, .fgb or .parquet), or None. They have a
            confidence if that is written too.
          outlines: which polygons, and how coarse.
          check_values: what to do if the scene stores other values than the images of the training: `stop`,
            `warn` or `off`; None for `config.data.check_values`.
          tags: further metadata of the rasters.
          progress: called with the number of pixels that were finished since the last call.

        Returns:
          `shape` (rows, columns), `pixels` (those with data), `shares` (class name to its share of them) and
          `files` (the paths written).

        Raises:
          UserError: names the file that is wrong.
        """
        asked = (confidence, probabilities, uncertainty)
        wanted = [name for name, is_wanted in zip(PRODUCTS, asked, strict=True) if is_wanted]
        return predict_scene(
            with_distance(self._predict, self._distance) if uncertainty else self._predict,
            scene if isinstance(scene, str | os.PathLike) else _name_of(scene),
            Path(output),
            settings=self.config.evaluate,
            names=self.classes,
            palette=self.config.classes.colours,
            bands=self.bands,
            sensor=self.sensor,
            file_bands=self.config.data.file_bands,
            values=self.config.values_of_files,
            check_values=check_values or self.config.data.check_values,
            products=make_products(wanted, self.classes, self.temperature) if wanted else (),
            preview=None if preview is None else Path(preview),
            vector=None if vector is None else Path(vector),
            outlines=outlines,
            tags=dict(tags or {}) | ({"TEMPERATURE": f"{self.temperature:.6g}"} if wanted else {}),
            progress=progress,
        )

    @property
    def predictor(self) -> Predict:
        """The compiled program: raw windows (B, S, S, bands) to scores (B, S, S, C)."""
        return self._predict

    def with_predictor(self, predict: Predict) -> Model:
        """Return a copy that calls another function in place of `predictor`.

        Args:
          predict: a function of `predictor`'s kind, such as one that shares calls among threads.
        """
        copied = copy.copy(self)
        copied._predict = predict
        return copied

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all weights and of the part of the configuration that a map depends on."""
        evaluate = dataclasses.replace(self.config.evaluate, batch_size=1)
        own = (self.classes, self.palette, self.bands, self.sensor, self.config.data.file_bands)
        settings = repr((self.segmenter.config, evaluate, *own, self.weights_digest))
        return hashlib.sha256(settings.encode()).hexdigest()[:32]

    @functools.cached_property
    def weights_digest(self) -> str:
        """A digest of all weights."""
        return weights_digest(self.segmenter)

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """The calibration kept with the model, or None.

        Raises:
          UserError: it is damaged.
        """
        return calibration_of(self.calibration_file, lambda: self.weights_digest)

    @property
    def temperature(self) -> float:
        """Temperature of the probabilities; 1 without a calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @functools.cached_property
    def _distance(self) -> Predict:
        if self.calibration is None:
            raise UserError(
                f"{self.config.name}: the distance from the source needs a calibration: run `spectralmoe "
                "calibrate` on the model, where its source images are"
            )
        return make_distance(self._encode, self.calibration)

    def _images(self, image: np.ndarray, bands: Sequence[str | None] | None) -> np.ndarray:
        """Return images (B, H, W, bands) with the model's bands, uint8 or float32.

        Raises:
          UserError: as in `predict`.
        """
        image = np.asarray(image)
        images = image[None] if image.ndim == 3 else image
        if images.ndim != 4 or 0 in images.shape:
            raise UserError(f"the image has shape {image.shape}: give (H, W, bands) or (B, H, W, bands)")
        names = self.bands if bands is None else tuple(bands)
        if images.shape[-1] != len(names):
            raise UserError(
                f"the image has {images.shape[-1]} bands in its last axis, not the {len(names)} of "
                f"{', '.join(name or '-' for name in names)}"
                + ("; name its own as bands=" if bands is None else "")
            )
        if bands is not None:
            images = images[..., self._places(names)]
        images = images if images.dtype == np.uint8 else images.astype(np.float32)
        if images.dtype != np.uint8 and not np.isfinite(images).all():
            raise UserError("the image has values that are not finite: give pixels without data the value 0")
        return images

    def _places(self, names: Sequence[str | None]) -> list[int]:
        """Return the positions in `names` of the model's bands.

        Raises:
          UserError: a band is missing, or there several times.
        """
        known = [name or "" for name in names]
        places = []
        for band in self.bands:
            place = place_of(band, known, self.sensor)
            if place is None:
                raise UserError(f"the image has no band {band!r}, only {', '.join(known)}")
            if place_of(band, known[:place] + known[place + 1 :], self.sensor) is not None:
                raise UserError(f"the image has several bands {band!r}: {', '.join(known)}; name each once")
            places.append(place)
        return places


def _name_of(dataset: DatasetReader) -> str:
    """Return the name that an open dataset can be read by again.

    Raises:
      UserError: it has none, being a view of another dataset.
    """
    if dataset.name.startswith("WarpedVRT("):
        raise UserError(f"{dataset.name}: cannot be read by its name; save it as a file, or as a VRT, first")
    return dataset.name
