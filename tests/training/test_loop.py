"""The training loop: kept checkpoints, divergence, failures, records."""

import json
import math

import jax.numpy as jnp
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.training.loop import TrainingDiverged
from spectralmoe_jax.training.train import run_experiment
from tests.training.fake_experiment import make_config, make_experiment


def steps_kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.6, 0.4, 0.5], 4),
        ([0.1, 0.2, 0.3, 0.4], 8),
        ([0.5, 0.5, 0.1, 0.2], 4),
        ([math.nan, 0.1, 0.0, math.nan], 4),
    ],
)
def test_best_and_last_are_kept(tmp_path, scores, best):
    given = iter(scores)
    experiment = make_experiment(evaluate=lambda params: {"miou": next(given), "loss": 1.0})
    config = make_config(steps=8, evaluate_every=2, checkpoint_every=1)
    result = run_experiment(experiment, config, tmp_path)
    assert result == {"step": 8, "best": best, "workdir": str(tmp_path)}
    assert steps_kept(tmp_path) == sorted({best, 8})


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path, log_every):
    experiment = make_experiment()
    batches = experiment.make_batches(0)

    def poisoned(start):
        for step in range(start, 100):
            batch = next(batches)
            yield batch | {"x": batch["x"] * (jnp.nan if step == 6 else 1.0)}

    object.__setattr__(experiment, "make_batches", poisoned)
    config = make_config(steps=20, log_every=log_every, checkpoint_every=5, evaluate_every=100)
    with pytest.raises(TrainingDiverged, match=r"not finite at step 7; .*checkpoints/5;"):
        run_experiment(experiment, config, tmp_path)
    assert steps_kept(tmp_path) == [5]
    with CheckpointStore(tmp_path, config) as store:
        assert jnp.all(jnp.isfinite(store.restore_params(5, experiment.trainable)["first"]["kernel"]))


def test_a_failed_evaluation_loses_no_steps(tmp_path):
    """The state is saved without a score: it is the last but never the best, and the run goes on from it."""
    config = make_config(steps=8, evaluate_every=3, checkpoint_every=100)
    scores = iter([{"miou": 0.5}])

    def evaluate(params):
        try:
            return next(scores)
        except StopIteration:
            raise UserError("a mask is gone") from None

    with pytest.raises(UserError, match="a mask is gone"):
        run_experiment(make_experiment(evaluate=evaluate), config, tmp_path)
    with CheckpointStore(tmp_path, config) as store:
        assert (store.last, store.best) == (6, 3)
    again = make_experiment(evaluate=lambda params: {"miou": 0.4})
    assert run_experiment(again, config, tmp_path) == {"step": 8, "best": 3, "workdir": str(tmp_path)}
    trained_on = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 7 in trained_on


def test_a_failing_first_batch_leaves_no_folder(tmp_path):
    def failing(start):
        raise UserError("image.jpg: truncated")
        yield

    experiment = make_experiment()
    object.__setattr__(experiment, "make_batches", failing)
    with pytest.raises(UserError, match="truncated"):
        run_experiment(experiment, make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_values_are_not_changed_or_stored(tmp_path):
    experiment = make_experiment()
    run_experiment(experiment, make_config(steps=3), tmp_path)
    assert float(experiment.frozen["scale"]) == 2.0
    written = [path.read_text() for path in (tmp_path / "checkpoints").rglob("_METADATA")]
    assert written
    assert all("kernel" in text or "mu" in text for text in written)
    assert not any("scale" in text for text in written)


def test_plain_progress_lines_and_tensorboard_records(tmp_path, capsys):
    run_experiment(make_experiment(), make_config(steps=4), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "images/s" in line] == ["1/4", "2/4", "3/4", "4/4"]
    assert list((tmp_path / "tensorboard").glob("*tfevents*"))
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert record.keys() == {
        "step",
        "kind",
        "loss",
        "error",
        "grad_norm",
        "learning_rate",
        "images_per_second",
    }
