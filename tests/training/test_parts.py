"""Learning rates by part of the model, and a head that is trained first, against plain optax by leaf."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectralmoe_jax.adapters.lora import LoRA
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import PartRates, TrainConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parameters import leaves, named_leaves
from spectralmoe_jax.training.optimizer import PARTS, make_optimizer, make_schedule, part_rate
from spectralmoe_jax.training.train import run_experiment
from tests.training.fake_experiment import make_config, make_experiment
from tests.training.test_optimizer import nested
from tests.training.test_resume import saved

DECAYS = {  # of the weight, by name, for the default rules after LoRA's own
    "backbone/visual/blocks/mlp/kernel": 1.0,
    "backbone/visual/blocks/norm1/bias": 0.0,
    "backbone/adapter/lora_a": 1.0,
    "backbone/adapter/scale": 0.0,
    "head/classifier/kernel": 1.0,
    "outside/kernel": 1.0,
}
RATES = {"visual": 0.5, "adapter": 0.01, "head": 4.0}
SETTINGS = {"learning_rate": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-6}


def draw(rng):
    return {name: rng.normal(size=(3, 2)).astype(np.float32) for name in DECAYS}


def rate_of(name):
    return next((rate for part, rate in RATES.items() if f"/{part}/" in f"/{name}"), 1.0)


def adamw(schedule, decay):
    return optax.adamw(schedule, 0.8, 0.95, 1e-6, weight_decay=0.3 * decay)


def updates_of(optimizer, start, gradients):
    """The parameters after each step, and the last state."""
    params = start
    state, found, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return draw(rng), [draw(rng) for _ in range(9)]


def test_factors_by_part(drawn):
    """Every leaf is trained as by an AdamW of its own, with its decay and the factor of its part."""
    start, gradients = drawn
    settings = TrainConfig(steps=9, warmup_steps=2, lr_factors=PartRates(**RATES), **SETTINGS)
    optimizer = make_optimizer(settings, nested(start), LoRA.optimizer_rules)
    ours, _ = updates_of(optimizer, nested(start), [nested(gradient) for gradient in gradients])
    schedule = make_schedule(settings)
    for name, decay in DECAYS.items():
        reference = adamw(lambda step: schedule(step) * rate_of(name), decay)
        theirs, _ = updates_of(reference, start[name], [gradient[name] for gradient in gradients])
        np.testing.assert_allclose(named_leaves(ours[-1])[name], theirs[-1], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("clip_norm", [None, 1.5])
def test_the_head_first(drawn, clip_norm):
    """For N steps only the head moves, as if it were alone; then all else starts anew, at a rising rate."""
    start, gradients = drawn
    first = 3
    settings = TrainConfig(steps=9, head_first_steps=first, clip_norm=clip_norm, **SETTINGS)
    ours, _ = updates_of(
        make_optimizer(settings, nested(start), LoRA.optimizer_rules),
        nested(start),
        [nested(gradient) for gradient in gradients],
    )
    # clipped by hand: of the head alone at first
    clipped = []
    for step, gradient in enumerate(gradients):
        counted = [g for name, g in gradient.items() if step >= first or name.startswith("head/")]
        norm = np.sqrt(sum((g**2).sum() for g in counted))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        clipped.append({name: g * np.float32(scale) for name, g in gradient.items()})
    schedule = make_schedule(settings)
    for name, decay in DECAYS.items():
        if name.startswith("head/"):
            theirs, _ = updates_of(adamw(schedule, decay), start[name], [g[name] for g in clipped])
        else:
            risen = adamw(
                lambda step: schedule(step + first) * jnp.minimum((step + 1) / (first + 1), 1), decay
            )
            later, _ = updates_of(risen, start[name], [g[name] for g in clipped[first:]])
            theirs = [start[name]] * first + later
        for step, (mine, reference) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(
                named_leaves(mine)[name], reference, rtol=2e-6, atol=1e-7, err_msg=f"{name}, step {step}"
            )


def test_what_is_held_keeps_its_bits_and_gathers_no_moments(drawn):
    start, gradients = drawn
    settings = TrainConfig(steps=9, head_first_steps=4, clip_norm=1.0, **SETTINGS)
    optimizer = make_optimizer(settings, nested(start), LoRA.optimizer_rules)
    ours, state = updates_of(optimizer, nested(start), [nested(g) for g in gradients[:4]])
    for name, before in start.items():
        same = np.asarray(named_leaves(ours[-1])[name]).tobytes() == before.tobytes()
        assert same == (not name.startswith("head/")), name
    moments = {n: leaf for n, leaf in named_leaves(state).items() if "/mu/" in n or "/nu/" in n}
    assert len(moments) == 2 * len(DECAYS)
    for name, leaf in moments.items():
        assert bool(jnp.any(leaf != 0)) == ("/head/" in name), name


def test_every_part_of_the_model_has_a_factor():
    """All trained parameters of shipped models belong to one part; the keys are those of the section."""
    assert PARTS.keys() == {field.name for field in dataclasses.fields(PartRates)}
    by_part = PartRates(visual=2.0, adapter=3.0, head=5.0)
    for kind in ("spectral_moe", "bitfit", "depthforge"):
        config = load_config("configs/fbp_cross_sensor.py", [f"--config.model.adapter.kind={kind}"])
        found = {
            path[: 2 if path[0] == "backbone" else 1]: part_rate("/".join(path), by_part)
            for path in leaves(abstract_segmenter(segmenter_config(config)))
        }
        trained = {("backbone", "visual"): 2.0, ("backbone", "adapter"): 3.0, ("head",): 5.0}
        others = {("backbone", "depth"), ("pixel_mean",), ("pixel_std",)}
        assert {part: rate for part, rate in found.items() if part not in others}.items() <= trained.items()
        assert {rate for part, rate in found.items() if part in others} == {1.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "decodr=0.1",
            r"config\.train\.lr_factors\.decodr is not a known key; allowed: adapter, head, visual",
        ),
        ("adaptor=0.1", r"config\.train\.lr_factors\.adaptor is not a known key; nearest: adapter"),
        ("adapter=-1", r"config\.train\.lr_factors\.adapter = -1\.0: must be at least 0"),
    ],
)
def test_an_unknown_part_is_named(override, message):
    with pytest.raises(UserError, match=message):
        load_config("configs/dubai.py", [f"--config.train.lr_factors.{override}"])


def test_factors_on_the_command_line():
    given = ["--config.train.lr_factors.adapter=0.1", "--config.train.lr_factors.head=2"]
    assert load_config("configs/dubai.py", given).train.lr_factors == PartRates(adapter=0.1, head=2.0)


class Interrupted(Exception):
    pass


def two_parts(interrupt_at=None):
    """The stand-in with its two layers as adapter and head."""

    def on_batch(step):
        if step == interrupt_at:
            raise Interrupted

    plain = make_experiment(on_batch, evaluate=lambda params: {"miou": 0.0})

    def loss_fn(trainable, *rest):
        layers = {"first": trainable["backbone"]["adapter"], "second": trainable["head"]}
        return plain.loss_fn(layers, *rest)

    trainable = {"backbone": {"adapter": plain.trainable["first"]}, "head": plain.trainable["second"]}
    return dataclasses.replace(plain, trainable=trainable, loss_fn=loss_fn)


@pytest.mark.slow
def test_interrupted_before_and_after_the_head_is_first(tmp_path):
    """The run that is interrupted in both phases ends with the same bits."""
    config = make_config(
        steps=6, head_first_steps=3, lr_factors={"adapter": 0.1}, checkpoint_every=2, evaluate_every=100
    )
    run_experiment(two_parts(), config, tmp_path / "whole")
    for step in (2, 4):
        with pytest.raises(Interrupted):
            run_experiment(two_parts(step), config, tmp_path / "parts")
    run_experiment(two_parts(), config, tmp_path / "parts")
    assert saved(two_parts(), config, tmp_path / "parts") == saved(two_parts(), config, tmp_path / "whole")
