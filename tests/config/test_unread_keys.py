"""Keys that the kind of the data does not read: refused where a user gives them, ignored in stored runs."""

import json

import pytest

from spectralmoe_jax.config.fields import keys_of
from spectralmoe_jax.config.given import config_dict
from spectralmoe_jax.config.load import as_run_config, load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.config.schema import DataConfig
from spectralmoe_jax.config.stored import read_config
from spectralmoe_jax.errors import UserError

VALUES = {
    "root": "x", "image_glob": "*.tif", "mask_template": "x", "sensors": {"a": "landsat5"}, "tile": 64,
    "label_values": (0, 1), "ignore_values": (9,), "ignore_colours": ((1, 2, 3),), "label_attribute": "kind",
    "label_layer": "x", "benchmark": "flair", "cache_bytes": 7, "scenes_source": 3, "scenes_target": 3,
    "scene_size": 64, "scene_seed": 5,
}  # fmt: skip
KINDS = {"image_folder": "dubai", "geotiff": "cloud_shadow", "prepared": "flair", "synthetic": "quickstart"}
FILES = (
    "root", "image_glob", "mask_template", "label_values", "ignore_values", "ignore_colours", "cache_bytes",
)  # fmt: skip
READS = {
    "image_folder": FILES,
    "geotiff": (*FILES, "sensors", "tile", "label_attribute", "label_layer"),
    "prepared": ("root", "benchmark"),
    "synthetic": ("scenes_source", "scenes_target", "scene_size", "scene_seed"),
}  # fmt: skip


def test_every_key_of_some_kinds_is_here():
    assert {key for key, field in keys_of(DataConfig).items() if field.metadata.get("read_by")} == set(VALUES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", VALUES)
def test_given_keys(kind, key):
    config = load_config(KINDS[kind])
    assert config.data.kind == kind
    given = {**config.given, "data": {**config.given["data"], key: VALUES[key]}}
    if key in READS[kind]:
        assert as_run_config(config_dict(given)).given["data"][key] == VALUES[key]
        return
    with pytest.raises(UserError, match=rf"config\.data\.{key}: data of the kind '{kind}' does not") as error:
        as_run_config(config_dict(given))
    assert all(other in str(error.value) for other in READS if key in READS[other])
    assert "\n" not in str(error.value)


def test_overrides_and_streams():
    with pytest.raises(UserError, match=r"config\.data\.tile: data of the kind 'synthetic'"):
        load_config("quickstart", ["--config.data.tile=64"])
    config = load_config("quickstart")
    given = {**config.given, "streams": {"b": {"data": {"tile": 64}}}}
    with pytest.raises(UserError, match=r"config\.streams\.b\.data\.tile: data of the kind 'synthetic'"):
        as_run_config(config_dict(given))
    stream = {"data": {"kind": "geotiff", "root": "x", "image_glob": "*", "mask_template": "y", "tile": 64}}
    read = as_run_config(config_dict({**config.given, "streams": {"b": stream}}))
    assert read.streams["b"].data.tile == 64


def test_a_new_kind_drops_what_it_does_not_read():
    config = load_config("cloud_shadow", ["--config.data.kind=image_folder"])
    assert config.data.label_values == (1, 2, 3)
    assert config.data.tile is None
    assert load_config("cloud_shadow", ["--config.data.kind=mine.py:open_it"]).data.tile is not None


def test_stored_runs_keep_loading(tmp_path, caplog):
    config = load_config("quickstart")
    given = json.loads(json.dumps(dict(config.given)))
    given["data"]["tile"] = 64
    (tmp_path / "config.json").write_text(json.dumps(given))
    with caplog.at_level("WARNING"):
        assert read_config(tmp_path / "config.json").data.kind == "synthetic"
    assert "ignored: config.data.tile: data of the kind 'synthetic' does not read it" in caplog.text
    with pytest.raises(UserError, match=r"config\.data\.benchmark: data of the kind 'synthetic'"):
        read_config(tmp_path / "config.json", ["--config.data.benchmark=flair"])


@pytest.mark.parametrize("name", shipped_files("configs"))
def test_shipped_configurations_give_none(name):
    load_config(name)
