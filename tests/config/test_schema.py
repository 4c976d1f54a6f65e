"""Sections: what they take, what they refuse and how they say so; presets; streams."""

import dataclasses
import subprocess
import sys
from typing import Any, Literal

import pytest

from spectralmoe_jax.config.adapters import ADAPTER_PRESETS, ADAPTERS, OwnAdapterConfig
from spectralmoe_jax.config.fields import Section, build, keys_of
from spectralmoe_jax.config.load import load_config, load_given
from spectralmoe_jax.config.model import HEADS, DepthConfig, VisualConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.config.schema import RunConfig, TrainConfig
from spectralmoe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float
    inner: Inner
    betas: tuple[float, float] = (0.9, 0.99)
    names: tuple[str, ...] = ()
    clip: float | None = None
    ranks: int | tuple[int, ...] = 16
    anything: Any = None


GOOD = {"rate": 1, "inner": {"width": 3}, "names": ("x",), "ranks": (1, 2)}


def test_dataclass_from_a_section():
    built = build(Outer, GOOD, "config.train")
    assert built == Outer(rate=1.0, inner=Inner(3), names=("x",), ranks=(1, 2))
    assert type(built.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rat": 1}, "config.train.rat is not a known key; nearest: rate, ranks"),
        ({"rate": "fast"}, "config.train.rate = 'fast': must be a number"),
        ({"rate": True}, "config.train.rate = True: must be a number"),
        ({"inner": {"width": 3.5}}, "config.train.inner.width = 3.5: must be a whole number"),
        ({"inner": {"width": 3, "kind": "c"}}, "config.train.inner.kind = 'c': must be one of 'a', 'b'"),
        ({"inner": {}}, "config.train.inner.width is missing: give a whole number"),
        ({"inner": 3}, "config.train.inner = 3: must be a section"),
        ({"betas": (0.9,)}, "config.train.betas = (0.9,): must have 2 elements, not 1"),
        ({"names": "x"}, "config.train.names = 'x': must be a tuple of strings"),
        ({"names": ("x", 3)}, "config.train.names[1] = 3: must be a string"),
        ({"clip": "no"}, "config.train.clip = 'no': must be a number"),
        ({"ranks": 1.5}, "config.train.ranks = 1.5: must be a whole number or a tuple of whole numbers"),
        ({"rate": float("nan")}, "config.train.rate = nan: must be finite"),
        ({"rate": float("-inf")}, "config.train.rate = -inf: must be finite"),
        ({"betas": (0.9, float("inf"))}, "config.train.betas[1] = inf: must be finite"),
    ],
)
def test_section_that_does_not_fit_names_the_key(change, message):
    with pytest.raises(UserError) as error:
        build(Outer, GOOD | change, "config.train")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.steps": 0}, "config.train.steps = 0: must be at least 1"),
        ({"train.betas": (0.9, 1.0)}, "config.train.betas = (0.9, 1.0): must lie in [0, 1)"),
        (
            {"train.warmup_steps": 9999},
            "config.train.warmup_steps = 9999: must be between 0 and 1199, below ",
        ),
        ({"augment.scale": (2, 1)}, "config.augment.scale = (2.0, 1.0): must be (low, high) with 0 < low"),
        ({"augment.gain": 1}, "config.augment.gain = 1.0: must be at least 0 and below 1"),
        ({"data.crop": 0}, "config.data.crop = 0: must be between 1 and 16384"),
        ({"data.kind": "zip"}, "config.data.kind = 'zip': must be one of image_folder, geotiff, prepared, "),
        ({"data.corrupt": "keep"}, "config.data.corrupt = 'keep': must be one of stop, skip"),
        ({"model.visual.heads": 5}, "config.model.visual.heads = 5: must divide width = 192"),
        ({"model.visual.kind": "vit"}, "config.model.visual.kind = 'vit': must be one of dinov3, dinov2, "),
        ({"model.visual.preset": "vit"}, "config.model.visual.preset = 'vit': must be one of dinov3_s, "),
        ({"model.depth": {"width": 0}}, "config.model.depth.width = 0: must be at least 1"),
        ({"model.visual.untied_norms": ("x",)}, "config.model.visual.untied_norms = ('x',): must be one of "),
        ({"model.adapter.top_k": 7}, "config.model.adapter.top_k = 7: must be between 1 and num_experts = 6"),
        (
            {"model.adapter.gating": "x"},
            "config.model.adapter.gating = 'x': must be one of laplace, gaussian",
        ),
        ({"model.adapter.kind": 3}, "config.model.adapter.kind = 3: must be a string"),
        (
            {"model.head.kind": "dense"},
            "config.model.head.kind = 'dense': must be one of mask2former, linear, pmt",
        ),
        ({"model.head.width": 62}, "config.model.head.width = 62: must be a multiple of 4"),
        ({"model.head.scales": (1, 1)}, "config.model.head.scales = (1.0, 1.0): must be 4 positive numbers"),
        (
            {"evaluate.overlap": 192},
            "config.evaluate.overlap = 192: must be at least 0 and below window = 192",
        ),
        ({"parallel.fsdp": 0}, "config.parallel.fsdp = 0: must be at least 1, or -1 for all devices left"),
        ({"parallel.fsdp": -1}, "config.parallel: data and fsdp are -1; at most one may be"),
        ({"weight": 0}, "config.weight = 0.0: must be above 0"),
        ({"bands": ()}, "config.bands = (): must have at least one band"),
        (
            {"classes.palette": ((1, 2, 3),)},
            "config.classes.palette has 1 colours for 5 config.classes.names",
        ),
        ({"streams": {"main": {}}}, "config.streams.main is the run's own stream: give another name"),
        ({"streams": {"b": {"weight": -1}}}, "config.streams.b.weight = -1.0: must be above 0"),
        ({"streams": {"b": 3}}, "config.streams.b = 3: must be a section of keys that differ from"),
        (
            {"streams": {"b": {"train": {"stps": 3}}}},
            "config.streams.b: config.train.stps is not a known key",
        ),
        ({"loss.points": 3}, "config.loss.points is not a known key; nearest: num_points"),
        ({"evaluate": None}, "config.evaluate = None: must be a section"),
    ],
)
def test_bad_value_names_key_value_and_what_is_allowed(values, message):
    with pytest.raises(UserError) as error:
        load_config("configs/dubai.py").replaced(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def sections(cls: type = RunConfig):
    yield cls
    for field in keys_of(cls).values():
        for inner in field.metadata.get("kinds", {}).values():
            yield from sections(inner)
    hints = {"classes", "data", "augment", "model", "loss", "train", "evaluate", "parallel", "visual"}
    for name in keys_of(cls).keys() & hints:
        import typing

        hint = typing.get_type_hints(cls)[name]
        if dataclasses.is_dataclass(hint):
            yield from sections(hint)


def test_every_key_is_documented():
    found = {*sections(), DepthConfig, *ADAPTERS.values(), *HEADS.values()}
    assert len(found) > 20
    for cls in found:
        assert issubclass(cls, Section)
        assert cls.__doc__
        for name, field in keys_of(cls).items():
            doc = field.metadata["doc"]
            assert doc[0].isupper() or doc[0] == "`", (cls, name)
            assert doc.endswith("."), (cls, name)


def test_an_encoder_takes_its_preset_and_what_is_given_wins():
    visual = build(VisualConfig, {"preset": "dinov2_s", "patch_size": 8}, "config.model.visual")
    row = PRESETS["dinov2_s"] | {"patch_size": 8}
    assert {key: getattr(visual, key) for key in row} == row
    assert visual.preset == "dinov2_s"


@pytest.mark.parametrize("preset", ADAPTER_PRESETS)
def test_an_adapter_takes_the_switches_of_its_preset(preset):
    adapter = load_config("configs/dubai.py").replaced(
        {"model.adapter": {"preset": preset, "token_map": "dot", "num_tokens": 20, "query_dim": 64}}
    ).model.adapter  # fmt: skip
    row = ADAPTER_PRESETS[preset] | {"token_map": "dot"}
    assert {key: getattr(adapter, key) for key in row} == row


def test_the_settings_of_a_users_own_adapter_are_kept_as_given():
    config = load_config("configs/dubai.py", ["--config.model.adapter.kind=mine.py:Mine",
                                              "--config.model.adapter.size=3"])  # fmt: skip
    assert config.model.adapter == OwnAdapterConfig("mine.py:Mine", {"size": 3})


def test_streams_are_whole_configurations():
    streams = {"landsat": {"weight": 0.5, "bands": ("red",), "model": {"pixel_mean": (1.0,)}}}
    config = load_config("configs/dubai.py").replaced({"streams": streams})
    stream = config.streams["landsat"]
    assert (stream.weight, stream.bands, stream.model.pixel_mean) == (0.5, ("red",), (1.0,))
    assert stream.model.visual == config.model.visual
    main, same = config.every_stream.values()
    assert same is stream is config.stream("landsat")
    assert "streams" not in main.given
    assert main == config.stream("main") == load_config("configs/dubai.py")
    with pytest.raises(UserError, match="--stream sentinel: the configuration has main, landsat"):
        config.stream("sentinel")


def test_unknown_keys_where_a_file_may_keep_its_own_are_warned_of(caplog):
    config = load_config("configs/dubai.py").replaced({"data.holdot": 0.2, "note": "mine"})
    assert config.data == load_config("configs/dubai.py").data
    assert "ignored: config.data.holdot is not a known key; nearest: holdout" in caplog.text
    assert "config.note" in caplog.text


def test_replaced_leaves_the_original_as_it_was():
    config = load_config("configs/dubai.py")
    changed = config.replaced({"train.steps": 10, "train.warmup_steps": 0, "model.depth": None})
    assert changed.train.steps == 10
    assert config.train == load_config("configs/dubai.py").train
    assert config.given == load_given("configs/dubai.py")


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(UserError) as error:
        TrainConfig(steps=5, betas=tuple([0.5] * 200 + [2.0]))
    assert len(str(error.value)) < 300


def test_the_schema_needs_neither_jax_nor_ml_collections():
    """Data workers and the command line's help read it."""
    code = (
        "import sys; import spectralmoe_jax.config.schema; "
        "print([n for n in ('jax', 'ml_collections', 'numpy', 'grain', 'rasterio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
