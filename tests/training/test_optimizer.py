"""The optimizer against torch's AdamW and the schedule's closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import TrainConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.training.optimizer import make_optimizer, make_schedule, match_rules

RULES = ((r"norm", 0.0, 1.0), (r"expert", 0.0, 2.0), (r"head", 0.5, 0.1), (r"kernel|bias", 1.0, 1.0))
FACTORS = {  # by hand: (weight decay, learning rate)
    "blocks/norm/scale": (0.0, 1.0),
    "blocks/mlp/kernel": (1.0, 1.0),
    "blocks/mlp/bias": (1.0, 1.0),
    "expert/down": (0.0, 2.0),
    "head/kernel": (0.5, 0.1),
}


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree


def random_values(rng):
    return {name: rng.normal(size=(3, 4)) for name in FACTORS}


@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_updates_equal_torch_adamw(clip_norm, warmup_steps):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, steps, rate = random_values(rng), 12, 0.02
    settings = TrainConfig(
        steps=steps, learning_rate=rate, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-6,
        clip_norm=clip_norm, warmup_steps=warmup_steps, rules=RULES,
    )  # fmt: skip
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [theirs[n]], "weight_decay": 0.3 * d, "factor": f} for n, (d, f) in FACTORS.items()]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.8, 0.95), eps=1e-6)

    with jax.enable_x64(True):
        ours = jax.tree.map(jnp.asarray, nested(start))
        optimizer = make_optimizer(settings, ours)
        state = optimizer.init(ours)
        for step in range(steps):
            gradient = random_values(rng)
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, nested(gradient)), state, ours)
            ours = optax.apply_updates(ours, updates)
            for name, parameter in theirs.items():
                parameter.grad = torch.tensor(gradient[name])
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
            for group in adamw.param_groups:
                group["lr"] = group["factor"] * float(closed_form(step, steps, rate, warmup_steps, 0.9))
            adamw.step()
        expected = nested({name: value.detach().numpy() for name, value in theirs.items()})
        for mine, reference in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-6)


def closed_form(step, steps, rate, warmup, power):
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    return rate * (1 - (step - warmup) / (steps - warmup)) ** power


@pytest.mark.parametrize(("warmup", "power"), [(0, 0.9), (10, 0.9), (5, 2.0)])
def test_schedule_follows_its_closed_form_down_to_zero(warmup, power):
    settings = TrainConfig(steps=100, learning_rate=1e-4, power=power, warmup_steps=warmup)
    schedule = make_schedule(settings)
    ours = [float(schedule(step)) for step in range(101)]
    expected = [closed_form(step, 100, 1e-4, warmup, power) for step in range(101)]
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-12)
    assert ours[100] == 0.0
    assert float(schedule(150)) == 0.0
    assert max(ours) == pytest.approx(1e-4)


@pytest.mark.parametrize("warmup", [0, 10])
def test_other_schedules_follow_optax(warmup):
    """Optax counts its warm-up from 0, ours from 1: the schedules are compared after it."""
    rate, steps = 1e-3, 60
    cosine = optax.cosine_decay_schedule(rate, steps - warmup)
    for name, reference in {"cosine": cosine, "constant": lambda step: rate}.items():
        schedule = make_schedule(
            TrainConfig(steps=steps, learning_rate=rate, schedule=name, warmup_steps=warmup)
        )
        ours = [float(schedule(step)) for step in range(steps + 3)]
        before = [closed_form(step, steps, rate, warmup, 1.0) for step in range(warmup)]
        after = [float(reference(step - warmup)) for step in range(warmup, steps + 3)]
        np.testing.assert_allclose(ours, before + after, rtol=2e-6, atol=1e-10)


def test_first_matching_rule_counts():
    assert match_rules(RULES, nested(random_values(np.random.default_rng(0)))) == FACTORS


def test_paths_as_keys_have_the_names_of_nested_dicts():
    values = random_values(np.random.default_rng(0))
    assert match_rules(RULES, {tuple(name.split("/")): value for name, value in values.items()}) == FACTORS


def test_every_parameter_needs_a_rule():
    params = nested({"blocks/norm/scale": 0.0, "mystery/thing": 0.0, "other/riddle": 0.0})
    with pytest.raises(UserError, match=r"config\.train\.rules: no rule covers mystery/thing, other/riddle$"):
        make_optimizer(TrainConfig(steps=1, rules=RULES), params)


def test_broken_rule_is_quoted():
    with pytest.raises(UserError, match=r"not a regular expression: '\(norm'"):
        match_rules((("(norm", 0.0, 1.0),), {"norm": 0.0})


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("head/decoder/norm1/scale", 0.0),
        ("head/decoder/norm1/bias", 0.0),
        ("head/query_feat", 0.0),
        ("head/level_embed", 0.0),
        ("head/pixel_decoder/level_encoding", 0.0),
        ("head/pixel_decoder/output_conv/gn/scale", 0.0),
        ("head/pixel_decoder/output_conv/gn/bias", 0.0),
        ("backbone/adapter/experts_a", 0.0),
        ("backbone/adapter/experts_b", 0.0),
        ("backbone/adapter/w_gate", 0.0),
        ("backbone/adapter/w_noise", 0.0),
        ("backbone/adapter/scale", 0.0),
        ("backbone/adapter/token_to_feature/kernel", 1.0),
        ("backbone/adapter/merge/bias", 1.0),
        ("head/decoder/query/kernel", 1.0),
        ("head/decoder/mlp/bias", 1.0),
    ],
)
def test_published_groups(name, decay):
    """Weight decay 0.05, but 0 on norms, query and level embeddings, experts, gates, noise and alpha."""
    (factors,) = match_rules(TrainConfig(steps=1).rules, nested({name: 0.0})).values()
    assert factors == (decay, 1.0)


def test_shipped_model_is_covered_with_exactly_the_published_parts_undecayed():
    from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config

    model = abstract_segmenter(segmenter_config(load_config("configs/dubai.py")))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    factors = match_rules(TrainConfig(steps=1).rules, params)
    adapted = {
        name.removeprefix("backbone/adapter/"): f for name, f in factors.items() if "/adapter/" in name
    }
    undecayed = {name for name, (decay, _) in adapted.items() if decay == 0}
    assert undecayed == {"experts_a", "experts_b", "w_gate", "w_noise", "scale"}
    linear = {name for name in factors if name.endswith("/kernel")}
    assert linear
    assert all(factors[name] == (1.0, 1.0) for name in linear)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"steps": 0}, "steps"), ({"learning_rate": 0.0}, "learning_rate"), ({"betas": (0.9, 1.0)}, "betas"),
     ({"warmup_steps": 5}, "warmup_steps"), ({"clip_norm": -1.0}, "clip_norm"),
     ({"head_first_steps": 5}, "head_first_steps"), ({"schedule": "step"}, "schedule"),
     ({"patience": 0}, "patience")],
)  # fmt: skip
def test_bad_settings_name_the_key(values, key):
    with pytest.raises(UserError, match=rf"^config\.train\.{key}"):
        TrainConfig(**({"steps": 5} | values))
