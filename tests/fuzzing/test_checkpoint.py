"""Checkpoints: every flipped bit of the weights is refused; damage to any file names it, or does no harm."""

import shutil

import jax
import numpy as np
import pytest

from spectralmoe_jax.checkpoints.checksums import CHECKSUMS_FILE
from spectralmoe_jax.checkpoints.store import CheckpointStore
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
