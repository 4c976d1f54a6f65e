"""Evaluation in expert coordinates equals the paper's formulas, for every setting of every switch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.fields import choices_of
from spectralmoe_jax.parameters import fill, leaves, with_values
from tests.adapters import paper_formulas

CHOICES = {key: values for key, values in choices_of(SpectralMoEConfig).items() if key != "preset"}
WIDTH, BATCH, TOKENS = 12, 2, 5


@st.composite
def configs(draw):
    experts = draw(st.integers(1, 5))
    top_k = draw(st.integers(1, experts))
    rank = draw(st.sampled_from([2, (2, 1, 3, 1, 2)[:experts]]))
    switches = {key: draw(st.sampled_from(values)) for key, values in CHOICES.items()}
    return SpectralMoEConfig(
        num_experts=experts, top_k=top_k, rank=rank, num_tokens=4, query_dim=4,
        use_depth=draw(st.booleans()), full_softmax=draw(st.booleans()),
        balance_weight=draw(st.sampled_from([1.0, 30.0])), **switches,
    )  # fmt: skip


def random_adapter(config, seed):
    """An adapter with every leaf random, zero beyond an expert's rank as at initialisation."""
    adapter = SpectralMoE(config, layers=1, width=WIDTH, param_dtype=jnp.float64, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    values = {path: 0.5 * rng.normal(size=leaf.shape) for path, leaf in leaves(adapter).items()}
    for e, rank in enumerate(config.ranks):
        values["experts_a",][:, e, :, rank:] = 0
        values["experts_b",][:, e, rank:] = 0
    fill(adapter, values)
    return adapter


def plain_params(values):
    pair = {name: (values[name, "kernel"], values[name, "bias"])
            for name in ("token_to_feature", "delta_to_feature")}  # fmt: skip
    return {
        "experts_a": values["experts_a",][0], "experts_b": values["experts_b",][0],
        "w_gate": values["w_gate",][0], "w_noise": values["w_noise",][0], "scale": values["scale",], **pair,
    }  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**16), noisy=st.booleans())
def test_equals_the_paper_formulas(config, seed, noisy):
    require_plain_form(config, seed, noisy, compiled=jax.jit)


def test_zero_start_leaves_the_features_and_trains_at_once():
    """The output projection alone is zero; its gradient, but for the scale, is that of any other start."""
    sizes = {"num_experts": 3, "num_tokens": 4, "rank": 2, "query_dim": 4}
    adapters = [
        SpectralMoE(SpectralMoEConfig(zero_start=zero, **sizes), layers=1, width=WIDTH, rngs=nnx.Rngs(0))
        for zero in (False, True)
    ]
    plain, zeroed = map(leaves, adapters)
    changed = {path for path in plain if not np.array_equal(plain[path], zeroed[path])}
    assert changed == {("delta_to_feature", "kernel"), ("delta_to_feature", "bias")}
    tokens = jnp.asarray(np.random.default_rng(0).normal(size=(2, BATCH, TOKENS, WIDTH)), jnp.float32)

    @jax.jit
    def refined(values):
        """The refined tokens, and the gradient of their product with the depth tokens by W_d."""

        def product(kernel):
            adapter = with_values(adapters[0], values | {("delta_to_feature", "kernel"): kernel})
            weights = jax.tree.map(lambda leaf: leaf[0], adapter.stacked())
            found = adapter.layer(weights, *tokens).tokens
            return jnp.sum(found * tokens[1]), found

        gradient, found = jax.grad(product, has_aux=True)(values["delta_to_feature", "kernel"])
        return found, gradient

    (moved, first), (still, second) = refined(plain), refined(zeroed)
    assert jnp.array_equal(still, tokens[0])
    assert not jnp.array_equal(moved, tokens[0])
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)
    assert jnp.abs(second).max() > 1e-3


# Values that change nothing are left out: the value of any fusion but cross-attention, and without the depth
# modality the fusion and the second router.
FUSIONS = [
    ("cross_attention", "depth"),
    ("cross_attention", "visual"),
    *((f, "depth") for f in ("diagonal", "add", "none")),
]
MODALITIES = [
    {"use_depth": True, "router": router, "fusion": fusion, "fusion_value": value}
    for router in CHOICES["router"]
    for fusion, value in FUSIONS
] + [{"use_depth": False}]
# what gives the gates, which every setting of the others meets in turn
GATES = list(itertools.product(("laplace l1", "laplace l2", "gaussian l2", "softmax l2"), (False, True)))


def slow_unless_published(modalities):
    """By default the modalities of both presets run, and the visual one alone."""
    presets = [SpectralMoEConfig(preset=preset) for preset in ("paper", "released")]
    fast = modalities in [{"use_depth": False}] + [
        {key: getattr(preset, key) for key in modalities} for preset in presets
    ]
    name = "-".join(map(str, modalities.values()))
    return pytest.param(modalities, id=name, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("modalities", [slow_unless_published(chosen) for chosen in MODALITIES])
def test_every_linear_setting_equals_the_paper_formulas(modalities):
    """All values of every switch with all of every other; the router's distance, noise, balance in turn."""
    start = MODALITIES.index(modalities)
    settings = itertools.product(
        (("gated_sum", 1), ("gated_sum", 2), ("log_sum_exp", 1)),
        CHOICES["token_map"],
        (False, True),
    )
    for number, ((combination, top_k), token_map, full_softmax) in enumerate(settings):
        gate, noisy = GATES[(start + number + number // len(GATES)) % len(GATES)]
        gating, distance = gate.split()
        config = SpectralMoEConfig(
            num_experts=3, top_k=top_k, rank=(2, 1, 2), num_tokens=4, query_dim=4, combination=combination,
            token_map=token_map, full_softmax=full_softmax, gating=gating, distance=distance,
            balance=CHOICES["balance"][number % 2],
            balance_over_modalities=CHOICES["balance_over_modalities"][number // 2 % 2],
            **modalities,
        )  # fmt: skip
        assert config.is_linear
        require_plain_form(config, number, noisy)


def require_plain_form(config, seed, noisy, compiled=lambda function: function):
    """Output, balance loss and gradients for weights, tokens and draws of a seed, in float64.

    Many settings of one shape are faster uncompiled: an operation compiles once a shape.
    """
    with jax.enable_x64(True):
        adapter = random_adapter(config, seed)
        rng = np.random.default_rng(seed + 1)
        visual, depth = jnp.asarray(rng.normal(size=(2, BATCH, TOKENS, WIDTH)))
        noise = jnp.asarray(rng.normal(size=(2, BATCH, TOKENS, config.num_experts))) if noisy else None
        probe = jnp.asarray(rng.normal(size=visual.shape))

        def ours(values, visual):
            model = with_values(adapter, values)
            weights = jax.tree.map(lambda x: x[0], model.stacked())
            out = model.layer(weights, visual, depth, noise)
            return jnp.sum(probe * out.tokens) + out.auxiliary_loss, out.tokens

        def oracle(values, visual):
            tokens, balance = paper_formulas.layer(plain_params(values), visual, depth, noise, config)
            return jnp.sum(probe * tokens) + balance, tokens

        values = leaves(adapter)
        results = [
            compiled(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(values, visual)
            for f in (ours, oracle)
        ]
        (((total, tokens), grads), ((total_plain, tokens_plain), grads_plain)) = results
        np.testing.assert_allclose(tokens, tokens_plain, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(total, total_plain, rtol=1e-9, atol=1e-9)
        for mine, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_plain), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-7, atol=1e-9 * (1 + np.abs(wanted).max()))


def test_unused_ranks_stay_zero():
    config = SpectralMoEConfig(num_experts=2, rank=(1, 3), num_tokens=4, query_dim=4, combination="gated_sum")
    adapter = SpectralMoE(config, layers=2, width=WIDTH, rngs=nnx.Rngs(0))
    fill(
        adapter,
        {("experts_b",): 0.1 * np.ones((2, 2, 3, WIDTH)) * (np.arange(3)[:, None] < [[[1]], [[3]]])[None]},
    )
    tokens = jax.random.normal(jax.random.key(1), (2, TOKENS, WIDTH))

    def loss(values):
        model = with_values(adapter, values)
        out = model.layer(jax.tree.map(lambda x: x[1], model.stacked()), tokens, tokens)
        return jnp.sum(out.tokens**3) + jnp.sum(model.queries() ** 2)

    grads = jax.jit(jax.grad(loss))(leaves(adapter))
    assert not np.any(grads["experts_a",][:, 0, :, 1:])
    assert not np.any(grads["experts_b",][:, 0, 1:])
    assert np.any(grads["experts_a",][:, 1, :, 1:])


@pytest.mark.parametrize("full_softmax", [False, True])
def test_router_gradient_with_one_expert_per_token(full_softmax):
    config = SpectralMoEConfig(
        num_experts=3,
        top_k=1,
        rank=2,
        num_tokens=4,
        query_dim=4,
        balance_weight=0.0,
        full_softmax=full_softmax,
    )
    with jax.enable_x64(True):
        adapter = random_adapter(config, 3)
        tokens = jax.random.normal(jax.random.key(1), (2, BATCH, TOKENS, WIDTH), jnp.float64)

        def loss(values):
            model = with_values(adapter, values)
            weights = jax.tree.map(lambda x: x[0], model.stacked())
            return jnp.sum(model.layer(weights, *tokens).tokens ** 2)

        gradient = jax.grad(loss)(leaves(adapter))["w_gate",]
    assert bool(np.any(gradient)) == full_softmax
