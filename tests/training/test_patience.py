"""A run that ends when its held-out score no longer improves."""

import itertools
import math

import pytest

from spectralmoe_jax.checkpoints.held_out import HeldOut
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import TrainConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import is_complete
from spectralmoe_jax.training.train import build_experiment, run_experiment
from tests.tiny_run import SIZES
from tests.training.fake_experiment import make_config, make_experiment
from tests.training.test_resume import records, saved, without_timing

SCORES = (0.1, 0.5, 0.5, math.nan, 0.4, 0.6, 0.7)  # at steps 2, 4, ...: none above 0.5 in 6, 8 and 10


class Interrupted(Exception):
    pass


def run(workdir, patience, interrupt_at=None, scores=SCORES, **train):
    def on_batch(step):
        if step == interrupt_at:
            raise Interrupted

    given = iter(scores)
    experiment = make_experiment(on_batch, evaluate=lambda params: {"miou": next(given)})
    config = make_config(steps=14, evaluate_every=2, patience=patience, **train)
    return run_experiment(experiment, config, workdir), config


def test_the_count_of_evaluations():
    """By hand: an equal score and NaN are no improvement, before the first number as well."""
    record = HeldOut()
    found = [record := record.after(score) for score in (math.nan, *SCORES)]
    assert [one.waited for one in found] == [1, 0, 0, 1, 2, 3, 0, 0]
    assert [one.best for one in found] == [None, 0.1, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7]
    ended = [one.is_complete(5, TrainConfig(steps=9, patience=3)) for one in found]
    assert ended == [False] * 5 + [True] + [False] * 2
    assert not any(one.is_complete(8, TrainConfig(steps=9)) for one in found)
    assert all(one.is_complete(9, TrainConfig(steps=9)) for one in found)
    assert HeldOut.read(found[3].stored("miou"), "miou") == found[3]
    assert HeldOut.read(found[3].stored("miou"), "mean_miou") is None


def test_ends_and_is_complete(tmp_path, capsys):
    result, config = run(tmp_path, patience=3)
    assert (result["step"], result["best"]) == (10, 6)
    said = capsys.readouterr().out
    assert "complete at step 10: 3 evaluations without a better held-out miou" in said
    assert "resumes" not in said
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "evaluate"] == [2, 4, 6, 8, 10]
    assert is_complete(tmp_path, config)
    assert not is_complete(tmp_path, config.replaced({"train.patience": 4}))
    assert not is_complete(tmp_path / "nothing", config)

    # the same command again does nothing; with more patience the run goes on
    before = records(tmp_path)
    assert run(tmp_path, patience=3, scores=())[0]["step"] == 10
    assert records(tmp_path) == before
    result, config = run(tmp_path, patience=4, scores=SCORES[5:])
    assert (result["step"], result["best"]) == (14, 14)
    assert is_complete(tmp_path, config)


@pytest.mark.slow
def test_interrupted_while_waiting(tmp_path):
    """The count goes on where it was, also from a checkpoint between two evaluations."""
    whole, config = run(tmp_path / "whole", patience=3)
    assert whole["step"] == 10
    for first, stop in itertools.pairwise((0, 5, 7, 9)):
        with pytest.raises(Interrupted):
            run(tmp_path / "parts", 3, stop, SCORES[first // 2 :], checkpoint_every=1)
    assert run(tmp_path / "parts", 3, scores=SCORES[4:], checkpoint_every=1)[0]["step"] == 10
    experiment = make_experiment()
    assert saved(experiment, config, tmp_path / "parts") == saved(experiment, config, tmp_path / "whole")
    assert without_timing(records(tmp_path / "parts")) == without_timing(records(tmp_path / "whole"))


def test_a_checkpoint_without_a_record_counts_from_the_best_score(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "stored", lambda self, metric: None)
        run(tmp_path, patience=None, scores=(*SCORES[:5], 0.3, 0.4))
    with CheckpointStore(tmp_path, make_config()) as store:
        assert (store.best, store.held_out(14)) == (6, HeldOut(0.5, 0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.patience=2",
            r"config\.train\.patience = 2: needs held-out images: set config\.data\.holdout",
        ),
        (
            "train.selection=mean_miou",
            r"config\.train\.selection = 'mean_miou': needs .* not of 0: choose miou",
        ),
    ],
)
def test_nothing_held_out(override, message):
    given = [f"--config.{value}" for value in (*SIZES, "data.holdout=0", override)]
    with pytest.raises(UserError, match=message):
        build_experiment(load_config("configs/quickstart.py", given))
