"""Parity with the released implementation and the published mathematics; deviations are detected."""

import json
import shutil

import numpy as np
import pytest

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parity.adapter_goldens import verify_adapter
from spectralmoe_jax.parity.comparison import compare
from spectralmoe_jax.parity.segmenter_goldens import verify_segmenter
from spectralmoe_jax.parity.verify import check_folder, verify
from spectralmoe_jax.weights.name_rules import Rule, read_tensors, write_tensors

ADAPTERS = [
    f"{folder}/adapter_{gating}_k{k}_{mode}"
    for folder, modes in (("released_adapter", ("eval", "train")), ("paper_adapter", ("eval",)))
    for gating in ("laplace", "softmax", "gaussian")
    for k in (1, 2)
    for mode in modes
] + [f"paper_adapter/adapter_laplace_k2_{name}" for name in ("train", "add", "none", "visual_value")]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(goldens, name):
    checks = verify_adapter(goldens / f"{name}.npz")
    assert {check.quantity.split()[0] for check in checks} == {
        "outputs", "balance_losses", "queries", "objective", "gradients"
    }  # fmt: skip
    assert not [check for check in checks if not check.ok]


def test_segmenter(goldens):
    checks = verify_segmenter(goldens / "released_tiny" / "dinov3_laplace_k1.json")
    assert len(checks) == 11
    assert not [check for check in checks if not check.ok]


@pytest.mark.slow
def test_dofa_segmenter(reference):
    """Its 13 MB of weights do not travel with the tests."""
    checks = verify_segmenter(reference / "goldens" / "released_tiny" / "dofa_laplace_k1.json")
    assert len(checks) == 11
    assert not [check for check in checks if not check.ok]


def test_golden_without_its_weights_is_skipped(goldens, tmp_path, capsys):
    for suffix in (".json", ".npz"):
        shutil.copy(goldens / "released_tiny" / f"dofa_laplace_k1{suffix}", tmp_path)
    assert verify(tmp_path)
    out = capsys.readouterr().out
    assert "skipped: dofa_laplace_k1.safetensors is not here" in out
    assert "0 checked, 0 missed, 1 skipped" in out


def test_a_wrong_number_is_a_miss(goldens, tmp_path, capsys):
    source = goldens / "released_adapter" / "adapter_softmax_k1_eval.npz"
    with np.load(source) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays["outputs"] = arrays["outputs"] * (1 + 3e-5)
    np.savez(tmp_path / source.name, **arrays)
    assert not verify(tmp_path)
    out = capsys.readouterr().out
    assert "MISS" in out
    assert "5 checked, 1 missed" in out


def test_folder_without_goldens(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        check_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_folder(tmp_path / "missing")
    (tmp_path / "adapter_x.npz").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match=r"adapter_x\.npz: not a readable golden"):
        check_folder(tmp_path)


def test_state_dict_mismatch_lists_every_tensor(goldens, tmp_path):
    from safetensors.numpy import load_file, save_file

    stem = goldens / "released_tiny" / "dinov3_laplace_k1"
    tensors = load_file(f"{stem}.safetensors")
    tensors["backbone.extra"] = tensors.pop("backbone.cls_token")
    tensors["decode_head.query_feat.weight"] = np.zeros((3, 32), np.float32)
    save_file(tensors, tmp_path / "x.safetensors")
    shutil.copy(f"{stem}.npz", tmp_path / "x.npz")
    shutil.copy(f"{stem}.json", tmp_path / "x.json")
    with pytest.raises(UserError) as error:
        verify_segmenter(tmp_path / "x.json")
    for part in ("missing (1): backbone.cls_token", "unexpected (1): backbone.extra", "(3, 32) does not fit"):
        assert part in str(error.value)


def test_hyperparameter_mismatch(goldens, tmp_path):
    stem = goldens / "released_tiny" / "dinov3_laplace_k1"
    meta = json.loads(stem.with_suffix(".json").read_text())
    meta["head"]["num_classes"] = 7
    for suffix in (".npz", ".safetensors"):
        shutil.copy(f"{stem}{suffix}", tmp_path / f"x{suffix}")
    (tmp_path / "x.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"cls_embed\.weight \(6, 32\) does not fit"):
        verify_segmenter(tmp_path / "x.json")


def test_conversion_rules_only_move_axes():
    rules = [Rule("layer.{i}.weight", ("kernel",), "linear"), Rule("conv", ("conv",), "conv")]
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.weight": rng.normal(size=(3, 5)) for i in range(2)} | {
        "conv": rng.normal(size=(2, 3, 4, 5))
    }
    read = read_tensors(rules, {("kernel",): (2, 5, 3), ("conv",): (4, 5, 3, 2)}, tensors, file="x")
    assert read["kernel",][1, 4, 2] == tensors["layer.1.weight"][2, 4]
    assert read["conv",][3, 4, 2, 1] == tensors["conv"][1, 2, 3, 4]
    back = write_tensors(rules, read)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[k], tensors[k]) for k in back)


def test_comparison_detects_shapes_and_nan():
    assert not compare("f", "q", np.zeros(3), np.zeros(4), 1.0).ok
    assert not compare("f", "q", np.array([np.nan]), np.zeros(1), 1.0).ok
    assert compare("f", "q", np.array([1.0, 10.1]), np.array([1.0, 10.0]), 0.011).ok
    assert not compare("f", "q", np.array([1.0, 10.1]), np.array([1.0, 10.0]), 0.009).ok
