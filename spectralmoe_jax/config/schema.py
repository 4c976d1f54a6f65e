"""Sections of a configuration: each key with its type, default, meaning and allowed values.

Every default is defined exactly once: here, or in `model.py` and `adapters.py`, which have `config.model` and
the sections below it. `docs/configuration.md` is generated from all three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

from spectralmoe_jax.config.fields import (
    Section,
    above,
    at_least,
    between,
    build,
    checked,
    each,
    inside,
    one_of,
    one_of_or_own,
    option,
    required,
    subsection,
    unread_keys,
)
from spectralmoe_jax.config.model import ModelConfig
from spectralmoe_jax.errors import UserError, bad_value

_FILES = ("image_folder", "geotiff")  # kinds of data that read files as they are
MAIN = "main"
"""Name of the stream that a run's own `data` section describes."""
BALANCED = "balanced"
"""Value of `config.loss.class_weights` for weights that follow from the numbers of pixels."""


@dataclasses.dataclass(frozen=True)
class ClassesConfig(Section):
    """`config.classes`: the classes of the segmentation."""

    place: ClassVar[str] = "config.classes"
    tolerant: ClassVar[bool] = True

    names: tuple[str, ...] = required("Names of the classes, in the order of their numbers.")
    palette: tuple[tuple[int, int, int], ...] | None = option(
        None, "Red, green and blue (0 to 255) of each class, for maps and for colour-coded labels."
    )

    def __post_init__(self) -> None:
        """Check that files can hold the names, and that a palette has one colour for each class."""
        super().__post_init__()
        for number, name in enumerate(self.names):
            if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
                must = "must be text that a file can hold: no character NUL, and none that is no UTF-8"
                raise bad_value(f"{self.place}.names[{number}]", name, must)
        if self.palette is not None and len(self.palette) != len(self.names):
            raise UserError(
                f"{self.place}.palette has {len(self.palette)} colours for {len(self.names)} "
                f"{self.place}.names: give each class one"
            )

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """The palette, for callers that require one.

        Raises:
          UserError: the configuration gives no palette.
        """
        if self.palette is None:
            raise UserError(f"{self.place}.palette is missing: give each class a colour")
        return self.palette


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """`config.data`: where images and labels are, and which are for training, held out, or the target."""

    place: ClassVar[str] = "config.data"
    tolerant: ClassVar[bool] = True

    kind: str = required(
        "Kind of the data: `image_folder` and `geotiff` read files as they are, `prepared` reads tiles that "
        "`spectralmoe prepare` wrote, `synthetic` generates scenes; or the import path of a function that "
        "opens your own data.",
        one_of_or_own("image_folder", "geotiff", "prepared", "synthetic"),
    )
    root: str | None = option(
        None,
        "Folder of the data; required by every built-in kind but `synthetic`.",
        read_by=(*_FILES, "prepared"),
    )
    source: tuple[str, ...] = required("Domains (folders, places, splits) to train on.")
    target: tuple[str, ...] = required("Domains to test on, never seen in training.")
    crop: int = required(
        "Side of a training tile in pixels, a multiple of `model.visual.patch_size`.", between(1, 16_384)
    )
    holdout: float = option(
        0.0, "Share of each source domain that is held out to choose the best checkpoint."
    )
    holdout_domains: tuple[str, ...] | None = option(None, "Whole domains to hold out instead of a share.")
    holdout_seed: int = option(0, "Seed of the choice of held-out images.")
    image_glob: str | None = option(
        None,
        "Pattern of the images below `root`; `{domain}` stands for the domain. "
        "`root` and images may be addresses that GDAL opens.",
        read_by=_FILES,
    )
    mask_template: str | None = option(
        None,
        "Path of an image's labels below `root`, as in `{domain}/masks/{stem}.png`.",
        read_by=_FILES,
    )
    file_bands: tuple[str, ...] | None = option(
        None, "Names of the files' channels in their order, if the files do not state them."
    )
    sensors: tuple[str, ...] | None = option(
        None,
        "Sensors of single domains as DOMAIN=SENSOR, or as a section; all others use `sensor`.",
        read_by=("geotiff",),
    )
    label_values: tuple | None = option(
        None,
        "Stored value, or values, of each class; none for labels of colours or of the classes' numbers.",
        read_by=_FILES,
    )
    ignore_values: tuple = option((), "Stored label values that mean 'no label'.", read_by=_FILES)
    ignore_colours: tuple = option((), "Colours in the labels that mean 'no label'.", read_by=_FILES)
    label_attribute: str | None = option(
        None, "Attribute that gives the class, if the labels are polygons.", read_by=("geotiff",)
    )
    label_layer: str = option("", "Layer of the polygons; empty for the first one.", read_by=("geotiff",))
    tile: int | None = option(
        None, "Side of the windows that large images are cut into.", read_by=("geotiff",)
    )
    benchmark: str | None = option(None, "Name of the published data set.", read_by=("prepared",))
    weights: tuple[float, ...] | None = option(
        None, "Share of each source domain in the batches; none for shares by area."
    )
    class_temperature: float | None = option(
        None,
        "Draw tiles by class: the lower the value, the more often rare classes are drawn; none for off.",
        above(0),
    )
    min_labelled: float = option(
        0.0, "Smallest share of labelled pixels that an image must have to be trained on.", between(0, 1)
    )
    corrupt: str = option("stop", "What to do with a file that cannot be read.", one_of("stop", "skip"))
    check_values: str = option(
        "stop",
        "What to do with images of another stored type, range of values, or scale and offset than those of "
        "the training: `stop` refuses what cannot be right and warns of the rest, `warn` warns, `off` "
        "does not look.",
        one_of("stop", "warn", "off"),
    )
    workers: int = option(0, "Processes that prepare batches; 0 for the main one.", between(0, 1024))
    # decoding releases the interpreter lock; where transforms are heavy, more threads only wait for it
    threads: int = option(2, "Threads that prepare batches, in each process.", between(1, 1024))
    cache_bytes: int = option(
        512 << 20, "Memory for decoded images and labels, in each process.", read_by=_FILES
    )
    scenes_source: int = option(
        24, "Generated scenes of each source domain.", between(1, 100_000), read_by=("synthetic",)
    )
    scenes_target: int = option(
        8, "Generated scenes of each target domain.", between(1, 100_000), read_by=("synthetic",)
    )
    scene_size: int = option(256, "Side of a generated scene in pixels.", read_by=("synthetic",))
    scene_seed: int = option(0, "Seed of the generated scenes.", read_by=("synthetic",))

    @classmethod
    def completed(cls, given: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Return the section with `sensors` as a tuple of DOMAIN=SENSOR if it is given as a section."""
        sensors = given.get("sensors")
        if not isinstance(sensors, Mapping):
            return given
        return {**given, "sensors": tuple(f"{domain}={sensor}" for domain, sensor in sensors.items())}

    def needs(self, name: str) -> Any:
        """Return a value that data of this kind requires.

        Raises:
          UserError: the value is not given.
        """
        value = getattr(self, name)
        if value is None:
            raise UserError(f"{self.place}.{name} is missing: {self.place}.kind = {self.kind!r} needs it")
        return value


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Section):
    """`config.augment`: random changes of training tiles; the defaults are the paper's for RGB."""

    place: ClassVar[str] = "config.augment"

    scale: tuple[float, float] = option((0.5, 2.0), "Smallest and largest factor of the random resizing.")
    scale_step: float = option(0.1, "Step between the factors.", above(0))
    max_edge: int = option(1024, "Largest side of a resized image in pixels.", at_least(1))
    max_class_share: float = option(
        0.75, "Largest share of one class in a crop; another crop is tried if it is exceeded."
    )
    flip: float = option(0.5, "Probability of a horizontal flip.", between(0, 1))
    vertical_flip: float = option(0.0, "Probability of a vertical flip.", between(0, 1))
    turns: bool = option(False, "Turn tiles by random multiples of 90 degrees.")
    photometric: bool = option(
        False, "Photometric distortion of the red, green and blue bands; designed for 8-bit images."
    )
    gain: float = option(0.0, "Largest relative change of each band's gain, below 1.")
    offset: float = option(0.0, "Largest offset of each band, in standard deviations.", at_least(0))
    drop_bands: float = option(0.0, "Probability of dropping each band.", between(0, 1))
    tilt: float = option(0.0, "Largest relative change of gain from the first band to the last, below 1.")
    crop_on_labels: float = option(
        0.0,
        "Probability that a crop is placed over a labelled pixel, drawn uniformly from those of the training "
        "images; for sparse labels. Crops of `data.class_temperature` are placed over labels in any case.",
        between(0, 1),
    )

    def __post_init__(self) -> None:
        """Check ranges that a single bound cannot express."""
        super().__post_init__()
        self.require("scale", 0 < self.scale[0] <= self.scale[1], "must be (low, high) with 0 < low <= high")
        self.require("max_class_share", 0 < self.max_class_share <= 1, "must be above 0 and at most 1")
        for name in ("gain", "tilt"):
            self.require(name, 0 <= getattr(self, name) < 1, "must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """`config.loss`: the segmentation loss; the defaults are Mask2Former's (arXiv 2112.01527)."""

    place: ClassVar[str] = "config.loss"

    class_weight: float = option(
        2.0, "Weight of the class term, in the loss and in the matching.", at_least(0)
    )
    mask_weight: float = option(5.0, "Weight of the mask term, in the loss and in the matching.", at_least(0))
    dice_weight: float = option(5.0, "Weight of the dice term, in the loss and in the matching.", at_least(0))
    no_object_weight: float = option(
        0.1, "Weight of queries without a target in the class term.", at_least(0)
    )
    num_points: int = option(
        12544,
        "Points P sampled for each mask in the loss, and for each image in the matching.",
        between(1, 1_000_000),
    )
    oversample_ratio: float = option(
        3.0, "Candidate points drawn for every point used in the loss.", between(1, 1000)
    )
    importance_sample_ratio: float = option(
        0.75,
        "Share of the points taken where the prediction is least certain; the rest is uniform.",
        between(0, 1),
    )
    unlabelled: str = option(
        "negative",
        "Pixels without a label: `excluded` from matching and loss, or `negative`, examples of no class, as "
        "in the published method. Both are the same where every pixel is labelled. For the linear head they "
        "are always excluded.",
        one_of("excluded", "negative"),
    )
    class_weights: str | tuple[float, ...] | None = option(
        None,
        "Weight of each class: of its pixels or patches in the cross-entropy of the linear head, of its "
        "queries and masks in Mask2Former. `balanced` for N / (K n) with n of all N labelled training pixels "
        "in the class, and K classes; none for equal weights.",
    )

    def __post_init__(self) -> None:
        """Check the weights of the classes."""
        super().__post_init__()
        given = self.class_weights
        holds = given in (None, BALANCED) if not isinstance(given, tuple) else all(w > 0 for w in given)
        self.require("class_weights", holds, f"must be {BALANCED}, none, or a number above 0 for each class")

    @property
    def excludes_unlabelled(self) -> bool:
        """True if pixels without a label take no part in matching and loss."""
        return self.unlabelled == "excluded"

    def balanced(self, pixels: Sequence[int]) -> LossConfig:
        """Return a copy with the weights N / (K n) of every class in place of `balanced`.

        A class of n pixels then has n N / (K n) = N / K in all, the same as any other. A class without a
        pixel gets 1 and does not count among the K.

        Args:
          pixels: labelled training pixels n of each class; their sum is N.
        """
        classes = sum(count > 0 for count in pixels)
        total = float(sum(pixels))
        weights = tuple(total / (classes * float(count)) if count else 1.0 for count in pixels)
        return dataclasses.replace(self, class_weights=weights)

    @property
    def weight_of_each_class(self) -> tuple[float, ...] | None:
        """The weights as numbers; None for equal ones.

        Raises:
          ValueError: they are still to be computed, by `balanced`.
        """
        if isinstance(self.class_weights, str):
            raise ValueError("class weights that are balanced have to be computed: call LossConfig.balanced")
        return self.class_weights

    @property
    def candidates(self) -> int:
        """Candidate points drawn for each mask, of which the least certain are kept."""
        return int(self.num_points * self.oversample_ratio)

    @property
    def uncertain_points(self) -> int:
        """Points of each mask that are selected by uncertainty; the others are uniform."""
        return int(self.num_points * self.importance_sample_ratio)


Rule = tuple[str, float, float]
"""Regular expression over parameter names, factor of the weight decay, factor of the learning rate."""

DEFAULT_RULES: tuple[Rule, ...] = (
    (r"norm|/gn/", 0.0, 1.0),
    (r"query_feat$|query_embed$|level_embed$|level_encoding$", 0.0, 1.0),
    (r"adapter/(experts_[ab]|w_gate|w_noise|scale)$", 0.0, 1.0),
    # encoders that are trained because they have no pretrained weights; not a published setting
    (r"visual/.*(token|tokens|position_table|rel_[hw]|scale\d)$", 0.0, 1.0),
    (r"(^|/|_)(kernel|bias)$", 1.0, 1.0),
    # tokens, prompts and scales of other adapters; their own `optimizer_rules` take precedence
    (r"^backbone/adapter/", 0.0, 1.0),
)


@dataclasses.dataclass(frozen=True)
class PartRates(Section):
    """`config.train.lr_factors`: factors on the learning rate by part of the model.

    They multiply the factors of `train.rules` and of an adapter's own rules. 0 leaves a part as it starts.
    """

    place: ClassVar[str] = "config.train.lr_factors"

    visual: float = option(
        1.0,
        "Weights of the visual encoder that are trained, also those that an adapter (full, bitfit) chooses.",
        at_least(0),
    )
    adapter: float = option(1.0, "The adapter's own parameters.", at_least(0))
    head: float = option(1.0, "The segmentation head.", at_least(0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """`config.train`: AdamW, its schedule, and intervals in steps."""

    place: ClassVar[str] = "config.train"

    steps: int = required(
        "Number of training steps, at the end of which a decaying learning rate reaches 0.", at_least(1)
    )
    batch_size: int = option(8, "Images that go through the model at once, over all hosts.", at_least(1))
    accumulate: int = option(
        1,
        "Batches of `batch_size` images in one step, one after the other: the step's gradient is the mean of "
        "theirs. `steps` and all intervals count steps.",
        at_least(1),
    )
    ema: float | None = option(
        None,
        "Decay of an exponential moving average of the trained weights, such as 0.999. The average is what "
        "is evaluated, chosen as the best, loaded and converted; none for off.",
        inside(0, 1),
    )
    learning_rate: float = option(1e-4, "Learning rate after the warm-up.", above(0))
    warmup_steps: int = option(
        0, "Steps over which the learning rate rises linearly from 0; they count as part of `steps`."
    )
    schedule: str = option(
        "poly",
        "Learning rate after the warm-up: polynomial decay, half a cosine, or no decay.",
        one_of("poly", "cosine", "constant"),
    )
    power: float = option(0.9, "Power of the polynomial decay that follows the warm-up.")
    weight_decay: float = option(0.05, "Decoupled weight decay.", at_least(0))
    betas: tuple[float, float] = option((0.9, 0.999), "Decay rates of AdamW's two moments.")
    eps: float = option(1e-8, "AdamW's epsilon.", above(0))
    clip_norm: float | None = option(
        None, "Bound on the global gradient norm, applied before AdamW; none for no bound.", above(0)
    )
    rules: tuple[Rule, ...] = option(
        DEFAULT_RULES,
        "Parameter groups: (regular expression, factor on the weight decay, factor on the learning rate); "
        "the first expression found in a parameter's name applies, and every parameter must match one.",
    )
    lr_factors: PartRates = subsection(PartRates, "Factors on the learning rate by part of the model.")
    head_first_steps: int = option(
        0,
        "Steps in which the head alone is trained. The learning rate of all else then rises linearly over as "
        "many steps.",
    )
    head_start: str = option(
        "random",
        "What the head starts from: `random` weights, or, for the linear head, `probe`: the minimum of its "
        "loss on the features of the model as it starts.",
        one_of("random", "probe"),
    )
    probe_tiles: int = option(64, "Training tiles that the probe is fitted to, rounded up to whole batches.",
                              at_least(1))  # fmt: skip
    probe_penalty: float = option(
        1e-3,
        "Half of it times the squared weights for standardised features is added to the probe's loss.",
        above(0),
    )
    patience: int | None = option(
        None,
        "Evaluations in a row without a better held-out score after which the run is complete; none for off.",
        at_least(1),
    )
    selection: str = option(
        "miou",
        "Held-out score that chooses the best checkpoint and that `patience` follows: `miou` over all images "
        "of the run's own stream, or `mean_miou`, the mean over the domains of all streams.",
        one_of("miou", "mean_miou"),
    )
    trackers: tuple[str, ...] = option(
        (),
        "Where metrics go beside `metrics.jsonl` and TensorBoard: `wandb` (Weights & Biases), `mlflow`, or "
        "both.",
        each(one_of("wandb", "mlflow")),
    )
    log_every: int = option(50, "Steps between two log entries.", at_least(1))
    evaluate_every: int = option(1000, "Steps between two evaluations on the held-out images.", at_least(1))
    checkpoint_every: int = option(500, "Steps between two checkpoints.", at_least(1))

    def __post_init__(self) -> None:
        """Check ranges that a single bound cannot express."""
        super().__post_init__()
        self.require("betas", all(0 <= beta < 1 for beta in self.betas), "must lie in [0, 1)")
        must = f"must be between 0 and {self.steps - 1}, below {self.place}.steps"
        for name in ("warmup_steps", "head_first_steps"):
            self.require(name, 0 <= getattr(self, name) < self.steps, must)

    @property
    def images_per_step(self) -> int:
        """Images that one step learns from, over all hosts."""
        return self.batch_size * self.accumulate


TTA = ("none", "flips", "d4", "multiscale", "released")
"""Kinds of test-time augmentation."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """`config.evaluate`: sliding windows over images of any size."""

    place: ClassVar[str] = "config.evaluate"

    window: int = required(
        "Side of a window in pixels, a multiple of `model.visual.patch_size`.", between(1, 16_384)
    )
    overlap: int = required("Overlap of a window with the next in pixels, below `window`.")
    batch_size: int = option(8, "Windows that go through the model at once.", at_least(1))
    tta: str = option(
        "none",
        "In `evaluate` and `predict`, average the scores of a window over copies: `flips` (4), all 8 flips "
        "and turns (`d4`), 6 sizes (`multiscale`), or 6 sizes with their mirror images, as the released "
        "code's `--tta` (`released`).",
        one_of(*TTA),
    )

    def __post_init__(self) -> None:
        """Check that windows advance."""
        super().__post_init__()
        must = f"must be at least 0 and below window = {self.window}"
        self.require("overlap", 0 <= self.overlap < self.window, must)


MESH_AXES = ("data", "fsdp", "expert")
MeshRule = tuple[str, str | tuple[str, ...] | None]
"""Logical axis, and the mesh axes that it is sharded over."""

# `parallel` names the logical axes of parameters; `batch` is the axis of images and tokens.
RULES: tuple[MeshRule, ...] = (
    ("batch", ("data", "fsdp")),
    ("expert", "expert"),  # experts and their gates, the optimizer state of both, and their activations
    ("embed", "fsdp"),  # width of the encoders' weights, gathered layer by layer
)


@dataclasses.dataclass(frozen=True)
class ParallelConfig(Section):
    """`config.parallel`: the device mesh; at most one axis is -1, for all remaining devices."""

    place: ClassVar[str] = "config.parallel"

    data: int = option(-1, "Devices along the data axis, over which images are sharded.")
    fsdp: int = option(1, "Devices over which images and the encoders' weights are sharded.")
    expert: int = option(1, "Devices over which experts are sharded; must divide the number of experts.")
    rules: tuple[tuple, ...] | None = option(
        None,
        "Sharding rules: (logical axis, and one mesh axis, several, or none); a logical axis without a rule "
        "is not sharded. None for the default rules.",
    )

    def __post_init__(self) -> None:
        """Check sizes and rules."""
        super().__post_init__()
        for axis in MESH_AXES:
            size = getattr(self, axis)
            self.require(axis, size == -1 or size > 0, "must be at least 1, or -1 for all devices left")
        open_axes = [axis for axis in MESH_AXES if getattr(self, axis) == -1]
        if len(open_axes) > 1:
            raise UserError(f"{self.place}: {' and '.join(open_axes)} are -1; at most one may be")
        for rule in self.rules or ():
            if len(rule) != 2:
                raise bad_value(f"{self.place}.rules", rule, "must be a pair (logical axis, mesh axis)")
            for axis in axes_of(rule[1]):
                if axis not in MESH_AXES:
                    key = f"{self.place}.rules, {rule[0]}"
                    raise bad_value(key, axis, f"must be {one_of(*MESH_AXES).words}")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """Return the number of devices along data, fsdp and expert.

        Args:
          devices: number of devices.

        Raises:
          UserError: the mesh does not use all devices.
        """
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        known = 1
        for size in sizes:
            known *= max(size, 1)
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
            known = devices
        if known != devices:
            given = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
            raise UserError(
                f"{self.place}: {given} does not divide {devices} devices: the product of the three has "
                f"to be {devices}; one of them may be -1"
            )
        return sizes[0], sizes[1], sizes[2]

    def fitted(self, devices: int) -> ParallelConfig:
        """Return this mesh if it fits the number of devices, else one with all devices along data.

        A trained model may be used on another number of devices than it was trained on.
        """
        try:
            self.shape(devices)
        except UserError:
            return dataclasses.replace(self, data=-1, fsdp=1, expert=1)
        return self


def axes_of(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes on the right-hand side of a rule as a tuple."""
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


@dataclasses.dataclass(frozen=True)
class StatedWavelengths(Section):
    """`config.stated_wavelengths`: wavelengths stated in the files of a run, recorded by the training itself.

    The section names the bands and the sensor that it applies to, so that a run whose bands or sensor are
    overridden later does not use it by mistake.
    """

    place: ClassVar[str] = "config.stated_wavelengths"

    bands: tuple[str, ...] = required("The bands for which the files stated wavelengths.")
    micrometres: tuple[float, ...] = required("Their wavelengths in micrometres.")
    sensor: str | None = option(None, "The sensor to which they apply.")
    bandwidths: tuple[float, ...] = option(
        (), "Their bandwidths in micrometres, if the files state these and the encoder takes them."
    )


@dataclasses.dataclass(frozen=True)
class StatedAcquisition(Section):
    """`config.stated_acquisition`: month and resolution of a run's files, recorded by the training itself.

    As `config.stated_wavelengths`, the section names the bands and the sensor that it applies to.
    """

    place: ClassVar[str] = "config.stated_acquisition"

    bands: tuple[str, ...] = required("The bands of the files.")
    sensor: str | None = option(None, "The sensor of the files.")
    month: int | None = option(None, "Most frequent month of the acquisitions, 1 to 12.", between(1, 12))
    resolution: float | None = option(None, "Metres on the ground along a pixel's edge.", above(0))


@dataclasses.dataclass(frozen=True)
class StatedValues(Section):
    """`config.stated_values`: how a run's images store their values, recorded by the training itself.

    As `config.stated_wavelengths`, the section names the bands and the sensor that it applies to.
    """

    place: ClassVar[str] = "config.stated_values"

    bands: tuple[str, ...] = required("The bands of the images.")
    dtype: str = required("Type of the pixels: uint8, uint16, int16 or float32.")
    low: float = required("First percentile of the values, over all bands of a few images.")
    high: float = required("99th percentile of the values.")
    sensor: str | None = option(None, "The sensor of the images.")
    scales: tuple[float, ...] = option((), "Scale that the files state for each band; none for no tag.")
    offsets: tuple[float, ...] = option((), "Offset that the files state for each band; none for no tag.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """A complete configuration, read once, with every default filled in.

    Attributes:
      given: what the user wrote, as nested dictionaries; stored with a run and compared on resuming.
    """

    tolerant: ClassVar[bool] = True

    name: str = option("run", "Name of the run, used in titles and file names.")
    seed: int = option(0, "Seed of initial weights, data order and augmentation.", between(0, 2**32 - 1))
    bands: tuple[str, ...] = required(
        "Names of the images' bands, in the order in which the model gets them."
    )
    sensor: str | None = option(
        None,
        "Sensor of the images: supplies the names by which bands are found in files, and their wavelengths.",
    )
    classes: ClassesConfig = required("The classes.")
    data: DataConfig = required("Images and labels.")
    augment: AugmentConfig = subsection(AugmentConfig, "Random changes of training tiles.")
    model: ModelConfig = required("Encoders, adapter and head.")
    loss: LossConfig = subsection(LossConfig, "The segmentation loss.")
    train: TrainConfig = required("Optimizer, schedule and intervals.")
    evaluate: EvaluateConfig = required("Sliding windows.")
    parallel: ParallelConfig = subsection(ParallelConfig, "The device mesh.")
    streams: Mapping[str, RunConfig] = dataclasses.field(
        default_factory=dict,
        metadata={
            "doc": "Further sensors that the run trains on, by name, each with the keys in which it differs."
        },
    )
    weight: float = option(
        1.0, "Share of the run's own stream in the batches, relative to the weights of `streams`.", above(0)
    )
    stated_wavelengths: StatedWavelengths | None = option(
        None, "Wavelengths stated in the files, recorded by the training itself."
    )
    stated_acquisition: StatedAcquisition | None = option(
        None, "Month and ground resolution of the files, recorded by the training itself."
    )
    stated_values: StatedValues | None = option(
        None, "Type and range of the images' values, recorded by the training itself."
    )
    given: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False, metadata={"derived": True}
    )

    @classmethod
    def from_given(cls, given: Mapping[str, Any]) -> RunConfig:
        """Build a configuration from nested dictionaries.

        Raises:
          UserError: a key is unknown or missing, or a value is not allowed; names the full key.
        """
        own = {key: value for key, value in given.items() if key != "streams"}
        config = build(cls, own, "config")
        streams = given.get("streams") or {}
        if not isinstance(streams, Mapping):
            raise bad_value("config.streams", streams, "must be a section")
        read = {name: _read_stream(own, name, section) for name, section in streams.items()}
        return dataclasses.replace(config, streams=read, given=given)

    @classmethod
    def completed(cls, given: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Return the configuration without optional sections that are given as none."""
        optional = ("parallel", "stated_wavelengths", "stated_acquisition", "stated_values")
        return {k: v for k, v in given.items() if not (k in optional and not v)}

    def __post_init__(self) -> None:
        """Check constraints that belong to no single section."""
        super().__post_init__()
        self.require("bands", len(self.bands) > 0, "must have at least one band")
        if self.model.visual.kind == "galileo" and self.evaluate.tta in ("multiscale", "released"):
            must = "galileo sees windows of one size: choose flips or d4"
            raise bad_value("config.evaluate.tta", self.evaluate.tta, must)
        if self.train.head_start == "probe" and self.model.head.kind != "linear":
            must = (
                f"no regression fits config.model.head.kind = {self.model.head.kind!r}: set "
                "config.train.head_first_steps, which trains the head alone at first"
            )
            raise bad_value("config.train.head_start", self.train.head_start, must)
        weights, classes = self.loss.class_weights, len(self.classes.names)
        if isinstance(weights, tuple) and len(weights) != classes:
            must = f"must be one number for each of the {classes} config.classes.names"
            raise bad_value("config.loss.class_weights", weights, must)

    def replaced(self, values: Mapping[str, Any]) -> RunConfig:
        """Return a copy with other values.

        Args:
          values: by dotted key, as in `{"train.steps": 10, "model.depth": None}`; a dictionary replaces a
            whole section.

        Raises:
          UserError: as `from_given`.
        """
        given: dict[str, Any] = dict(self.given)
        for key, value in values.items():
            assign(given, key.split("."), value)
        return RunConfig.from_given(given)

    @property
    def wavelengths_of_files(self) -> tuple[float, ...] | None:
        """Wavelengths in micrometres that the files stated for these bands on this sensor, or None."""
        return self.stated_wavelengths.micrometres if self._is_of_these(self.stated_wavelengths) else None

    def _is_of_these(
        self, stated: StatedWavelengths | StatedAcquisition | StatedValues | None
    ) -> TypeGuard[Any]:
        """Return whether a section about files is there, and about these bands of this sensor."""
        return stated is not None and (stated.bands, stated.sensor) == (self.bands, self.sensor)

    @property
    def bandwidths_of_files(self) -> tuple[float, ...]:
        """Bandwidths in micrometres that the files stated beside their wavelengths; empty for none."""
        stated = self.stated_wavelengths
        return () if stated is None or self.wavelengths_of_files is None else stated.bandwidths

    def with_wavelengths_of_files(
        self, micrometres: Sequence[float], bandwidths: Sequence[float] = ()
    ) -> RunConfig:
        """Return a copy that stores the wavelengths, and bandwidths, stated by its files for its bands."""
        section = {"bands": self.bands, "sensor": self.sensor, "micrometres": tuple(micrometres)}
        if bandwidths:
            section["bandwidths"] = tuple(bandwidths)
        return self.replaced({"stated_wavelengths": section})

    @property
    def acquisition_of_files(self) -> StatedAcquisition | None:
        """Month and resolution that the files stated for these bands on this sensor, or None."""
        return self.stated_acquisition if self._is_of_these(self.stated_acquisition) else None

    def with_acquisition_of_files(self, month: int | None, resolution: float | None) -> RunConfig:
        """Return a copy that stores month and resolution of its files for its bands."""
        section = {"bands": self.bands, "sensor": self.sensor, "month": month, "resolution": resolution}
        return self.replaced({"stated_acquisition": section})

    @property
    def values_of_files(self) -> StatedValues | None:
        """How images stored their values for these bands on this sensor in training, or None."""
        return self.stated_values if self._is_of_these(self.stated_values) else None

    def with_statements_of_run(self, run: RunConfig) -> RunConfig:
        """Return a copy with what a run's files stated for the same bands on the same sensor.

        These are wavelengths, month and resolution, and type and range of the values. Each is left as it is
        if the configuration has it already or the run has none for it.

        Args:
          run: the configuration stored with the run.
        """
        result, streams = self, (run, *run.streams.values())
        wavelengths = (s.stated_wavelengths for s in streams if self._is_of_these(s.stated_wavelengths))
        if self.wavelengths_of_files is None and (stated := next(wavelengths, None)):
            result = result.with_wavelengths_of_files(stated.micrometres, stated.bandwidths)
        acquisitions = (s.stated_acquisition for s in streams if self._is_of_these(s.stated_acquisition))
        if self.acquisition_of_files is None and (found := next(acquisitions, None)):
            result = result.with_acquisition_of_files(found.month, found.resolution)
        values = (s.stated_values for s in streams if self._is_of_these(s.stated_values))
        if self.values_of_files is None and (seen := next(values, None)):
            result = result.replaced({"stated_values": dataclasses.asdict(seen)})
        return result

    @property
    def every_stream(self) -> dict[str, RunConfig]:
        """The configuration of every stream by name, the run's own (`main`) first."""
        given = {key: value for key, value in self.given.items() if key != "streams"}
        return {MAIN: dataclasses.replace(self, streams={}, given=given), **self.streams}

    def stream(self, name: str) -> RunConfig:
        """Return the configuration of one stream.

        Raises:
          UserError: there is no stream of this name.
        """
        streams = self.every_stream
        if name not in streams:
            raise UserError(f"--stream {name}: the configuration has {', '.join(streams)}")
        return streams[name]


def assign(given: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a value in nested dictionaries; copy those on the path to it and create missing ones."""
    *places, last = keys
    for place in places:
        inner = given.get(place)
        given[place] = dict(inner) if isinstance(inner, Mapping) else {}
        given = given[place]
    given[last] = value


def _read_stream(base: Mapping[str, Any], name: str, section: Any) -> RunConfig:
    place = f"config.streams.{name}"
    if name == MAIN:
        raise UserError(f"{place} is the run's own stream: give another name")
    given = overlaid(_without_unread(base, section), section, place)
    weight = checked(section.get("weight", RunConfig.weight), float, f"{place}.weight")
    if weight <= 0:
        raise bad_value(f"{place}.weight", weight, "must be above 0")
    try:
        return dataclasses.replace(build(RunConfig, {**given, "weight": weight}, "config"), given=given)
    except UserError as problem:
        raise UserError(f"{place}: {problem}") from None


def _without_unread(base: Mapping[str, Any], section: Any) -> Mapping[str, Any]:
    """Return a configuration without the keys of `data` that a stream with another kind does not read."""
    own = section.get("data") if isinstance(section, Mapping) else None
    data = base.get("data")
    if not isinstance(own, Mapping) or not isinstance(data, Mapping) or "kind" not in own:
        return base
    unread = unread_keys(DataConfig, {**data, "kind": own["kind"]})
    return {**base, "data": {key: value for key, value in data.items() if key not in unread}}


def overlaid(base: Mapping[str, Any], section: Any, place: str) -> dict[str, Any]:
    """Return a copy of `base` with the values of `section` in place of its own, without a stream's `weight`.

    Args:
      base: the configuration.
      section: the keys in which a stream differs.
      place: place of the section in the configuration, as in "config.streams.landsat".

    Raises:
      UserError: `section` is not a section.
    """
    if not isinstance(section, Mapping):
        raise bad_value(place, section, "must be a section of keys that differ from the configuration")
    result = dict(base)
    for key, value in section.items():
        if key == "weight" and place.count(".") == 2:
            continue
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = overlaid(result[key], value, f"{place}.{key}")
        else:
            result[key] = value
    return result
