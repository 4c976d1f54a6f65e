"""Checkpoints: every flipped bit of the weights is refused; damage to any file names it, or does no harm."""

import json
import os
import shutil
import zlib

import jax
import numpy as np
import pytest

from spectralmoe_jax.checkpoints.checksums import CHECKSUMS_FILE
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parameters import named_leaves
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.train import run_experiment
from tests.fuzzing.mutations import damaged
from tests.fuzzing.outcome import try_all
from tests.training.fake_experiment import make_config, make_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a best and a last checkpoint, and all that it stores."""
    workdir = tmp_path_factory.mktemp("run")
    config = make_config(steps=16, evaluate_every=7, checkpoint_every=4, ema=0.9)
    scores = iter((0.9, 0.3, 0.2))
    run_experiment(make_experiment(evaluate=lambda params: {"miou": next(scores)}), config, workdir)
    assert sorted(place.name for place in (workdir / "checkpoints").iterdir()) == ["16", "7"]
    return workdir, config


def _read(workdir, config):
    """All that commands read of checkpoints: which is best and last, records, and every array."""
    experiment = make_experiment()
    params = jax.tree.map(np.asarray, experiment.trainable)
    with CheckpointStore(workdir, config) as store:
        found = {"best": store.best, "last": store.last, "held out": store.held_out(store.last)}
        for step in (store.best, store.last):
            state = store.restore(step, params, make_optimizer(config.train, params).init(params))
            average = store.restore_average(step, params)
            leaves = named_leaves((*state, average))
            found[step] = {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}
    return found


@pytest.fixture(scope="module")
def wanted(run):
    return _read(*run)


def _variants(run, copy, pattern, count, seed):
    """Copies of the run with one file damaged, restored after each."""
    files = sorted(path for path in (run[0] / "checkpoints").glob(pattern) if path.is_file())
    assert files
    for number, file in enumerate(files * (1 + count // len(files))):
        good = file.read_bytes()
        place = copy / file.relative_to(run[0])
        for what, data in damaged(good, 1, seed + number):
            yield f"{file.relative_to(run[0])}: {what}", (place, data, good)


def _try(run, wanted, variants, copy, record, name):
    def read(variant):
        place, data, good = variant
        place.unlink() if data is None else place.write_bytes(data)
        try:
            return _read(copy, run[1])
        finally:
            place.write_bytes(good)

    return try_all(variants, read, lambda variant, found: found == wanted, record, name)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "run")


@pytest.mark.parametrize(("seed", "count"), [(0, 40), pytest.param(1, 200, marks=pytest.mark.slow)])
def test_flipped_bits_of_weights(run, wanted, copy, seed, count, record_property):
    files = sorted((run[0] / "checkpoints").glob("*/*/d/*"))
    files += sorted((run[0] / "checkpoints").glob("*/*/ocdbt.process_*/d/*"))
    random = np.random.default_rng(seed)
    variants = []
    for number in range(count):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        place, bit = int(random.integers(len(data))), int(random.integers(8))
        data[place] ^= 1 << bit
        target = copy / file.relative_to(run[0])
        variants.append((f"{target}: bit {bit} of {place}", (target, bytes(data), file.read_bytes())))
    counts = _try(run, wanted, variants, copy, record_property, "checkpoint, flipped bits")
    assert counts["refused"] == count


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 400, marks=pytest.mark.slow)])
def test_damage_to_any_file(run, wanted, copy, seed, count, record_property):
    variants = _variants(run, copy, "*/**/*", count, seed)
    _try(run, wanted, variants, copy, record_property, "checkpoint, any file")


def test_any_file_is_missing(run, wanted, copy, record_property):
    files = [path for path in copy.glob("checkpoints/*/**/*") if path.is_file()]
    variants = [(f"no {path}", (path, None, path.read_bytes())) for path in files]
    _try(run, wanted, variants, copy, record_property, "checkpoint, missing files")


PLACES = ("_CHECKPOINT_METADATA", "checksums.json", "average/_METADATA", "metrics/metrics")


@pytest.mark.parametrize("has_checksums", [True, False])
def test_files_without_an_end(run, wanted, copy, has_checksums, record_property):
    """Pipes are not waited for, devices and huge files not read: Orbax never sees them."""
    variants = []
    for place in PLACES:
        for kind in ("pipe", "device", "dangling link", "folder", "huge"):
            if not (place == "checksums.json" and kind == "dangling link"):  # the same as without one
                variants.append((f"{kind} for {place}", (copy / "checkpoints" / "16" / place, kind)))
    if not has_checksums:
        (copy / "checkpoints" / "16" / CHECKSUMS_FILE).unlink()
        variants = [variant for variant in variants if "checksums.json" not in variant[0]]

    def read(variant):
        path, kind = variant
        aside = path.rename(copy / "aside")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "huge":
            path.touch()
            os.truncate(path, 1 << 40)
        else:
            path.symlink_to("/dev/zero" if kind == "device" else copy / "nothing")
        try:
            return _read(copy, run[1])
        finally:
            path.rmdir() if kind == "folder" else path.unlink()
            aside.rename(path)

    counts = try_all(
        variants, read, lambda variant, found: False, record_property, "checkpoint, no ordinary files"
    )
    assert counts["refused"] == len(variants)


@pytest.mark.parametrize(
    "name",
    ["020", "\u00b2", "\u0663", "-1", "+20", "2e1", "20.0", "9" * 21, "20.orbax-checkpoint-tmp", "best"],
)
def test_folders_that_are_no_checkpoints(run, wanted, copy, name):
    shutil.copytree(copy / "checkpoints" / "16", copy / "checkpoints" / name)
    assert _read(copy, run[1]) == wanted


def test_a_checkpoint_under_the_name_of_another(run, copy):
    folder = copy / "checkpoints"
    for old, new in (("16", "x"), ("7", "16"), ("x", "7")):
        (folder / old).rename(folder / new)
    with pytest.raises(UserError, match="16: is the checkpoint of step 7: give it its name back"):
        _read(copy, run[1])


def _forged(files):
    record = json.dumps(files, sort_keys=True).encode()
    return json.dumps({"files": files, "itself": zlib.crc32(record)})


@pytest.mark.parametrize(
    "files",
    [
        {}, {"a": 1}, {"a": [1]}, {"a": [1, 2, 3]}, {"a": ["x", None]}, {"../../x": [1, 2]},
        {"/dev/zero": [1, 2]}, {"a\0b": [1, 2]}, {"\ud800": [1, 2]}, {"metrics/metrics": [True, 1]},
    ],
)  # fmt: skip
def test_checksums_that_match_themselves_and_nothing_else(files, run, copy):
    (copy / "checkpoints" / "16" / CHECKSUMS_FILE).write_text(_forged(files))
    with pytest.raises(UserError) as error:
        _read(copy, run[1])
    assert "\n" not in str(error.value)
    assert CHECKSUMS_FILE in str(error.value)


@pytest.mark.parametrize("score", ["Infinity", "-Infinity", "true", "null", "1e999", "9" * 400, '"1"'])
def test_scores_that_are_no_scores(score, run, copy):
    place = copy / "checkpoints" / "16"
    (place / CHECKSUMS_FILE).unlink()
    (place / "metrics" / "metrics").write_text(f'{{"miou": {score}}}')
    with pytest.raises(UserError, match="damaged, a score is not a number"):
        _read(copy, run[1])


@pytest.mark.parametrize("model", [5, [1], None, "x"])
def test_a_record_of_no_model(model, run, copy):
    place = copy / "checkpoints" / "16"
    (place / CHECKSUMS_FILE).unlink()
    path = place / "_CHECKPOINT_METADATA"
    record = json.loads(path.read_text())
    record["custom_metadata"] |= {"fingerprint": "", "model": model}
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="does not say of which model"):
        _read(copy, run[1])


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count"), [(0, 60), (1, 200)])
def test_damage_without_checksums(run, wanted, copy, seed, count, record_property):
    """As of earlier versions: what cannot be read is one line; other values may go unnoticed."""
    for file in copy.glob(f"checkpoints/*/{CHECKSUMS_FILE}"):
        file.unlink()
    variants = [
        variant
        for variant in _variants(run, copy, "*/**/*", count, seed)
        if variant[1][0].name != CHECKSUMS_FILE
    ]

    def read(variant):
        place, data, good = variant
        place.write_bytes(data)
        try:
            return _read(copy, run[1])
        finally:
            place.write_bytes(good)

    def is_exact(variant, found):
        arrays = (found[found["last"]], wanted[wanted["last"]])
        sizes = [{name: len(data) for name, data in each.items()} for each in arrays]
        return sizes[0] == sizes[1]

    try_all(variants, read, is_exact, record_property, "checkpoint without checksums")
