"""A linear head that starts at the minimum of its loss on the features of the model as it starts."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import patch_classes
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parameters import join, named_leaves
from spectralmoe_jax.training.train import build_experiment, run_experiment, train
from tests.adapters import peer_formulas
from tests.tiny_run import SIZES
from tests.training.fake_experiment import make_config, make_experiment
from tests.training.test_resume import saved

PENALTY = 0.02
TINY = [
    *(value for value in SIZES if not value.startswith("model.head")), "model.head.kind=linear",
    "model.visual.trainable=false", "model.adapter.zero_start=true", "train.head_start=probe",
    f"train.probe_penalty={PENALTY}", "train.probe_tiles=3", "train.batch_size=2",
]  # fmt: skip


# patches, which tests/models/test_linear_probe.py compares quickly
@pytest.fixture(scope="module", params=["pixels", pytest.param("patches", marks=pytest.mark.slow)])
def config(request):
    given = [*TINY, f"model.head.labels={request.param}"]
    return load_config("configs/quickstart.py", [f"--config.{value}" for value in given])


@pytest.fixture(scope="module")
def experiment(config):
    return build_experiment(config)


@pytest.fixture(scope="module")
def started(experiment):
    return experiment.prepare(experiment.trainable)


def test_only_the_head_is_replaced(experiment, started):
    before, after = named_leaves(experiment.trainable), named_leaves(started)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head/classifier/kernel", "head/classifier/bias"}
    for name in changed:
        assert (after[name].shape, after[name].dtype) == (before[name].shape, before[name].dtype)
        assert after[name].sharding == before[name].sharding


def test_the_training_loss_starts_at_its_minimum(experiment, started):
    """By the run's own loss over the tiles that the head was fitted to: two batches of two for 3 tiles.

    The features of training are the fitted ones, for the output projection is zero. At the minimum the
    gradient of the bias vanishes, and that of the kernel points against the penalty's.
    """
    batches = list(itertools.islice(experiment.make_batches(0), 2))

    def entropy(head, trainable):
        trainable = {**trainable, "head": {"classifier": head}}
        losses = [experiment.loss_fn(trainable, experiment.frozen, b, jax.random.key(0))[1] for b in batches]
        return sum(loss["loss_cls"] for loss in losses) / 2

    value_and_gradient = jax.jit(jax.value_and_grad(entropy))
    fitted, gradient = value_and_gradient(started["head"]["classifier"], started)
    random, steep = value_and_gradient(experiment.trainable["head"]["classifier"], experiment.trainable)
    assert fitted < 0.8 * random
    assert jnp.abs(gradient["bias"]).max() < 1e-4 < 1e-2 < jnp.abs(steep["bias"]).max()
    assert jnp.sum(gradient["kernel"] * started["head"]["classifier"]["kernel"]) < 0


def test_the_training_loss_is_that_of_pixels_or_patches(config, experiment):
    """Against the mean over them in NumPy."""
    batch, classes = next(experiment.make_batches(0)), len(config.classes.names)
    model = join(abstract_segmenter(segmenter_config(config)), experiment.trainable, experiment.frozen)
    logits = np.asarray(model(model.normalise(batch["image"])).logits, np.float64)
    labels = np.asarray(batch["label"])
    if config.model.head.labels == "patches":
        labels = patch_classes(labels, logits.shape[1], classes)
    else:
        logits = np.stack([peer_formulas.bilinear(x, labels.shape[1:]) for x in logits])
    known = (labels >= 0) & (labels < classes)
    wanted = -np.log(peer_formulas.softmax(logits)[known, labels[known]]).mean()
    terms = experiment.loss_fn(experiment.trainable, experiment.frozen, batch, jax.random.key(0))[1]
    np.testing.assert_allclose(terms["loss_cls"], wanted, rtol=1e-5)


def test_the_start_depends_on_the_seed_alone(config, experiment, started):
    again = build_experiment(config)
    for name, leaf in named_leaves(again.prepare(again.trainable)).items():
        assert np.asarray(leaf).tobytes() == np.asarray(named_leaves(started)[name]).tobytes(), name


class Interrupted(Exception):
    pass


def test_a_new_run_is_prepared_and_a_resumed_one_is_not(tmp_path):
    calls = []

    def halved(trainable):
        calls.append(trainable)
        return jax.tree.map(lambda leaf: leaf / 2, trainable)

    def interrupt_at_3(step):
        if step == 3:
            raise Interrupted

    config = make_config(steps=4)
    interrupted = dataclasses.replace(make_experiment(interrupt_at_3), prepare=halved)
    with pytest.raises(Interrupted):
        run_experiment(interrupted, config, tmp_path / "parts")
    run_experiment(dataclasses.replace(make_experiment(), prepare=halved), config, tmp_path / "parts")
    assert len(calls) == 1
    plain = make_experiment()
    run_experiment(dataclasses.replace(plain, trainable=halved(plain.trainable)), config, tmp_path / "whole")
    assert saved(plain, config, tmp_path / "parts") == saved(plain, config, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_from_the_command_line_starts_fitted(config, tmp_path, capsys):
    """Its first loss is that of the fitted head, far below that of chance; the first steps leave it low."""
    values = {"train.steps": 3, "train.head_first_steps": 1, "train.evaluate_every": 3}
    train(config.replaced(values), tmp_path)
    said = capsys.readouterr().out
    assert "head fitted to 4 tiles, cross-entropy 0." in said
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(record["loss_cls"] for record in losses if record["kind"] == "train")
    assert first < 0.8 * np.log(len(config.classes.names))


def test_mask2former_is_refused():
    with pytest.raises(UserError) as told:
        load_config("configs/dubai.py", ["--config.train.head_start=probe"])
    assert str(told.value) == (
        "config.train.head_start = 'probe': no regression fits config.model.head.kind = 'mask2former': set "
        "config.train.head_first_steps, which trains the head alone at first"
    )
