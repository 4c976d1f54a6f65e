"""Published files of the plain mask decoder, read and written."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.config.model import LinearHeadConfig
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.parity.comparison import read_arrays
from spectralmoe_jax.parity.pmt_goldens import LEVELS, golden_segmenter
from spectralmoe_jax.weights.pmt_files import published_shapes, published_tensors
from spectralmoe_jax.weights.reading import open_weight_file
from spectralmoe_jax.weights.released import is_segmenter, parts_of, stream_segmenter

BUFFERS = {"network.decoder.attn_mask_probs", *(f"network.bn.{i}.num_batches_tracked" for i in range(4))}


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "encoders" / "pmt"


@pytest.fixture(scope="module")
def settings(folder):
    return golden_segmenter(folder, {LEVELS: read_arrays(folder / f"{LEVELS}.npz")}).config


@pytest.fixture(scope="module")
def tensors(folder):
    return load_file(folder / "decoder.safetensors")


def shapes_of(settings):
    return {path: tuple(leaf.shape) for path, leaf in leaves(abstract_segmenter(settings)).items()}


def read(path, settings):
    file = open_weight_file(path)
    assert is_segmenter(file)
    assert parts_of(file) == {"head"}
    return dict(stream_segmenter(file, settings, shapes_of(settings), {"head"}))


def test_reading_and_writing_keep_every_bit(folder, settings, tensors):
    values = read(folder / "decoder.safetensors", settings)
    head = {path: shape for path, shape in shapes_of(settings).items() if path[0] == "head"}
    assert {path: leaf.shape for path, leaf in values.items()} == head
    written = dict(published_tensors(head, values.items()))
    assert {name: value.shape for name, value in written.items()} == published_shapes(head)
    assert written.keys() == tensors.keys()
    for name in tensors.keys() - BUFFERS:
        assert written[name].tobytes() == tensors[name].tobytes(), name
    for name in BUFFERS:
        assert (written[name].dtype, written[name].shape) == (tensors[name].dtype, tensors[name].shape)


def test_a_file_of_a_compiled_module_with_its_loss(folder, settings, tensors, tmp_path):
    """As training code saves it: inside `state_dict`, with fragments in names and the weights of the loss."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    renamed = {name.replace("network.", "network._orig_mod.", 1): value for name, value in tensors.items()}
    renamed["criterion.empty_weight"] = np.ones(6, np.float32)
    state = {name: torch.from_numpy(np.array(value)) for name, value in renamed.items()}
    torch.save({"state_dict": state}, tmp_path / "pytorch_model.bin")
    found = read(tmp_path / "pytorch_model.bin", settings)
    wanted = read(folder / "decoder.safetensors", settings)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value)


def test_converting_keeps_every_value(folder, settings, tmp_path):
    """Without a configuration, sizes follow from the file."""
    convert(str(folder / "decoder.safetensors"), str(tmp_path / "native.safetensors"))
    found, wanted = load_file(tmp_path / "native.safetensors"), read(folder / "decoder.safetensors", settings)
    assert found.keys() == {"/".join(path) for path in wanted}
    for path, value in wanted.items():
        np.testing.assert_array_equal(found["/".join(path)], value)
    assert read(tmp_path / "native.safetensors", settings).keys() == wanted.keys()


def test_a_wrong_file_is_refused(folder, settings, tensors, tmp_path):
    changed = dict(tensors)
    changed["network.decoder.extra"] = changed.pop("network.decoder.scalers.1")
    changed["network.decoder.q.weight"] = np.zeros((9, 32), np.float32)
    save_file(changed, tmp_path / "x.safetensors")
    with pytest.raises(UserError) as error:
        read(tmp_path / "x.safetensors", settings)
    for part in ("scalers.1", "unexpected (1): decode_head.decoder.extra", "(9, 32) does not fit"):
        assert part in str(error.value)


def test_another_head_refuses_the_file(folder, settings):
    linear = dataclasses.replace(settings, head=LinearHeadConfig(num_classes=5))
    with pytest.raises(UserError, match=r"a plain mask decoder, but config\.model\.head\.kind = 'linear'"):
        read(folder / "decoder.safetensors", linear)
