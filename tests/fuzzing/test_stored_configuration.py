"""A run's stored configuration: read as it is written, or refused in one line."""

import json

import pytest

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import read_config, save_config
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["damaged", "reshaped"])
def test_config_json(kind, seed, count, tmp_path, record_property):
    file = tmp_path / "config.json"
    save_config(load_config("quickstart"), file)
    good = file.read_bytes()
    variants = damaged(good, count, seed) if kind == "damaged" else reshaped(json.loads(good), count, seed)

    def read(variant):
        file.write_bytes(variant)
        return read_config(file)

    def is_exact(variant, config):
        return json.dumps(config.given, sort_keys=True) == json.dumps(json.loads(variant), sort_keys=True)

    try_all(variants, read, is_exact, record_property, f"config.json, {kind}")
