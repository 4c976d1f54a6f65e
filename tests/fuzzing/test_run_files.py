"""Files that a run keeps beside its checkpoints: read as they were written, or refused in one line."""

import json
import os
import zipfile

import numpy as np
import pytest

from spectralmoe_jax.ablation.stored_results import RESULTS_FILE, read_results
from spectralmoe_jax.ablation.tables import caption, csv_of_runs, header, rows
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ImageCounts, read_images, write_images
from spectralmoe_jax.evaluation.stored_scores import EVALUATION_FILE, read_evaluation, write_evaluation
from spectralmoe_jax.inference.calibration import Calibration, add_calibration, read_calibrations
from spectralmoe_jax.inference.pictures import PICTURES_FILE, ScenePictures, read_pictures
from spectralmoe_jax.training.logging import METRICS_FILE, MetricsLog, read_metrics
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all

SIZES = [(0, 60), pytest.param(1, 600, marks=pytest.mark.slow)]
_SCORES = {
    "miou": 0.5, "overall_accuracy": 0.75, "kappa": float("nan"), "iou": {"a": 0.5, "b": float("nan")},
    "accuracy": {"a": 0.75, "b": 1.0}, "f1": {"a": 0.5, "b": 0.25}, "confusion": [[3, 1], [0, 2]],
}  # fmt: skip
EVALUATION = {
    "classes": ["a", "b"], "images": 2, "miou": 0.5, "mean_miou": 0.5, "all": _SCORES,
    "domains": {"p1": _SCORES}, "trainable": 12, "step": 20, "trained": 30, "complete": True,
    "routing": [{"layer": 1, "modality": "visual", "nmi": 0.25, "counts": [[1, 2], [3, 4]]}],
}  # fmt: skip
_MEAN = {"mean": 0.5, "std": None, "runs": 1}
RESULTS = {
    "title": "t", "base": "b", "reference": "one", "seeds": [0], "classes": ["a"], "images": 2,
    "bootstrap": {"resamples": 10, "level": 0.95, "over": ["images", "seeds"]},
    "variants": {
        name: {
            "settings": {}, "miou": _MEAN, "held_out": _MEAN, "iou": {"a": _MEAN},
            "runs": [{"seed": 0, "miou": 0.5, "iou": {"a": 0.5}, "domains": {"p": 0.5}, "trainable": 3}],
            "difference": difference,
        }
        for name, difference in (
            ("one", None), ("two", {"mean": 0.1, "by_seed": [0.1], "interval": [0.0, 0.2]})
        )
    },
}  # fmt: skip


def _plain(value):
    """JSON's view of a value: NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_evaluation(seed, count, tmp_path, record_property):
    """Its checksum sees what its form does not."""
    write_evaluation(EVALUATION, tmp_path)
    path = tmp_path / EVALUATION_FILE
    good = path.read_bytes()
    variants = [*damaged(good, count // 2, seed), *reshaped(json.loads(good), count // 2, seed)]

    def read(variant):
        path.write_bytes(variant)
        return read_evaluation(tmp_path)

    def is_exact(variant, found):
        return {key: found[key] for key in EVALUATION} == _plain(EVALUATION)

    try_all(variants, read, is_exact, record_property, "evaluation.json")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_results(seed, count, tmp_path, record_property):
    """Without a checksum: what is read is what the file says, and has all that a page needs."""
    path = tmp_path / RESULTS_FILE
    good = json.dumps(RESULTS, indent=1).encode()
    variants = [*damaged(good, count // 2, seed), *reshaped(RESULTS, count // 2, seed)]

    def read(variant):
        path.write_bytes(variant)
        found = read_results(tmp_path)
        caption(found), header(found), rows(found), csv_of_runs(found)
        return found

    def is_exact(variant, found):
        return json.dumps(found, sort_keys=True) == json.dumps(json.loads(variant), sort_keys=True)

    try_all(variants, read, is_exact, record_property, "results.json")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_metrics(seed, count, tmp_path, record_property):
    """Damaged lines are left out; what is left is what the other lines say, and a run resumes."""
    path = tmp_path / METRICS_FILE
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.write(step, "train", {"loss": 1.5 / step, "learning_rate": 1e-3})
            log.write_arrays(step, "experts", {"expert_usage": np.full((2, 1, 3), 1 / 3)})
    good = path.read_bytes()
    lines = [line + b"\n" for line in good.splitlines()]
    reshaped_lines = [
        (what, b"".join([*lines[:3], variant + b"\n", *lines[4:]]))
        for what, variant in reshaped(json.loads(lines[3]), count // 2, seed)
    ]

    def read(variant):
        path.write_bytes(variant)
        found = read_metrics(tmp_path)
        MetricsLog(tmp_path, 3).__exit__()
        return found, path.read_bytes()

    def is_exact(variant, found):
        records, rest = found
        said = {line.strip() for line in variant.split(b"\n")}
        kept = [record for of_kind in records.values() for record in of_kind]
        is_whole = all(json.dumps(record).encode() in {_again(line) for line in said} for record in kept)
        intact = [line for line in lines if line.strip() in said]
        steps = [json.loads(line)["step"] for line in rest.splitlines()]
        read_all = all(json.loads(line) in records[json.loads(line)["kind"]] for line in intact)
        return is_whole and read_all and all(step <= 3 for step in steps)

    variants = [*damaged(good, count // 2, seed), *reshaped_lines]
    try_all(variants, read, is_exact, record_property, "metrics.jsonl")


def _again(line):
    try:
        return json.dumps(json.loads(line)).encode()
    except (ValueError, RecursionError):
        return None


def _same(found, wanted):
    return all(
        np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype
        for one, other in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_images(seed, count, tmp_path, record_property):
    path, random = tmp_path / "evaluation.npz", np.random.default_rng(0)
    images = [ImageCounts("p", f"i{i}", random.integers(0, 99, (3, 3))) for i in range(4)]
    write_images(images, path)
    good = path.read_bytes()

    def read(variant):
        path.write_bytes(variant)
        return read_images(path)

    def is_exact(variant, found):
        return len(found) == 4 and all(_same(one, other) for one, other in zip(found, images, strict=True))

    try_all(damaged(good, count, seed), read, is_exact, record_property, "evaluation.npz")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_pictures(seed, count, tmp_path, record_property):
    random = np.random.default_rng(0)

    def drawn(*shape, kind=np.uint8):
        return random.integers(0, 99, shape).astype(kind)

    scene = ScenePictures(
        "p", "i", drawn(8, 8, 3), drawn(8, 8), drawn(8, 8), drawn(2, 1, 2, 2, kind=np.uint16),
        drawn(3, 2, 2, 3), np.arange(1, 4),
    )  # fmt: skip
    path = tmp_path / PICTURES_FILE
    np.savez_compressed(path, **{f"0/{name}": value for name, value in scene._asdict().items()})
    good = path.read_bytes()

    def read(variant):
        path.write_bytes(variant)
        return read_pictures(tmp_path)

    def is_exact(variant, found):
        return len(found) == 1 and _same(found[0], scene)

    try_all(damaged(good, count, seed), read, is_exact, record_property, "pictures.npz")


@pytest.mark.parametrize(("seed", "count"), SIZES)
def test_calibration(seed, count, tmp_path, record_property):
    path = tmp_path / "calibration.npz"
    fitted = Calibration("abc", 1.5, np.arange(4, dtype=np.float32), np.eye(4, dtype=np.float32), 2.0)
    add_calibration(fitted, path)
    good = path.read_bytes()

    def read(variant):
        path.write_bytes(variant)
        return read_calibrations(path)

    def is_exact(variant, found):
        return len(found) == 1 and _same(found[0], fitted)

    try_all(damaged(good, count, seed), read, is_exact, record_property, "calibration.npz")


def test_arrays_that_state_another_size(tmp_path):
    """A header that asks for far more than the file holds, in an archive whose checksums are right."""
    path = tmp_path / PICTURES_FILE
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0/image.npy", header + len(text).to_bytes(2, "little") + text + bytes(64))

    def read(variant):
        return read_pictures(tmp_path)

    try_all([("size", b"")], read, lambda variant, found: False, lambda name, value: None, "sizes")


def test_lines_without_an_end_and_logs_that_are_no_files(tmp_path, caplog):
    """A line of 40 MB is damaged, and those around it are read; a pipe is not waited for."""
    path = tmp_path / METRICS_FILE
    good = [{"step": step, "kind": "train", "loss": 0.5} for step in (1, 2)]
    lines = [json.dumps(record).encode() for record in good]
    long = b'{"step": 1, "kind": "train", "x": [' + b"1," * (20 << 20) + b"1]}"
    path.write_bytes(b"\n".join([lines[0], long, b"\0" * 100, lines[1]]))  # the last one without a newline
    assert read_metrics(tmp_path) == {"train": good}
    assert "line 2 is damaged and left out (2 of its lines)" in caplog.text
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not an ordinary file"):
        read_metrics(tmp_path)
