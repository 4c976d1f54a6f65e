"""Golden files of published encoders: SoftCon and Copernicus-FM."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parity.comparison import compare
from spectralmoe_jax.parity.verify import check_folder, verify

FILES = ("softcon/a_56x56", "softcon/b_84x42", "copernicus_fm/a_nometa", "copernicus_fm/b_fullmeta_k8",
         pytest.param("copernicus_fm/c_mixedmeta", marks=pytest.mark.slow))  # fmt: skip
CHECKS = {"softcon": 13, "copernicus_fm": 19}


@pytest.fixture
def copied(goldens, tmp_path):
    """Copies one golden and its weights, with changed arrays and tensors, to a folder of its own."""

    def copy(name, arrays=None, tensors=None):
        folder, _, stem = name.partition("/")
        source = goldens / "encoders" / folder
        with np.load(source / f"{stem}.npz") as archive:
            np.savez(tmp_path / f"{stem}.npz", **{**archive, **(arrays or {})})
        weights = load_file(source / "weights.safetensors")
        save_file({**weights, **(tensors or {})}, tmp_path / "weights.safetensors")
        return tmp_path

    return copy


@pytest.mark.parametrize("name", FILES)
def test_golden(name, copied):
    checks = check_folder(copied(name))
    assert len(checks) == CHECKS[name.partition("/")[0]]
    assert not [check for check in checks if not check.ok]
    relative = {check.quantity for check in checks if not check.absolute}
    assert relative == ({"kernel", "kernel_bias"} if name.startswith("copernicus") else set())


@pytest.mark.parametrize(
    ("name", "perturbed", "missed"),
    [
        ("softcon/b_84x42", ("blocks.1.ls2.gamma",), {"block1", "output"}),
        ("softcon/a_56x56", ("pos_embed",), {"pos", "tokens_in", "block0", "x_norm_patchtokens"}),
        (
            "copernicus_fm/b_fullmeta_k8",
            ("scale_fc.bias", "patch_embed_spectral.fclayer.w2.bias"),
            {"scale_fc", "fclayer", "kernel", "patch_tokens", "logit"},
        ),
    ],
)
def test_a_perturbed_weight_is_a_miss(name, perturbed, missed, goldens, copied, capsys):
    tensors = load_file(goldens / "encoders" / name.partition("/")[0] / "weights.safetensors")
    for tensor in perturbed:
        tensors[tensor][..., 0] += 0.01
    assert not verify(copied(name, tensors=tensors))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert missed <= {row[1] for row in rows}
    assert any("absolute" in row for row in rows)


def test_a_golden_that_does_not_fit_is_named(copied):
    with pytest.raises(UserError, match=r"b_84x42\.npz: .*unexpected: surplus"):
        check_folder(copied("softcon/b_84x42", arrays={"surplus": np.zeros(3)}))
    with pytest.raises(UserError, match=r"wrong shape: mean \(12,\), not \(13\)"):
        check_folder(copied("softcon/b_84x42", arrays={"mean": np.zeros(12)}))
    with pytest.raises(UserError, match=r"b_84x42\.npz: block7: not a quantity of this encoder"):
        check_folder(copied("softcon/b_84x42", arrays={"block7": np.zeros(3)}))
    with pytest.raises(UserError, match=r"weights\.safetensors.*unexpected \(1\): surplus"):
        check_folder(copied("softcon/b_84x42", tensors={"surplus": np.zeros(3, np.float32)}))


def test_a_golden_without_its_weights_is_skipped(goldens, tmp_path, capsys):
    shutil.copy(goldens / "encoders/softcon/a_56x56.npz", tmp_path)
    assert verify(tmp_path)
    assert "0 checked, 0 missed, 1 skipped" in capsys.readouterr().out


def test_other_archives_are_left_out(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=r"nor the \.npz of an encoder"):
        check_folder(tmp_path)


def test_absolute_and_relative_errors():
    ours, golden = np.array([1.0, 20.0002]), np.array([1.0, 20.0])
    assert compare("f", "q", ours, golden, 2e-5).ok
    absolute = compare("f", "q", ours, golden, 2e-5, absolute=True)
    assert not absolute.ok
    np.testing.assert_allclose(absolute.error, 2e-4)
