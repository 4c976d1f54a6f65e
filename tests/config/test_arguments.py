"""The arguments of a configuration after the colon."""

import dataclasses
import shutil

import pytest

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.configs import common
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import segmenter_config


def test_defaults_numbers_and_words():
    allowed = {"experts": 6, "visual": ("dinov3", "dofa")}
    assert vars(common.arguments("", **allowed)) == {"experts": 6, "visual": "dinov3"}
    assert vars(common.arguments("dofa,experts=3", **allowed)) == {"experts": 3, "visual": "dofa"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "expert=3",
            "argument 'expert=3' after the colon is not known; allowed: experts=NUMBER, dinov3 or dofa",
        ),
        ("experts=many", "argument 'experts=many' after the colon is not known"),
        ("dofa,dinov3", "argument 'dinov3' after the colon: visual is already dofa"),
        ("experts=3,experts=6", "argument 'experts=6' after the colon: experts is already 3"),
    ],
)
def test_what_is_not_allowed(given, message):
    with pytest.raises(UserError) as raised:
        common.arguments(given, experts=6, visual=("dinov3", "dofa"))
    assert message in str(raised.value)


@pytest.mark.parametrize("file", shipped_files("configs"))
def test_every_configuration_rejects_an_unknown_argument(file):
    with pytest.raises(UserError, match=r"no arguments|allowed: "):
        load_config(f"{file}:unknown")


def test_a_copy_runs_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in shipped_files("configs").values():
        copy = shutil.copy(file, tmp_path / f"my_{file.name}")
        assert load_config(str(copy)) == load_config(file.name)


@pytest.mark.parametrize("file", ["cloud_shadow", "quickstart", "sentinel2_landcover"])
def test_a_frozen_foundation_model_in_place_of_the_small_encoder(file):
    """The same data and classes; one window of the encoder is a crop."""
    small, config = load_config(f"configs/{file}.py"), load_config(f"configs/{file}.py:galileo")
    model = segmenter_config(config)
    assert (model.visual.kind, model.visual.trainable, model.head.kind) == ("galileo", False, "linear")
    assert model.visual.window * model.visual.patch_size == config.data.crop == config.evaluate.window
    assert (config.bands, config.classes) == (small.bands, small.classes)
    assert dataclasses.replace(config.data, crop=small.data.crop) == small.data
