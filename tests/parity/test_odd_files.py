"""Golden files that are smaller, incomplete or wrong: checked as far as possible, or rejected in one line."""

import json
import shutil

import numpy as np
import pytest

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.parity.adapter_goldens import verify_adapter
from spectralmoe_jax.parity.comparison import Check, compare, worst
from spectralmoe_jax.parity.segmenter_goldens import verify_segmenter

ADAPTER = "released_adapter/adapter_laplace_k2_train.npz"
NAN = float("nan")


def read(path):
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture
def adapter(goldens):
    arrays = read(goldens / ADAPTER)
    return json.loads(str(arrays.pop("meta"))), arrays


@pytest.fixture
def segmenter(goldens, tmp_path):
    """Writes `x.*`, the tiny segmenter with something changed; returns the path of its json."""
    stem = goldens / "released_tiny" / "dinov3_laplace_k1"

    def write(change=lambda meta, arrays: None):
        meta, arrays = json.loads(stem.with_suffix(".json").read_text()), read(stem.with_suffix(".npz"))
        change(meta, arrays)
        shutil.copy(stem.with_suffix(".safetensors"), tmp_path / "x.safetensors")
        np.savez(tmp_path / "x.npz", **arrays)
        (tmp_path / "x.json").write_text(json.dumps(meta))
        return tmp_path / "x.json"

    return write


def write_adapter(folder, meta, arrays):
    path = folder / "adapter_x.npz"
    np.savez(path, meta=json.dumps(meta), **arrays)
    return path


def refusal(capsys, folder):
    assert main(["verify", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def errors(checks):
    return {check.quantity.split(" (")[0]: check for check in checks}


def test_golden_of_one_layer(adapter, tmp_path):
    """Every layer of an adapter golden sees the same tokens, so its first layer is a golden of its own."""
    meta, arrays = adapter
    first = {key: value for key, value in arrays.items() if ".1." not in key and not key.startswith("grad/")}
    for key in ("outputs", "balance_losses", "noise"):
        first[key] = first[key][:1]
    del first["queries"], first["objective"]
    found = errors(verify_adapter(write_adapter(tmp_path, meta | {"num_layers": 1}, first)))
    assert found["outputs"].ok
    assert found["balance_losses"].ok
    for quantity in ("queries", "objective", "gradients"):
        assert found[quantity].bound is None
        assert found[quantity].note in ("not in the file", "none in the file")


def test_a_scalar_in_two_shapes():
    assert compare("f", "q", np.ones(1), np.ones(1), 0.0).ok
    assert compare("f", "q", np.ones(()), np.ones(1), 0.0).ok
    assert not compare("f", "q", np.ones(1), np.full(1, 2.0), 0.4).ok
    assert not compare("f", "q", np.ones((1, 1)), np.ones(1), 1.0).ok


def test_a_different_rank_for_every_expert(adapter, tmp_path):
    """A B = (A/2 A/2) (B over B): the same expert at twice the rank, its gradients following from its own."""
    meta, arrays = adapter
    for layer in (0, 1):
        a, b = f"experts_a.{layer}.1", f"experts_b.{layer}.1"
        arrays[f"param/{a}"] = np.concatenate([arrays[f"param/{a}"] / 2] * 2, axis=1)
        arrays[f"param/{b}"] = np.concatenate([arrays[f"param/{b}"]] * 2, axis=0)
        arrays[f"grad/{a}"] = np.concatenate([arrays[f"grad/{a}"]] * 2, axis=1)
        arrays[f"grad/{b}"] = np.concatenate([arrays[f"grad/{b}"] / 2] * 2, axis=0)
    path = write_adapter(tmp_path, meta | {"rank": [3, 6, 3, 3]}, arrays)
    assert all(check.ok for check in verify_adapter(path))
    arrays["grad/experts_b.1.1"][5, 0] += 1e-2 * np.abs(arrays["grad/experts_b.1.1"]).max()
    found = errors(verify_adapter(write_adapter(tmp_path, meta | {"rank": [3, 6, 3, 3]}, arrays)))
    assert not found["gradients"].ok


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_non_finite_golden_is_a_miss(bad, position):
    golden = np.ones(3)
    golden[position] = bad
    for values in (golden, np.full(3, bad)):
        check = compare("f", "q", np.ones(3), values, 1.0)
        assert (check.error, check.ok, check.note) == (np.inf, False, "golden not finite")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_is_the_worst_of_many(position):
    checks = [Check("f", str(i), 0.5, 1.0) for i in range(3)]
    checks[position] = Check("f", "bad", NAN, 1.0)
    assert worst("f", checks, "all").quantity == "all (3, worst bad)"
    assert not worst("f", checks, "all").ok


@pytest.mark.parametrize("key", ["grad/scale", "grad/w_gate.1.0", "grad/merge.bias"])
def test_a_gradient_of_nan_is_a_miss(adapter, tmp_path, capsys, key):
    meta, arrays = adapter
    arrays[key] = np.full_like(arrays[key], NAN)
    write_adapter(tmp_path, meta, arrays)
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"worst {key.removeprefix('grad/')}" in out
    assert "5 checked, 1 missed" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m, a: a.pop("visual"), "missing: visual"),
        (lambda m, a: a.pop("noise"), "missing: noise"),
        (lambda m, a: a.pop("param/scale"), "missing (1): scale"),
        (lambda m, a: a.update({"param/nosuch": np.zeros(2)}), "unexpected (1): nosuch"),
        (lambda m, a: a.update({"grad/nosuch": np.zeros(2)}), "unexpected: grad/nosuch"),
        (lambda m, a: a.update({"output": np.zeros(2)}), "unexpected: output"),
        (lambda m, a: a.update(visual=a["visual"][..., :-1]), "visual (2, 30, 31), not (any, any, 32)"),
        (lambda m, a: a.update(depth=a["depth"][:, 1:]), "depth (2, 25, 32), not (2, 26, 32)"),
        (lambda m, a: a.update(noise=a["noise"][:, :1]), "noise (2, 1, 50, 4), not (2, 2, 50, 4)"),
        (lambda m, a: a.update(visual=a["visual"][0]), "visual (30, 32), not (any, any, 32)"),
        (lambda m, a: m.update(embed_dim=16), "visual (2, 30, 32), not (any, any, 16)"),
        (lambda m, a: m.update(query_dim=8), "transform.weight (16, 32) does not fit"),
        (lambda m, a: m.update(rank=[3, 2, 3, 3]), "param/experts_a.0.1 (7, 3), not (7, 2)"),
        (lambda m, a: m.update(rank=[3, 3]), "must be one positive rank, or a tuple of num_experts = 4"),
        (lambda m, a: m.update(gating="cosine"), "gating = 'cosine': must be one of"),
        (lambda m, a: m.update(num_layers="two"), "not an adapter golden"),
        (lambda m, a: m.pop("noise_epsilon"), "no 'noise_epsilon'"),
        (lambda m, a: a.update(queries=np.array(["a"])), "queries holds <U1, not numbers"),
    ],
)
def test_an_inconsistent_adapter_golden(adapter, tmp_path, capsys, change, expected):
    meta, arrays = adapter
    change(meta, arrays)
    write_adapter(tmp_path, meta, arrays)
    message = refusal(capsys, tmp_path)
    assert expected in message
    assert "adapter_x.npz" in message


def test_a_broken_archive(goldens, tmp_path, capsys):
    whole = (goldens / ADAPTER).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "adapter_x.npz").write_bytes(content)
        assert "adapter_x.npz: not a readable golden" in refusal(capsys, tmp_path)
    np.savez(tmp_path / "adapter_x.npz", meta="[1]")
    assert "adapter_x.npz: not an adapter golden" in refusal(capsys, tmp_path)


@pytest.mark.slow
def test_a_segmenter_golden_with_fewer_arrays(segmenter):
    """Without their total, the single losses are still compared."""

    def less(meta, arrays):
        for key in [k for k in arrays if k.startswith("grad/")]:
            del arrays[key]
        for key in ("loss_total", "queries", "seg_logits", "balance_loss"):
            del arrays[key]

    found = errors(verify_segmenter(segmenter(less)))
    skipped = {quantity for quantity, check in found.items() if check.bound is None}
    assert skipped == {"queries", "seg_logits", "gradients"}
    assert all(found[quantity].ok for quantity in set(found) - skipped)


def test_the_worst_of_none():
    assert worst("f", [], "losses").bound is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m, a: [a.pop("image"), a.pop("loss_points_2")], "missing: image, loss_points_2"),
        (lambda m, a: a.pop("feature_3"), "missing: feature_3"),
        (lambda m, a: a.update(nosuch=np.zeros(1)), "unexpected: nosuch"),
        (lambda m, a: a.update({"grad/nosuch": np.zeros(1)}), "unexpected: grad/nosuch"),
        (lambda m, a: a.update({"loss/nosuch": np.zeros(1)}), "unexpected: loss/nosuch"),
        (lambda m, a: a.update(label=a["label"][:, :64]), "label (2, 64, 128), not (2, 128, 128)"),
        (lambda m, a: a.update(image=a["image"][:, :3]), "image (2, 3, 128, 128), not (any, 4, 128, 128)"),
        (lambda m, a: a.update(loss_points_0=a["loss_points_0"][1:]), "loss_points_0 (8, 64, 2), not (9,"),
        (lambda m, a: a.update(assignment=a["assignment"] * 9), "not a segmenter golden"),
        (lambda m, a: m.pop("head"), "no 'head'"),
        (lambda m, a: m["adapter"].pop("rank"), "no 'rank'"),
        (lambda m, a: m.update(embed_dim=32), "feature_0 (2, 64, 32, 32), not (2, 32, any, any)"),
    ],
)
def test_an_inconsistent_segmenter_golden(segmenter, tmp_path, capsys, change, expected):
    segmenter(change)
    message = refusal(capsys, tmp_path)
    assert expected in message
    assert "x." in message


def test_truncated_weights(segmenter, tmp_path, capsys):
    segmenter()
    weights = tmp_path / "x.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert "x.safetensors" in refusal(capsys, tmp_path)
