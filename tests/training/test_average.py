"""The moving average of the trained weights: its numbers, and where it takes their place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parameters import named_leaves
from spectralmoe_jax.training.step import init_state, make_train_step
from spectralmoe_jax.training.train import run_experiment
from tests.training.fake_experiment import make_config, make_experiment
from tests.training.test_resume import records, saved, without_timing


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_of_a_known_sequence(decay):
    """Weights 3 - n after step n; by the sum of decay ** (n - i) w_i, and by optax's debiased average."""
    optimizer = optax.sgd(1.0)
    step = make_train_step(lambda params, *rest: (params["w"], {}), optimizer, ema=decay)
    state = init_state({"w": jnp.asarray(3.0)}, optimizer, has_average=True)
    assert float(state.result["w"]) == 3
    theirs = optax.ema(decay)
    their_state = theirs.init(jnp.zeros(()))
    for n in range(1, 9):
        state, _ = step(state, {}, {}, jax.random.key(0))
        steps = np.arange(1, n + 1)
        weights = decay ** (n - steps.astype(np.float64))
        assert float(state.params["w"]) == 3 - n
        assert float(state.result["w"]) == pytest.approx(np.average(3.0 - steps, weights=weights), abs=1e-5)
        average, their_state = theirs.update(state.params["w"], their_state)
        # optax computes 1 - decay ** n, of which float32 keeps three digits for a decay next to 1
        assert float(state.result["w"]) == pytest.approx(float(average), abs=3e-3 if decay > 0.99 else 1e-5)


class Interrupted(Exception):
    pass


def everything(config, workdir):
    """All that the last checkpoint holds, as bytes."""
    experiment = make_experiment()
    step, state = saved(experiment, config, workdir)
    with CheckpointStore(workdir, config) as store:
        average = named_leaves(store.restore_average(step, experiment.trainable))
    return step, state, {name: np.asarray(leaf).tobytes() for name, leaf in average.items()}


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    def interrupt(step):
        if step == 9:
            raise Interrupted

    config = make_config(steps=14, checkpoint_every=3, evaluate_every=4, accumulate=2, ema=0.8)
    run_experiment(make_experiment(), config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_experiment(make_experiment(interrupt), config, tmp_path / "again")
    run_experiment(make_experiment(), config, tmp_path / "again")
    assert everything(config, tmp_path / "again") == everything(config, tmp_path / "whole")
    again, whole = (without_timing(records(tmp_path / name)) for name in ("again", "whole"))
    assert again == whole


def test_the_average_is_evaluated_and_loaded(tmp_path):
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(params))
        return {"miou": -len(seen)}  # the first is the best

    config = make_config(steps=6, evaluate_every=3, ema=0.9)
    result = run_experiment(make_experiment(evaluate=evaluate), config, tmp_path / "with")
    assert result["best"] == 3
    trainable = make_experiment().trainable
    with CheckpointStore(tmp_path / "with", config) as store:
        for step, wanted in zip((3, 6), seen, strict=True):
            jax.tree.map(np.testing.assert_array_equal, store.restore_params(step, trainable), wanted)
        _, without = saved(make_experiment(), config, tmp_path / "with")
    assert seen[-1]["first"]["kernel"].tobytes() not in without.values()  # beside what goes on training


def test_training_itself_does_not_know_of_the_average(tmp_path):
    with_average, off = make_config(steps=6, ema=0.9), make_config(steps=6)
    run_experiment(make_experiment(), with_average, tmp_path / "with")
    run_experiment(make_experiment(), off, tmp_path / "off")
    states = [saved(make_experiment(), off, tmp_path / name) for name in ("with", "off")]
    assert states[0] == states[1]
    assert (tmp_path / "with/checkpoints/6/average").is_dir()
    assert not (tmp_path / "off/checkpoints/6/average").exists()


def test_off_is_no_part_of_the_state():
    optimizer = optax.sgd(1.0)
    params = {"w": jnp.zeros(3)}
    off, on = (init_state(params, optimizer, has_average=given) for given in (False, True))
    assert {*named_leaves(on)} - {*named_leaves(off)} == {"average/w"}
    assert off.result is off.params


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_switching_it_on_or_off_while_training(tmp_path):
    run_experiment(make_experiment(), make_config(steps=4), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"config.train.ema = 0.9: needs a run that has it .*checkpoints/4"):
        run_experiment(make_experiment(), make_config(steps=8, ema=0.9), tmp_path)
    assert contents(tmp_path) == before
    assert run_experiment(make_experiment(), make_config(steps=5), tmp_path)["step"] == 5
    other = tmp_path / "other"
    run_experiment(make_experiment(), make_config(steps=4, ema=0.9), other)
    assert run_experiment(make_experiment(), make_config(steps=8), other)["step"] == 8
    assert not (other / "checkpoints/8/average").exists()
