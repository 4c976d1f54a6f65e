"""Keys that a configuration may leave out: the table against the code that reads them, and overrides."""

import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest

import data_pipelines
import spectralmoe_jax
from data_pipelines.transforms import Augment
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.load import shipped_files
from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig
from spectralmoe_jax.config.schema import EvaluateConfig, LossConfig, ParallelConfig, TrainConfig
from spectralmoe_jax.configuration import (
    apply_overrides,
    load_config,
    read_config,
    save_config,
)
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.optional_keys import OPTIONAL

SECTIONS = {
    "augment": Augment,
    "model.adapter": SpectralMoEConfig,
    "model.head": Mask2FormerConfig,
    "model.visual": EncoderConfig,
    "model.depth": EncoderConfig,
    "loss": LossConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "parallel": ParallelConfig,
}
# set by the code, or not a matter of the command line
DERIVED = {"in_channels", "band_names", "name", "num_classes", "photometric_bands", "crop", "rules"}
# variables that the code reads sections through
VARIABLES = {
    "config": "", "config.data": "data", "data": "data", "config.model": "model", "model": "model",
    "visual": "model.visual", "config.augment": "augment", "section": "", "whole": "model.visual",
    "encoder": "model.visual",
    "config.get('parallel')": "parallel", "parallel": "parallel",
}  # fmt: skip


def reads_of_sections():
    """(file:line, dotted key) of every `.get("key")` on a section of a configuration."""
    for package in (data_pipelines, spectralmoe_jax):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            text = path.read_text()
            if "config" not in text or path.name in ("configuration.py", "encoder_file.py"):
                continue
            for node in ast.walk(ast.parse(text)):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                key = node.args[0]
                place = VARIABLES.get(ast.unparse(node.func.value))
                if node.func.attr == "get" and place is not None and isinstance(key, ast.Constant):
                    dotted = f"{place}.{key.value}" if place else str(key.value)
                    yield f"{path.name}:{node.lineno}", dotted


def test_every_key_that_the_code_may_miss_is_in_the_table():
    reads = list(reads_of_sections())
    keys = {key for _, key in reads}
    assert {"sensor", "streams", "weight", "data.corrupt", "data.weights", "data.tile", "data.label_layer",
            "data.scene_size", "model.weights", "model.visual.wavelengths"} <= keys  # fmt: skip
    sections = {key.rpartition(".")[0] for key in OPTIONAL}
    assert [(place, key) for place, key in reads if key not in OPTIONAL and key not in sections] == []


@pytest.mark.parametrize("place", SECTIONS)
def test_the_table_says_what_the_settings_say(place):
    cls = SECTIONS[place]
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING or field.name in DERIVED:
            continue
        kind, default = OPTIONAL[f"{place}.{field.name}"]
        assert kind == hints[field.name], field.name
        assert default == field.default, field.name
    known = {field.name for field in dataclasses.fields(cls)} | {"preset", "weights", "bands", "kind"}
    below = {key.removeprefix(f"{place}.") for key in OPTIONAL if key.startswith(f"{place}.")}
    assert below <= known


OVERRIDES = [
    ("data.corrupt", "skip", "skip"),
    ("data.weights", "0.7,0.3", (0.7, 0.3)),
    ("data.weights", "(1, 2)", (1.0, 2.0)),
    ("data.class_temperature", "0.05", 0.05),
    ("data.class_temperature", "none", None),
    ("data.min_labelled", "0.1", 0.1),
    ("data.file_bands", "red,green,blue", ("red", "green", "blue")),
    ("data.holdout_domains", "2018,2019", ("2018", "2019")),
    ("data.holdout_domains", "2018", ("2018",)),
    ("data.label_layer", "roads", "roads"),
    ("data.label_values", "1,2,(3,4)", (1, 2, (3, 4))),
    ("data.label_values", "forest,water", ("forest", "water")),
    ("data.cache_bytes", "0", 0),
    ("data.threads", "8", 8),
    ("data.tile", "256", 256),
    ("model.visual.wavelengths", "0.49,0.56", (0.49, 0.56)),
    ("model.weights", "a.pth,b.pth", "a.pth,b.pth"),
    ("model.adapter.rank", "8", 8),
    ("model.adapter.rank", "8,4", (8, 4)),
    ("model.adapter.distance", "l2", "l2"),
    ("augment.gain", "0.1", 0.1),
    ("augment.turns", "true", True),
    ("sensor", "landsat8", "landsat8"),
    ("sensor", "none", None),
    ("weight", "2", 2.0),
    ("train.clip_norm", "none", None),
]


@pytest.mark.parametrize(("key", "text", "value"), OVERRIDES)
@pytest.mark.parametrize("name", ["dubai.py", "loveda.py"])
def test_an_optional_key_of_any_configuration(name, key, text, value):
    config = load_config(f"configs/{name}", [f"--config.{key}={text}"])
    for part in key.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


def test_every_default_is_what_its_type_allows():
    config = load_config("configs/dubai.py")
    for key, (kind, default) in OPTIONAL.items():
        if key.startswith("model.depth"):  # None in this configuration
            continue
        text = "none" if default is None else str(default)
        changed = apply_overrides(config, [f"--config.{key}={text}"])
        for part in key.split("."):
            changed = changed[part]
        assert changed == default, (key, kind)


def test_only_what_is_given_is_stored(tmp_path):
    plain = load_config("configs/dubai.py")
    changed = apply_overrides(plain, ["--config.data.corrupt=skip"])
    save_config(changed, tmp_path / "config.json")
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["data"].pop("corrupt") == "skip"
    save_config(plain, tmp_path / "plain.json")
    assert stored == json.loads((tmp_path / "plain.json").read_text())
    assert apply_overrides(read_config(tmp_path / "plain.json"), ["--config.data.tile=64"]).data.tile == 64


def test_a_section_that_is_not_there_is_made(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 0})\n"
    )
    assert load_config(str(file), ["--config.data.tile=64"]).to_dict() == {"seed": 0, "data": {"tile": 64}}


def test_keys_of_a_stream():
    streams = {"landsat": {"sensor": "landsat8"}}
    config = load_config("configs/dubai.py", [f"--config.streams={streams}"])
    changed = apply_overrides(
        config, ["--config.streams.landsat.weight=0.5", "--config.streams.landsat.data.tile=64"]
    )
    assert changed.streams.to_dict() == {
        "landsat": {"sensor": "landsat8", "weight": 0.5, "data": {"tile": 64}}
    }
    assert apply_overrides(config, ["--config.streams=none"]).streams is None
    with pytest.raises(UserError, match=r"config\.streams\.lansat is not a known key; nearest: landsat"):
        apply_overrides(config, ["--config.streams.lansat.weight=0.5"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.corupt=skip", r"config\.data\.corupt is not a known key; nearest: corrupt"),
        ("data.min_labeled=0", r"config\.data\.min_labeled is not a known key; nearest: min_labelled"),
        ("dta.tile=1", r"config\.dta is not a known key; nearest: data"),
        ("sensr=x", r"config\.sensr is not a known key; nearest: sensor"),
        ("model.visual.wavelength=1", r"nearest: wavelengths"),
        ("data.tile=big", r"config\.data\.tile: takes a whole number, not 'big'"),
        ("data.weights=a,b", r"config\.data\.weights\[0\]: takes a number, not 'a'"),
        ("data.min_labelled=none", r"config\.data\.min_labelled: takes a number, not None"),
        ("model.depth.trainable=true", r"config\.model\.depth is None, not a section"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        load_config("configs/dubai.py", [f"--config.{override}"])


def test_shipped_configurations_take_all_that_messages_advise():
    advised = ("data.corrupt=skip", "data.min_labelled=0.1", "sensor=none", "data.holdout_domains=none")
    for name in shipped_files("configs"):
        load_config(name, [f"--config.{override}" for override in advised])
