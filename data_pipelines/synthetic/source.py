"""Generated data set: train on one sensor, place and season, and test on another."""

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.records import Record, Window, crop, split_holdout
from data_pipelines.synthetic.layout import Habits
from data_pipelines.synthetic.render import Domain, Scene, render_scene
from data_pipelines.synthetic.sensor_model import SENSOR_A, SENSOR_B
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.host_memory import require_memory

CLASSES = ("field", "woodland", "water", "road", "building", "bare soil")
PALETTE = ((182, 208, 110), (38, 115, 62), (62, 133, 199), (92, 92, 98), (206, 72, 62), (214, 170, 118))
BANDS = tuple(band.name for band in SENSOR_A.bands)
PIXEL = 1.0
"""Side of a pixel on the ground in metres."""

_KEPT = 96  # scenes in the memory, at most
_PIXEL_BYTES, _RENDERED_BYTES = 13, 300  # of a pixel of a scene that is kept, and of one that is rendered

SOURCE, TARGET = "sensor_a", "sensor_b"
DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            name="sensor_a",
            sensor=SENSOR_A,
            habits=Habits((0.42, 0.24, 0.16, 0.18), (0.42, 0.16, 0.27, 0.15), 95, 0.35),
            soils={"brown soil": 0.55, "sand": 0.25, "red soil": 0.2},
            roofs={"clay tile": 0.45, "slate": 0.2, "metal sheet": 0.2, "roofing felt": 0.15},
            greenness=(0.55, 0.9),
            autumn=0.05,
            turbidity=0.25,
            elevation=(42, 60),
            azimuth=(130, 175),
            haze=(0.005, 0.03),
            epsg=32632,
            corner=(560_000.0, 5_330_000.0),
        ),
        Domain(
            name="sensor_b",
            sensor=SENSOR_B,
            habits=Habits((0.40, 0.28, 0.14, 0.18), (0.42, 0.16, 0.27, 0.15), 75, 0.5),
            soils={"brown soil": 0.35, "sand": 0.3, "red soil": 0.35},
            roofs={"clay tile": 0.25, "slate": 0.35, "metal sheet": 0.2, "roofing felt": 0.2},
            greenness=(0.4, 0.7),
            autumn=0.4,
            turbidity=0.5,
            elevation=(34, 44),
            azimuth=(150, 215),
            haze=(0.025, 0.045),
            epsg=32630,
            corner=(440_000.0, 4_510_000.0),
        ),
    )
}


class SyntheticScenes:
    """A `data_pipelines.records.Source` of generated scenes, rendered when they are read.

    Scene n of a domain depends only on `seed`, the domain, n and `size`: more scenes extend a domain and
    change none. Rendering a scene of 256 x 256 pixels takes about 0.15 s; the last ones stay in memory.

    Args:
      counts: number of scenes of each domain of `DOMAINS`.
      seed: 0 or more.
      size: side of the scenes in pixels of `PIXEL` metres, at least 64.

    Attributes:
      records: the scenes.

    Raises:
      UserError: an unknown domain, no scenes, or a value out of range.
    """

    def __init__(self, counts: Mapping[str, int], seed: int = 0, size: int = 256):
        for domain, count in counts.items():
            if domain not in DOMAINS:
                raise UserError(f"domain {domain!r} is not generated: choose from {', '.join(DOMAINS)}")
            if count < 1:
                raise bad_value(f"scenes of {domain}", count, "must be at least 1")
        if not counts:
            raise UserError(f"no domain to generate: choose from {', '.join(DOMAINS)}")
        if size < 64:
            raise bad_value("config.data.scene_size", size, "must be at least 64, to hold roads and houses")
        needed = size**2 * (min(sum(counts.values()), _KEPT) * _PIXEL_BYTES + _RENDERED_BYTES)
        require_memory("config.data.scene_size", size, needed, "the scenes")
        if seed < 0:
            raise bad_value("config.data.scene_seed", seed, "must be at least 0")
        self.seed, self.size = seed, size
        self.records: tuple[Record, ...] = tuple(
            Record(domain, f"{domain}/scene_{number:03d}", size, size)
            for domain, count in counts.items()
            for number in range(count)
        )

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return reflectance x 10000 (H, W, 4), whole float32 numbers, of a scene or a window; read-only."""
        image = crop(self.scene(record).image, window).astype(np.float32)
        image.setflags(write=False)
        return image

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return training ids (H, W) uint8, indices of `CLASSES`, of a scene or a window; read-only."""
        return crop(self.scene(record).label, window)

    def scene(self, record: Record) -> Scene:
        """Return image, label, height and sun of a scene; arrays are read-only."""
        return _rendered(record.domain, _number(record), self.seed, self.size)


class SyntheticDataset:
    """Two domains with the same classes and bands, to train on the source and test on the target.

    Sensor, place, season, sun and atmosphere differ between the domains; the meaning of bands and classes
    does not.

    Args:
      seed: seed of the scenes and of the split.
      scenes_source: number of scenes of domain `sensor_a`.
      scenes_target: number of scenes of domain `sensor_b`.
      size: side of the scenes in pixels.
      holdout: share of the source scenes that is held out from training.

    Attributes:
      source: scenes of the source domain.
      target: scenes of the target domain.
      train: records of the source for training.
      holdout: records of the source that are held out.
      classes: names of the classes.
      palette: their colours.
      bands: names of the bands.

    Raises:
      UserError: as for `SyntheticScenes`.
    """

    classes, palette, bands = CLASSES, PALETTE, BANDS

    def __init__(
        self,
        seed: int = 0,
        scenes_source: int = 24,
        scenes_target: int = 8,
        size: int = 256,
        holdout: float = 0.2,
    ):
        self.source = SyntheticScenes({SOURCE: scenes_source}, seed, size)
        self.target = SyntheticScenes({TARGET: scenes_target}, seed, size)
        self.train, self.holdout = split_holdout(self.source.records, holdout, seed)

    def examples(self, split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield (name, image (H, W, 4) uint16, label (H, W) uint8) of every scene of a split.

        Args:
          split: `train`, `holdout`, `source` or `target`.
        """
        scenes, records = {
            "train": (self.source, self.train),
            "holdout": (self.source, self.holdout),
            "source": (self.source, self.source.records),
            "target": (self.target, self.target.records),
        }[split]
        for record in records:
            scene = scenes.scene(record)
            yield record.name, scene.image, scene.label

    def write(self, folder: str | Path, split: str | None = None) -> list[Path]:
        """Write georeferenced images, labels and heights; existing files are replaced.

        A scene becomes `<domain>/images/<scene>.tif`, `<domain>/masks/<scene>.tif` (with colour table and
        class names) and `<domain>/heights/<scene>.tif` (metres). `ImageFolder` reads them with image_glob
        `*/images/*.tif` and mask_template `{domain}/masks/{stem}.tif`.

        Args:
          folder: where to write.
          split: the split to write; default all.

        Returns:
          Paths of the images.

        Raises:
          UserError: the folder cannot be written.
        """
        # imports rasterio, which training on generated scenes does not need
        from data_pipelines.synthetic.write_geotiffs import write_scene

        names = None if split is None else {name for name, _, _ in self.examples(split)}
        paths = []
        for scenes in (self.source, self.target):
            for record in scenes.records:
                if names is None or record.name in names:
                    place = Path(folder) / record.domain, record.name.rpartition("/")[2]
                    scene, domain = scenes.scene(record), DOMAINS[record.domain]
                    corner = _corner(domain, _number(record), record.height)
                    paths.append(write_scene(*place, scene, domain, corner, PIXEL, CLASSES, PALETTE))
        return paths


def open_synthetic(config: RunConfig, domains: Sequence[str]) -> SyntheticScenes:
    """Return the scenes of a configuration with `data.kind` "synthetic".

    Args:
      config: `data.scenes_source` and `data.scenes_target` are the numbers of scenes in each source and
        target domain, `data.scene_size` their side in pixels, `data.scene_seed` their seed.
      domains: names of the domains.

    Raises:
      UserError: as for `SyntheticScenes`, or other bands or classes than the generated ones.
    """
    for key, given, known in (
        ("bands", config.bands, BANDS),
        ("classes.names", config.classes.names, CLASSES),
    ):
        if given != known:
            raise UserError(f"{key} = {given} does not fit generated scenes: give {known}")
    data = config.data
    counts = {
        domain: data.scenes_source if domain in data.source else data.scenes_target for domain in domains
    }
    return SyntheticScenes(counts, data.scene_seed, data.scene_size)


@functools.lru_cache(maxsize=_KEPT)
def _rendered(domain: str, number: int, seed: int, size: int) -> Scene:
    rng = np.random.default_rng((seed, zlib.crc32(domain.encode()), number))
    scene = render_scene(DOMAINS[domain], size, PIXEL, rng)
    for array in (scene.image, scene.label, scene.height):
        array.setflags(write=False)
    return scene


def _number(record: Record) -> int:
    return int(record.name.rpartition("_")[2])


def _corner(domain: Domain, number: int, size: int) -> tuple[float, float]:
    """Return easting and northing in metres of a scene's north-western corner: eight scenes a row, apart."""
    row, col = divmod(number, 8)
    step = 1.5 * size * PIXEL
    return domain.corner[0] + col * step, domain.corner[1] - row * step
