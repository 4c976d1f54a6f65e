"""Files with the names of a published encoder and odd tensors: read whole, or an error of one line."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as save_safetensors

from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.parity.segmenter_goldens import golden_segmenter_config
from spectralmoe_jax.weights.encoder_file import infer_config, stream_encoder
from spectralmoe_jax.weights.formats import recognise
from spectralmoe_jax.weights.reading import open_weight_file
from spectralmoe_jax.weights.released import PARTS, stream_segmenter
from tests.fuzzing.outcome import try_all

QUICK_AND_LONG = [(0, 12), pytest.param(1, 400, marks=pytest.mark.slow)]
CHANGES = {
    "gone": lambda x: None,
    "empty": lambda x: x[:0],
    "huge and empty": lambda x: np.zeros((2**40, 0), np.float32),
    "scalar": lambda x: x.reshape(-1)[0],
    "flat": lambda x: x.reshape(-1),
    "more axes": lambda x: x[None, ..., None],
    "transposed": lambda x: x.T.copy() if len(set(x.shape)) > 1 else x,  # a square one cannot be noticed
    "twice as long": lambda x: np.concatenate([x, x]) if x.ndim else x,
    "one shorter": lambda x: x[1:] if x.ndim else x,
    "whole numbers": lambda x: x.astype(np.int8),
    "complex": lambda x: x.astype(np.complex64),
    "half precision": lambda x: x.astype(np.float16),
}


def odd_tensors(tensors, count, seed):
    """Yield tensors of which one is changed; every tenth time none."""
    random = np.random.default_rng(seed)
    names = sorted(tensors)
    for number in range(count):
        name, what = str(random.choice(names)), str(random.choice(list(CHANGES)))
        changed = dict(tensors) if number % 10 == 0 else {**tensors, name: CHANGES[what](tensors[name])}
        yield (
            f"{name}: {what}",
            {key: np.asarray(value) for key, value in changed.items() if value is not None},
        )


@pytest.mark.parametrize(("seed", "count"), QUICK_AND_LONG)
def test_encoder(seed, count, goldens, tmp_path, record_property):
    good = load_file(goldens / "encoders/softcon/weights.safetensors")
    path = tmp_path / "x.safetensors"

    def read(tensors):
        path.write_bytes(save_safetensors(tensors))
        encoder_file = recognise(open_weight_file(path))
        return dict(stream_encoder(encoder_file, infer_config(encoder_file)[1]))

    expected = read(good)  # tests/parity compares these with the authors' values

    def is_exact(tensors, found):
        return found.keys() == expected.keys() and all(
            np.allclose(found[name], expected[name], atol=1e-2) for name in expected
        )

    try_all(odd_tensors(good, count, seed), read, is_exact, record_property, "encoder with odd tensors")


@pytest.mark.slow
def test_released_segmenter(goldens, tmp_path, record_property):
    stem = goldens / "released_tiny/dinov3_laplace_k1"
    good, source = load_file(stem.with_suffix(".safetensors")), tmp_path / "x.safetensors"
    with np.load(stem.with_suffix(".npz")) as golden:
        sizes = [golden[f"feature_{i}"].shape[-1] for i in range(4)]
    config, _ = golden_segmenter_config(json.loads(stem.with_suffix(".json").read_text()), sizes)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(config)).items()}

    def read(tensors):
        source.write_bytes(save_safetensors(tensors))
        return dict(stream_segmenter(open_weight_file(source), config, shapes, list(PARTS)))

    expected = read(good)  # tests/parity compares these with the authors' values

    def is_exact(tensors, found):
        return found.keys() == expected.keys() and all(
            np.allclose(found[name], expected[name], atol=1e-2) for name in expected
        )

    try_all(odd_tensors(good, 120, 2), read, is_exact, record_property, "released segmenter with odd tensors")
