"""The segmenter of a configuration: sizes, checks, and the full model without allocating it."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import (
    abstract_segmenter,
    count_parameters,
    make_segmenter,
    random_leaves,
    segmenter_config,
)
from spectralmoe_jax.parameters import join, split
from spectralmoe_jax.training.optimizer import make_optimizer, match_rules
from spectralmoe_jax.training.step import init_state, make_loss, make_train_step
from tests.random_weights import random_segmenter

FULL = "configs/fbp_cross_sensor.py"


def tiny(**overrides) -> RunConfig:
    """The Dubai configuration at a tiny size, with other values by dotted key."""
    return load_config("configs/dubai.py").replaced({
        "model.visual.width": 16, "model.visual.layers": 4, "model.visual.heads": 2,
        "model.visual.patch_size": 8, "model.head.scales": (2.0, 1.0, 0.5, 0.25),
        "model.adapter.num_tokens": 6, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
        "model.head.num_queries": 6, "model.head.width": 16, "model.head.num_heads": 2,
        "model.head.encoder_ffn": 16, "model.head.decoder_ffn": 16, "loss.num_points": 16,
    } | overrides)  # fmt: skip


@pytest.mark.parametrize(("experts", "parameters"), [(6, 5_737_985), (3, 4_148_225), (1, 3_088_385)])
def test_published_adapter_size(experts, parameters):
    parts = {part.name: part for part in count_parameters(load_config(f"{FULL}:experts={experts}"))}
    assert parts["adapter"].trainable == parameters
    assert parts["adapter"].frozen == 0
    assert parts["visual encoder"].trainable == parts["depth encoder"].trainable == 0


def test_published_size_of_the_largest_encoder():
    parts = {part.name: part for part in count_parameters(load_config(f"{FULL}:dinov3_7b"))}
    fourth_band = 16 * 16 * 4096
    assert (
        round((parts["visual encoder"].frozen - fourth_band) / 1e6) == 6716
    )  # the model card of the release
    assert parts["visual encoder"].trainable == 0


def test_unequal_ranks_count_what_they_use():
    sizes = []
    for rank in (2, (2, 2, 2, 1, 2, 2)):
        parts = {part.name: part for part in count_parameters(tiny(**{"model.adapter.rank": rank}))}
        sizes.append(parts["adapter"].trainable)
    assert sizes[0] - sizes[1] == 4 * (6 + 16)  # layers x (tokens + width) of one rank


@pytest.mark.parametrize("name", sorted(shipped_files("configs")))
def test_shipped_configs_describe_a_model(name):
    config = load_config(f"configs/{name}")
    trainable, _ = split(abstract_segmenter(segmenter_config(config)))
    assert match_rules(config.train.rules, trainable)
    assert len(config.classes.names) == len(config.classes.palette)


@pytest.fixture(scope="module")
def lowered():
    """The published model's training step, batch 8 of 512x512 in bfloat16, traced from shapes alone, with the
    state, the frozen weights, and the seconds that it took."""
    start = time.perf_counter()
    config = load_config(FULL)
    structure = abstract_segmenter(segmenter_config(config))
    trainable, frozen = split(structure)
    settings = config.train
    optimizer = make_optimizer(settings, trainable)
    state = jax.eval_shape(lambda params: init_state(params, optimizer), trainable)
    batch = {
        "image": jax.ShapeDtypeStruct((8, 512, 512, 4), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, 512, 512), jnp.uint8),
    }
    step = make_train_step(make_loss(structure, config.loss), optimizer)
    traced = step.trace(state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0)))
    return traced, state, frozen, time.perf_counter() - start


def test_full_model_lowers_without_weights(lowered):
    traced, _, _, seconds = lowered
    start = time.perf_counter()
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert seconds + time.perf_counter() - start < 60
    assert "bf16" in text
    assert len(text) > 10_000


def test_frozen_weights_have_no_optimizer_state(lowered):
    traced, state, frozen, _ = lowered
    trainable_count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    optimizer_count = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert optimizer_count < 2 * trainable_count + 10
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) > 6e8
    returned, metrics = (sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(out)) for out in traced.out_info)
    assert returned < 3 * trainable_count + 10
    assert metrics < 1000


@pytest.mark.slow
def test_remat_changes_nothing():
    depth = {"kind": "dinov2", "width": 16, "layers": 4, "heads": 2, "patch_size": 8, "table_size": 4}
    config = tiny(**{"model.adapter.use_depth": True, "model.depth": depth})
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    results = []
    for choice in ("none", "layer", "full"):
        model = random_segmenter(segmenter_config(config.replaced({"model.remat": choice})))
        trainable, frozen = split(model)

        def loss(trainable, model=model, frozen=frozen):
            features = join(model, trainable, frozen).features(image, key=jax.random.key(1))
            return sum(jnp.sum(x**3) for x in features.maps) + features.auxiliary_loss

        value, grads = jax.jit(jax.value_and_grad(loss))(trainable)
        results.append((value, optax.tree.norm(grads["backbone"])))
    np.testing.assert_allclose(results[1:], [results[0]] * 2, rtol=1e-5)


def products(jaxpr):
    """All products of matrices and convolutions of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            for nested in value if isinstance(value, tuple | list) else (value,):
                if hasattr(nested := getattr(nested, "jaxpr", nested), "eqns"):
                    yield from products(nested)


def test_no_product_of_a_float32_step_is_rounded():
    # accelerators round float32 operands unless told otherwise, also in the backward pass
    config = tiny(**{"model.dtype": "float32"})
    structure = abstract_segmenter(segmenter_config(config))
    batch = {
        "image": jax.ShapeDtypeStruct((1, 64, 64, len(config.bands)), jnp.uint8),
        "label": jax.ShapeDtypeStruct((1, 64, 64), jnp.uint8),
    }
    loss = jax.value_and_grad(make_loss(structure, config.loss), has_aux=True)
    found = list(products(jax.make_jaxpr(loss)(*split(structure), batch, jax.random.key(0)).jaxpr))
    highest = jax.lax.Precision.HIGHEST
    rounded = [str(e) for e in found if e.params["precision"] not in (highest, (highest, highest))]
    assert len(found) > 100
    assert not rounded


@pytest.mark.slow
def test_every_trainable_parameter_learns():
    """With the full softmax every parameter that trains gets a gradient, the router included."""
    layers = {"model.head.encoder_layers": 1, "model.head.decoder_layers": 1}
    config = tiny(**{"model.adapter.full_softmax": True} | layers)
    settings = segmenter_config(config)
    trainable, frozen = split(make_segmenter(settings, 0))
    loss = make_loss(abstract_segmenter(settings), config.loss)
    optimizer = optax.adam(1e-2)
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8),
             "label": rng.integers(0, 5, (2, 32, 32)).astype(np.uint8)}  # fmt: skip
    step = make_train_step(loss, optimizer)
    state = init_state(trainable, optimizer)
    for _ in range(3):  # B starts at zero and hides A and the gates from the first gradient
        state, _ = step(state, frozen, batch, jax.random.key(0))
    moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), state.params, trainable)
    still = [
        jax.tree_util.keystr(path) for path, is_moved in jax.tree.leaves_with_path(moved) if not is_moved
    ]
    assert not still


def test_initialisation_compiles_once_for_all_seeds(caplog):
    """Were it a constant, every seed of a grid would compile it anew."""
    settings, place = segmenter_config(tiny()), ("backbone", "visual", "patch_kernel")
    with jax.log_compiles():
        made = [random_leaves(settings, seed, [place])[place] for seed in (0, 1)]
    assert caplog.text.count("Compiling jit(make) with global shapes and types (ShapedArray(key<") == 2
    assert np.any(np.asarray(made[0]) != np.asarray(made[1]))


def test_scores_are_bounded_by_the_number_of_queries():
    settings = segmenter_config(tiny())
    model = random_segmenter(settings)
    trainable, frozen = split(model)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3)).astype(np.uint8)
    scores = jax.jit(lambda t, f, x: join(model, t, f).scores(x))(trainable, frozen, pixels)
    assert scores.shape == (1, 32, 48, 5)
    assert scores.dtype == jnp.float32
    assert np.all(scores >= 0)
    assert np.all(scores.sum(-1) <= settings.head.num_queries)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.visual.kind",
            "resnet",
            r"config\.model\.visual\.kind = 'resnet': must be one of dinov3, dinov2",
        ),
        (
            "model.adapter.gating",
            "cosine",
            r"config\.model\.adapter\.gating = 'cosine': must be one of laplace",
        ),
        (
            "model.adapter.top_k",
            9,
            r"config\.model\.adapter\.top_k = 9: must be between 1 and num_experts = 6",
        ),
        ("model.adapter.num_tokens", 7, r"num_tokens = 7: must equal config\.model\.head\.num_queries = 6"),
        ("model.adapter.use_depth", True, r"config\.model\.depth is None"),
        ("model.head.width", 18, r"config\.model\.head\.width"),
        (
            "model.adapter.balance_weight",
            float("nan"),
            r"config\.model\.adapter\.balance_weight = nan: must be finite",
        ),
        (
            "classes.names",
            ("a", "b"),
            r"config\.classes\.palette has 5 colours for 2 config\.classes\.names",
        ),
        ("model.pixel_std", (1.0,) * 4, r"pixel_std has 4 values for the 3 of config\.bands: name there"),
    ],
)
def test_bad_values_name_the_key(key, value, message):
    with pytest.raises(UserError, match=message):
        segmenter_config(tiny(**{key: value}))


def test_encoders_must_match():
    config = load_config(FULL, ["--config.model.depth.preset=depth_anything_v2_b"])
    with pytest.raises(UserError, match=r"config\.model\.depth\.width = 768: must equal"):
        abstract_segmenter(segmenter_config(config))
    config = load_config(FULL, ["--config.model.depth.bands=red,green,swir"])
    with pytest.raises(UserError, match=r"depth\.bands names 'swir'"):
        segmenter_config(config)
