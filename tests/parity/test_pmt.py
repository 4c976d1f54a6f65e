"""The plain mask decoder agrees with its authors' code, and a deviation is detected."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parity import pmt_goldens
from spectralmoe_jax.parity.pmt_goldens import LEVELS, golden_segmenter, verify_plain_decoder
from spectralmoe_jax.parity.verify import check_folder

FILES = {"encoder_levels", "plain", "masked", "train_bn", "loss_schedules"}


@pytest.fixture(scope="module")
def folder(goldens):
    return goldens / "encoders" / "pmt"


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(folder, tmp_path / "pmt")


@pytest.fixture
def only(monkeypatch):
    """Restricts the checks to the levels and one more file: each takes seconds to compile."""

    def restrict(name):
        monkeypatch.setattr(pmt_goldens, "CHECKS", {name: pmt_goldens.CHECKS[name]})

    return restrict


def test_every_file_agrees(folder):
    checks = check_folder(folder)
    assert {check.file for check in checks} == {f"{name}.npz" for name in FILES}
    assert [check.quantity for check in checks if check.bound is None] == ["lr_warm6000_total20208"]
    assert not [check for check in checks if check.bound is not None and not check.ok]
    assert max(check.bound for check in checks if check.bound is not None) == 5e-5
    assert len(checks) > 90


def test_the_layers_of_the_levels_are_found(folder):
    arrays = {LEVELS: pmt_goldens.read_arrays(folder / f"{LEVELS}.npz")}
    assert golden_segmenter(folder, arrays).config.out_layers == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("name", "tensor", "missed"),
    [
        ("plain", "network.decoder.scalers.2", "dec_in0"),
        ("train_bn", "network.bn.3.running_mean", "bn3_running_mean_after"),
    ],
)
def test_a_changed_weight_is_a_miss(copy, only, name, tensor, missed):
    only(name)
    tensors = load_file(copy / "decoder.safetensors")
    tensors[tensor] = tensors[tensor] + np.float32(1e-2)
    save_file(tensors, copy / "decoder.safetensors")
    found = {check.quantity for check in verify_plain_decoder(copy / "decoder.safetensors") if not check.ok}
    assert missed in found
    assert not found & {"enc_block5", "level3_normed"}


def test_an_incomplete_folder_is_refused(copy):
    (copy / "plain.npz").unlink()
    with pytest.raises(UserError, match=r"plain\.npz: not a readable golden"):
        verify_plain_decoder(copy / "decoder.safetensors")


def test_overlapping_targets_are_refused(folder):
    with np.load(folder / "loss_schedules.npz") as archive:
        arrays = dict(archive)
    arrays["target_masks_0"] = np.ones_like(arrays["target_masks_0"])
    with pytest.raises(ValueError, match="target_masks_0 overlap"):
        pmt_goldens.label_maps(arrays, 2)
