"""Arrays that are stored beside a model, and configurations inside weight files."""

import io
import json

import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from spectralmoe_jax.config.given import config_dict
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.inference.calibration import Calibration, add_calibration, read_calibrations
from spectralmoe_jax.inference.model_files import config_of_model
from spectralmoe_jax.parity.comparison import parse_meta, read_arrays
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all

QUICK_AND_LONG = pytest.mark.parametrize(
    ("seed", "count"), [(0, 64), pytest.param(1, 800, marks=pytest.mark.slow)]
)


@QUICK_AND_LONG
def test_golden(seed, count, tmp_path, record_property):
    file, stream = tmp_path / "adapter_x.npz", io.BytesIO()
    arrays = {"visual": np.arange(40.0).reshape(2, 5, 4), "noise": np.ones((2, 3), np.float32)}
    np.savez(stream, meta=json.dumps({"num_layers": 2}), **arrays)

    def read(variant):
        file.write_bytes(variant)
        return read_arrays(file)

    def is_exact(variant, found):
        # Every member has a checksum: whatever is read is what was written.
        names = {"meta", *arrays}
        return found.keys() <= names and all(
            np.array_equal(found[n], arrays[n]) for n in found if n != "meta"
        )

    variants = damaged(stream.getvalue(), count, seed, headers=0.2)
    try_all(variants, read, is_exact, record_property, "golden .npz")


@QUICK_AND_LONG
def test_meta_of_goldens(seed, count, tmp_path, goldens, record_property):
    with np.load(goldens / "released_adapter/adapter_laplace_k2_train.npz") as golden:
        good = json.loads(str(golden["meta"]))

    def read(variant):
        return parse_meta(tmp_path / "x.json", variant)

    def is_exact(variant, meta):
        return json.dumps(meta) == json.dumps(json.loads(variant))

    try_all(reshaped(good, count, seed), read, is_exact, record_property, "meta of a golden")


@QUICK_AND_LONG
def test_calibration(seed, count, tmp_path, record_property):
    file = tmp_path / "calibration.npz"
    good = Calibration("d" * 32, 1.5, np.arange(4, dtype=np.float32), np.eye(4, dtype=np.float32), 2.0)
    add_calibration(good, file)
    content = file.read_bytes()

    def read(variant):
        file.write_bytes(variant)
        return read_calibrations(file)

    def is_exact(variant, found):
        (only,) = found  # every member has a checksum
        return all(np.array_equal(ours, theirs) for ours, theirs in zip(only, good, strict=True))

    variants = damaged(content, count, seed, headers=0.2)
    try_all(variants, read, is_exact, record_property, "calibration.npz")


@QUICK_AND_LONG
def test_carried_configuration(seed, count, tmp_path, record_property):
    good = json.loads(json.dumps(config_dict(load_config("quickstart").given).to_dict()))
    file = tmp_path / "model.safetensors"

    def read(variant):
        record = {"format": "segmenter", "configuration": json.loads(variant)}
        file.write_bytes(
            save_safetensors({"head/x": np.zeros(1, np.float32)}, {"spectralmoe": json.dumps(record)})
        )
        return config_of_model(file)

    def is_exact(variant, config):
        given = config_dict(config.given).to_dict()
        return json.dumps(given, sort_keys=True) == json.dumps(json.loads(variant), sort_keys=True)

    variants = (
        (what, variant) for what, variant in reshaped(good, count, seed) if not what.startswith("deep")
    )
    try_all(variants, read, is_exact, record_property, "configuration in a weight file")
