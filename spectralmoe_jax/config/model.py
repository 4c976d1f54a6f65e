"""`config.model` and its sections: encoders and heads by kind; adapters are in `adapters.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from spectralmoe_jax.config.adapters import ADAPTERS, OwnAdapterConfig
from spectralmoe_jax.config.fields import (
    Section,
    above,
    at_least,
    between,
    derived,
    each,
    one_of,
    option,
    required,
    section_of_kind,
)
from spectralmoe_jax.config.pixel_statistics import STATISTICS, PixelStatistics, published_statistics
from spectralmoe_jax.config.presets import FAMILIES, GALILEO_GROUPS, KINDS, Family, preset
from spectralmoe_jax.errors import UserError, bad_value

WAVELENGTH_RANGE = (0.3, 15.0)  # micrometres: ultraviolet to thermal infrared
RADAR_RANGE = (1e4, 1e6)  # micrometres: 1 cm to 1 m
STORED_AS = {"unit": (1.0, 0.0), "x10000": (1e-4, 0.0), "x10000+1000": (1e-4, -0.1)}
"""Scale and offset of reflectance by the name of `config.model.visual.stored_as`; a sensor has its own."""
DEFAULT_MONTH = 6
"""Month of images whose month is not known."""
TOKEN_AREA_RANGE = (1e-3, 5.1e8)  # square kilometres that a token may have, up to the surface of the earth
UNTIED_NORMS = ("cls_norm", "local_cls_norm")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Section):
    """Architecture of an encoder, without its weights.

    Attributes:
      in_channels: number of input bands; 0 until they are known.
      band_names: names of the input bands. An encoder of named bands finds them by the names of its family;
        without names, it has the bands of its weights.
      channels: the encoder's own channel of each band, "" for none (galileo).
      generator_width: width inside the generator of the patch embedding.
      name: `visual` or `depth`.
    """

    kind: str = option("dinov3", "Family of the encoder.", one_of(*KINDS))
    width: int = option(1024, "Width of the tokens.", at_least(1))
    layers: int = option(24, "Number of transformer blocks.", between(1, 1000))
    heads: int = option(16, "Number of attention heads; must divide `width`.", at_least(1))
    patch_size: int = option(16, "Pixels along a patch's edge.", between(1, 16_384))
    mlp_ratio: float = option(
        4.0, "Hidden width of the feed-forward blocks as a multiple of `width`, rounded down."
    )
    mlp_width: int = option(0, "Hidden width of the feed-forward blocks; 0 to use `mlp_ratio`.", at_least(0))
    ffn: str = option(
        "mlp",
        "Feed-forward block; `swiglu` has gate and value side by side in one projection.",
        one_of("mlp", "swiglu"),
    )
    qkv_bias: bool = option(
        True, "Biases of the attention projections (in dinov3 and eva02, of queries and values only)."
    )
    storage_tokens: int = option(0, "Register tokens after the class token.", between(0, 10_000))
    table_size: int = option(
        32, "Side of the position table's grid; other grids are resampled from it.", between(1, 16_384)
    )
    table_antialias: bool = option(
        False, "Resample position tables with antialiasing, as DINOv2 with registers does."
    )
    rope_base: float = option(100.0, "Base of DINOv3's rotary positions.")
    norm_eps: float = option(1e-5, "Epsilon of every LayerNorm.")
    layer_scale: float = option(1e-5, "Initial LayerScale, in families that have it.")
    untied_norms: tuple[str, ...] = option(
        (), "Further final norms that come with the weights (DINOv3 7B and SAT).", each(one_of(*UNTIED_NORMS))
    )
    wavelengths: tuple[float, ...] = option(
        (),
        "Wavelength of each band in micrometres, for `dofa` and `copernicus_fm`. Empty: those stated in the "
        "files, or else those of the sensor.",
    )
    bandwidths: tuple[float, ...] = option(
        (),
        "Full width at half maximum of each band in micrometres, for `copernicus_fm`. Empty: those stated in "
        "the files, or else those of the sensor.",
    )
    location: tuple[float, float] | None = option(
        None, "Longitude and latitude of the images in degrees (copernicus_fm); none if unknown."
    )
    days: float | None = option(
        None, "Date of the images in days since 1 January 1970 (copernicus_fm); none if unknown."
    )
    eight_bit: bool = option(
        False,
        "Truncate normalised pixels to 256 levels, as in SoftCon's pretraining but not in its authors' later "
        "benchmark (softcon).",
    )
    extra_bands: str = option(
        "modulo",
        "Patch kernels of bands beyond those of the weights: `modulo` (band c takes channel c mod 3), `mean` "
        "of the channels, or `zero`.",
        one_of("modulo", "mean", "zero"),
    )
    window: int = option(14, "Side of an attention window in patches (sam, galileo).", at_least(1))
    window_overlap: int = option(
        0,
        "Patches by which windows overlap; features are averaged there (galileo).",
        at_least(0),
    )
    global_every: int = option(3, "Every n-th layer attends globally (sam).", at_least(1))
    neck_width: int = option(
        256, "Channels of the neck that comes with the weights; features do not use it (sam)."
    )
    normalise_maps: bool = option(
        False, "Apply the encoder's last norm to the feature maps that the head gets."
    )
    stored_as: str = option(
        "sensor",
        "How files store reflectance, which the encoder needs: with scale and offset of `config.sensor`, as "
        "`unit` (0 to 1), as `x10000`, or as `x10000+1000`, as Sentinel-2 products from 2022 on (galileo).",
        one_of("sensor", *STORED_AS),
    )
    month: int = option(
        0,
        "Month of the images, 1 to 12. 0: that of the acquisition in the source files' tags, or else June "
        "(galileo).",
        between(0, 12),
    )
    resolution: float = option(
        0.0,
        "Metres on the ground along a pixel's edge. 0: those of the source files, or else of "
        "`config.sensor` (galileo), or unknown (copernicus_fm).",
        at_least(0),
    )
    ndvi: bool = option(True, "Add the vegetation index as a group of its own (galileo).")
    trainable: bool = option(False, "Train the encoder's weights; by default they are frozen.")
    in_channels: int = derived(3)
    band_names: tuple[str, ...] = derived(())
    channels: tuple[str, ...] = derived(())
    generator_width: int = derived(128)
    name: str = derived("visual")

    @property
    def place(self) -> str:  # type: ignore[override]
        """The encoder's place in the configuration."""
        return f"config.model.{self.name}"

    def __post_init__(self) -> None:
        """Check constraints between fields."""
        super().__post_init__()
        self.require("heads", self.width % self.heads == 0, f"must divide width = {self.width}")
        if self.family.rope:
            must = f"must leave width / heads a multiple of 4 for rotary positions; width = {self.width}"
            self.require("heads", self.head_dim % 4 == 0, must)
        fits = self.has_norm or not self.normalise_maps
        self.require("normalise_maps", fits, f"must be False: {self.kind} has no last norm")
        if self.family.metadata:
            self._check_metadata()
        if self.family.bands and self.band_names:
            self._check_bands()
        if self.takes_wavelengths:
            self._check_wavelengths()
        elif self.kind == "sam":
            divides = self.global_every >= 2 and self.layers % self.global_every == 0
            must = f"must be at least 2 and divide the number of layers, {self.layers}"
            self.require("global_every", divides, must)
        elif self.kind == "galileo":
            self.require("patch_size", self.patch_size <= 8, "must be at most 8")
            self.require("width", self.width % 32 == 0, "must be a multiple of 32, for its encodings")
        fits = self.window_overlap < self.window and (not self.window_overlap or self.kind == "galileo")
        self.require(
            "window_overlap",
            fits,
            f"must be below window = {self.window}, and 0 for encoders other than galileo",
        )

    def _check_wavelengths(self) -> None:
        must = f"must be one wavelength for each of the {self.in_channels} bands, in micrometres"
        fits = not self.in_channels or len(self.wavelengths) == self.in_channels
        self.require("wavelengths", fits, must)
        (low, high), (short, long) = WAVELENGTH_RANGE, RADAR_RANGE
        radar = self.family.bandwidths
        inside = all(
            low <= wavelength <= high or (radar and short <= wavelength <= long)
            for wavelength in self.wavelengths
        )
        must = f"must be micrometres between {low} and {high}{', or of radar' * radar}"
        self.require("wavelengths", inside, f"{must} (0.49 for blue, not 490)")
        if self.family.bandwidths:
            self._check_bandwidths()

    def _check_bandwidths(self) -> None:
        must = f"must be one bandwidth for each of the {self.in_channels} bands, in micrometres"
        fits = not self.in_channels or len(self.bandwidths) == self.in_channels
        self.require("bandwidths", fits, must)
        # the stated bandwidth of a radar is no width of its band: Copernicus-FM has 1 m for Sentinel-1
        inside = all(
            0.001 <= width < centre or (centre >= RADAR_RANGE[0] and 0.001 <= width <= RADAR_RANGE[1])
            for centre, width in zip(self.wavelengths, self.bandwidths, strict=False)
        )
        must = "must be micrometres of at least 0.001, less than the wavelength (0.065 for blue, not 65)"
        self.require("bandwidths", inside, must)

    def _check_metadata(self) -> None:
        if self.location is not None:
            longitude, latitude = self.location
            must = "must be longitude, -180 to 180, and latitude, -90 to 90"
            self.require("location", abs(longitude) <= 180 and abs(latitude) <= 90, must)
        if self.token_area is not None:
            low, high = TOKEN_AREA_RANGE
            must = (
                f"must give patches of {low} to {high:g} square kilometres, with patch_size = "
                f"{self.patch_size}; 0 if unknown"
            )
            self.require("resolution", low <= self.token_area <= high, must)

    def _check_bands(self) -> None:
        family, names = self.family, self.band_names
        where = f"config.bands: {self.place}.kind = {self.kind!r}"
        takes = f"it takes {', '.join(family.bands)}, in any order"
        for band in family.bands:
            if band not in names and band not in family.absent_bands:
                may = f"only {' and '.join(family.absent_bands)} may be missing"
                raise UserError(f"{where} needs the band {band}; {takes}; {may}")
        for band in names:
            if band not in family.bands:
                raise UserError(f"{where} has no band {band}; {takes}")
            if names.count(band) > 1:
                raise UserError(f"{where} reads the band {band} once; {takes}")

    @property
    def family(self) -> Family:
        """Properties of the encoder's family."""
        return FAMILIES.get(self.kind, Family())

    @property
    def takes_wavelengths(self) -> bool:
        """True if the patch embedding is generated from the bands' wavelengths."""
        return self.family.wavelengths

    @property
    def token_area(self) -> float | None:
        """Ground area of a patch in square kilometres; None if the resolution is not known."""
        return (self.patch_size * self.resolution / 1000) ** 2 if self.resolution else None

    @property
    def kernel_bands(self) -> int:
        """Number of bands of the patch kernel, which may be more than the images have."""
        return len(self.family.bands) if self.family.bands and self.band_names else self.in_channels

    @property
    def kernel_places(self) -> tuple[int, ...]:
        """Place in the patch kernel of each band of the images."""
        if self.family.bands and self.band_names:
            return tuple(self.family.bands.index(name) for name in self.band_names)
        return tuple(range(self.in_channels))

    @property
    def has_norm(self) -> bool:
        """True if the encoder's weights hold a norm after the last layer."""
        return self.kind != "sam" and self.family.final_norm

    @property
    def converts_stored_values(self) -> bool:
        """True if the encoder brings stored values to a scale of its own, and refuses what cannot be."""
        return self.kind == "galileo"

    @property
    def takes_acquisition(self) -> bool:
        """True if the encoder reads the month and the ground resolution of the images."""
        return self.kind == "galileo"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward blocks."""
        return self.mlp_width or int(self.width * self.mlp_ratio)

    @property
    def prefix_tokens(self) -> int:
        """Number of class and storage tokens, which precede the patch tokens."""
        return 0 if self.kind in ("sam", "galileo") else 1 + self.storage_tokens

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of channels that the bands fill, each with a token of its own in every place (galileo)."""
        found = [group for group, needed in GALILEO_GROUPS.items() if set(needed) <= set(self.channels)]
        return tuple(group for group in found if self.ndvi or group != "NDVI")

    @property
    def tokens_per_place(self) -> int:
        """Number of patch tokens of each place: one but for encoders with groups of channels."""
        return len(self.groups) if self.kind == "galileo" else 1


@dataclasses.dataclass(frozen=True)
class VisualConfig(EncoderConfig):
    """`config.model.visual`: the encoder of all bands."""

    preset: str | None = option(
        None, "Published encoder whose sizes are used; a key that is set takes precedence over the preset."
    )
    weights: str | None = option(
        None, "Pretrained weights: a file, a Hugging Face folder or hf://owner/name; none for random ones."
    )

    in_channels: int = derived(0)

    @classmethod
    def completed(cls, given: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Return the section with the preset's sizes filled in."""
        named = given.get("preset")
        return given if named is None else {**preset(named, f"{place}.preset"), **given}

    def encoder(self, bands: tuple[str, ...], **changes: Any) -> EncoderConfig:
        """Return the encoder for these bands.

        Args:
          bands: names of its input bands.
          changes: other fields to replace.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(EncoderConfig)}
        return EncoderConfig(**{**fields, **changes, "in_channels": len(bands), "band_names": bands})


@dataclasses.dataclass(frozen=True)
class DepthConfig(VisualConfig):
    """`config.model.depth`: the encoder of the depth modality, on three of the bands."""

    bands: tuple[str, ...] | None = option(
        None, "The three bands that the encoder sees; none for red, green and blue."
    )
    name: str = derived("depth")


class HeadSection(Section):
    """Base class of the sections `config.model.head`.

    Attributes:
      kind: value of the section's key `kind`.
      whole_tokens: whether the head reads the prefix tokens beside the maps, and both after the encoder's
        last norm.
    """

    place: ClassVar[str] = "config.model.head"
    kind: ClassVar[str]
    whole_tokens: ClassVar[bool] = False


LEVELS = 3  # feature levels that the deformable encoder and the mask decoder attend to


@dataclasses.dataclass(frozen=True)
class Mask2FormerConfig(HeadSection):
    """The Mask2Former head; the defaults are the published ones (arXiv 2112.01527).

    Attributes:
      num_classes: classes without the "no object" one.
    """

    kind: ClassVar[str] = "mask2former"

    num_queries: int = option(100, "Queries Q; equal to the adapter's `num_tokens`.", between(1, 10_000))
    width: int = option(
        256, "Width of every feature and query inside the head, a multiple of 4.", at_least(1)
    )
    num_heads: int = option(8, "Heads of every attention layer; must divide `width`.", at_least(1))
    encoder_layers: int = option(6, "Layers of the deformable encoder.", between(1, 1000))
    decoder_layers: int = option(9, "Layers of the mask decoder.", between(1, 1000))
    encoder_ffn: int = option(1024, "Hidden width of the encoder's feed-forward blocks.", at_least(1))
    decoder_ffn: int = option(2048, "Hidden width of the decoder's feed-forward blocks.", at_least(1))
    points: int = option(
        4, "Sampling points per head and level of the deformable attention.", between(1, 100)
    )
    group_norm_groups: int = option(
        32, "Groups of every group normalisation; must divide `width`.", at_least(1)
    )
    scales: tuple[float, ...] = option(
        (4.0, 2.0, 1.0, 0.5),
        "Factors by which the four feature maps are resized, finest first.",
        each(above(0)),
    )
    num_classes: int = derived(1)

    def __post_init__(self) -> None:
        """Check constraints between fields."""
        super().__post_init__()
        self.require("width", self.width % 4 == 0, "must be a multiple of 4, for sine and cosine of x and y")
        for key in ("num_heads", "group_norm_groups"):
            must = f"must divide {self.place}.width = {self.width}"
            self.require(key, self.width % getattr(self, key) == 0, must)
        must = f"must be {LEVELS + 1} positive numbers, finest level first"
        self.require("scales", len(self.scales) == LEVELS + 1, must)


@dataclasses.dataclass(frozen=True)
class LinearHeadConfig(HeadSection):
    """A linear classifier of every patch.

    Attributes:
      num_classes: classes of the pixels.
    """

    kind: ClassVar[str] = "linear"

    labels: str = option(
        "pixels",
        "What the head learns: the class of `pixels`, with logits resized to them, or that of `patches`, the "
        "most frequent among their labelled pixels, as in `spectralmoe probe`.",
        one_of("pixels", "patches"),
    )
    num_classes: int = derived(1)


@dataclasses.dataclass(frozen=True)
class PlainDecoderConfig(HeadSection):
    """The plain mask decoder (PMT, arXiv 2603.25398); the defaults are those published for ADE20K.

    Width, attention heads and rotary positions are those of the visual encoder.

    Attributes:
      num_classes: classes without the "no object" one.
    """

    kind: ClassVar[str] = "pmt"
    whole_tokens: ClassVar[bool] = True

    num_queries: int = option(100, "Learned queries Q.", between(1, 10_000))
    blocks: int = option(6, "Blocks of joint self-attention over queries and tokens.", between(1, 1000))
    mlp_ratio: float = option(
        1.0, "Hidden width of the feed-forward blocks as a multiple of the encoder's, rounded down.", above(0)
    )
    momentum: float = option(
        0.1, "Share of the batch in each update of the running statistics.", between(0, 1)
    )
    mask_starts: tuple[float, ...] = option(
        (0.0, 0.2667, 0.3667, 0.4667, 0.5667, 0.6667),
        "Share of the training after which the probability of masked attention falls from 1, for each block.",
        each(between(0, 1)),
    )
    mask_ends: tuple[float, ...] = option(
        (0.1486, 0.4333, 0.5333, 0.6333, 0.7333, 0.8333),
        "Share of the training from which on the probability is 0, for each block.",
        each(between(0, 1)),
    )
    mask_power: float = option(
        0.9, "Power of the fall: the probability is (1 - share between start and end) ** power.", above(0)
    )
    num_classes: int = derived(1)

    def __post_init__(self) -> None:
        """Check constraints between fields."""
        super().__post_init__()
        for key in ("mask_starts", "mask_ends"):
            must = f"must have a share for each of the {self.blocks} blocks of {self.place}.blocks"
            self.require(key, len(getattr(self, key)) == self.blocks, must)
        falls = all(start < end for start, end in zip(self.mask_starts, self.mask_ends, strict=True))
        self.require("mask_ends", falls, f"must lie above {self.place}.mask_starts = {self.mask_starts}")


HEADS: dict[str, type[HeadSection]] = {
    section.kind: section for section in (Mask2FormerConfig, LinearHeadConfig, PlainDecoderConfig)
}
"""Section class of every head by kind; the first kind is the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """`config.model`: encoders, adapter and head."""

    place: ClassVar[str] = "config.model"

    weights: str | tuple[str, ...] | None = option(
        None,
        "Weights of a segmenter or of parts of one; several files separated by commas, such as a backbone "
        "and the checkpoint trained on it.",
    )
    weights_head: str = option(
        "same",
        "`new` loads all of `weights` but what depends on the classes, which starts random, to train on "
        "another set of classes or bands. Pixel statistics are then those of the configuration.",
        one_of("same", "new"),
    )
    dtype: str = option(
        "bfloat16",
        "Data type of the computation. Parameters are float32, or float64 with `float64`.",
        one_of("bfloat16", "float32", "float64"),
    )
    remat: str = option(
        "none",
        "What the backward pass recomputes to save memory: nothing, visual block and adapter (`layer`), "
        "or the depth block too (`full`).",
        one_of("none", "layer", "full"),
    )
    pixel_mean: tuple[float, ...] = option(
        (),
        "Mean of each band, in raw pixel units; required unless `pixel_statistics` is given or the encoder, "
        "galileo, has its own.",
    )
    pixel_std: tuple[float, ...] = option((), "Standard deviation of each band, likewise.")
    pixel_statistics: str | None = option(
        None,
        "Published statistics of Sentinel-2 in digital numbers, found by the names of the bands, in place of "
        "`pixel_mean` and `pixel_std`.",
        one_of(*STATISTICS),
    )
    out_layers: tuple[int, ...] = required(
        "Layers whose features go to the head, numbered from 0, finest map first; four for Mask2Former, any "
        "number for the others."
    )
    visual: VisualConfig = required("The visual encoder.")
    depth: DepthConfig | None = option(None, "The depth encoder; none if the depth modality is off.")
    adapter: Any = section_of_kind(
        ADAPTERS, "The adapter; `kind` is one of these, or your own as module:Class or file.py:Class.",
        OwnAdapterConfig,
    )  # fmt: skip
    head: Any = section_of_kind(HEADS, "The segmentation head.")

    def __post_init__(self) -> None:
        """Check that statistics are not given twice."""
        super().__post_init__()
        must = "give it or pixel_mean and pixel_std, not both; () unsets those two"
        twice = self.pixel_statistics is not None and (self.pixel_mean or self.pixel_std)
        self.require("pixel_statistics", not twice, must)

    def statistics(
        self, bands: Sequence[str], stored: tuple[float | None, float] = (None, 0.0)
    ) -> PixelStatistics:
        """Return the statistics that normalise the pixels, given or published.

        For galileo they turn stored values into reflectance; its own statistics follow in the encoder.

        Args:
          bands: names of the bands; for published statistics, those of Sentinel-2's files.
          stored: scale and offset of reflectance in the sensor's files; no scale if it is not known.

        Raises:
          UserError: the statistics are missing, or published ones lack a band; or they are given beside
            galileo's, or it is not known how reflectance is stored.
        """
        if self.visual.kind == "galileo":
            return self._to_reflectance(len(bands), stored)
        if self.pixel_statistics is not None:
            return published_statistics(self.pixel_statistics, bands)
        for key in ("pixel_mean", "pixel_std"):
            if not getattr(self, key):
                raise UserError(f"{self.place}.{key} is missing: give one value for each band")
        return PixelStatistics(self.pixel_mean, self.pixel_std)

    def _to_reflectance(self, bands: int, of_sensor: tuple[float | None, float]) -> PixelStatistics:
        """Return the statistics that turn stored values into reflectance."""
        if self.pixel_mean or self.pixel_std or self.pixel_statistics:
            raise UserError(
                f"{self.place}.pixel_mean, pixel_std and pixel_statistics: galileo has its own statistics: "
                f"leave them out, and say how files store reflectance with {self.place}.visual.stored_as"
            )
        scale, offset = STORED_AS.get(self.visual.stored_as, of_sensor)
        if scale is None:
            must = f"say how files store reflectance, which config.sensor does not: {', '.join(STORED_AS)}"
            raise bad_value(f"{self.place}.visual.stored_as", self.visual.stored_as, must)
        return PixelStatistics((-offset / scale,) * bands, (1 / scale,) * bands)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Every file or repository that weights are read from, in the order in which they are read."""
        given = (self.weights, self.visual.weights, self.depth.weights if self.depth else None)
        return tuple(spec for some in given if some for spec in split_files(some))


def split_files(weights: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the files that a key `weights` names, given as a tuple or separated by commas."""
    if not weights:
        return ()
    return tuple(spec.strip() for spec in (weights.split(",") if isinstance(weights, str) else weights))
