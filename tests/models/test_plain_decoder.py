"""The plain mask decoder: published sizes, its training form, running statistics, and training of a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.adapters import NoAdapterConfig
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig, PlainDecoderConfig
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.config.schema import LossConfig, TrainConfig
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.predict_step import make_predict
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter, load_trained
from spectralmoe_jax.models.build import abstract_segmenter, part_sizes, segmenter_config
from spectralmoe_jax.models.plain_decoder import hidden_patches, mask_probability
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import join, leaves, named_leaves, split
from spectralmoe_jax.training.optimizer import make_optimizer, match_rules
from spectralmoe_jax.training.step import STATISTICS, init_state, make_loss, make_train_step
from spectralmoe_jax.training.train import train
from tests.random_weights import random_segmenter

HEAD = PlainDecoderConfig(
    num_queries=3, blocks=2, num_classes=4, mask_starts=(0.0, 0.5), mask_ends=(0.5, 1.0), momentum=0.25
)
DINOV3 = EncoderConfig("dinov3", width=16, layers=3, heads=2, patch_size=8, storage_tokens=2, mlp_ratio=2.0)
FAMILIES = {
    "dinov3": DINOV3,
    "no rotary positions": dataclasses.replace(DINOV3, kind="dinov2", table_size=4),
    "no prefix tokens": dataclasses.replace(
        DINOV3, kind="sam", storage_tokens=0, table_size=4, window=2, global_every=3
    ),
}


def settings(visual=DINOV3, **changes):
    return SegmenterConfig(
        **{
            "visual": visual, "depth": None, "adapter": NoAdapterConfig(), "head": HEAD,
            "adapter_kind": NoAdapterConfig.kind, "out_layers": (0, 2), "dtype": "float32",
            "pixel_mean": (120.0,) * 3, "pixel_std": (60.0,) * 3, **changes,
        }
    )  # fmt: skip


def batch(size=2, side=32, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (size, 4, 4)).repeat(side // 4, 1).repeat(side // 4, 2)
    return {"image": rng.integers(0, 255, (size, side, side, 3), np.uint8), "label": label.astype(np.uint8)}


@pytest.mark.parametrize(
    ("name", "queries", "classes", "published"),
    [
        ("dinov3_l", 100, 150, 53_850_263),
        ("dinov3_l", 200, 133, 53_935_238),
        ("dinov3_b", 200, 133, 30_424_454),
        ("dinov3_s", 200, 133, 7_692_038),
        ("dinov3_s", 100, 150, 7_660_183),
    ],
)
def test_published_number_of_parameters(name, queries, classes, published):
    visual = EncoderConfig(**preset(name, "test"))
    layers = (2, 5, 8, 11) if visual.layers == 12 else (5, 11, 17, 23)
    head = PlainDecoderConfig(num_queries=queries, num_classes=classes)
    config = settings(visual, head=head, out_layers=layers)
    parts = {part.name: part for part in part_sizes(abstract_segmenter(config), config)}
    assert parts["mask decoder"].trainable == published
    assert parts["mask decoder"].frozen == 2 * 4 * visual.width  # running statistics


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_masked_attention_falls_from_one_to_zero(power):
    for progress, expected in ((0.0, 1), (0.2, 1), (0.35, 0.75**power), (0.8, 0), (1.0, 0)):
        found = mask_probability(progress, (0.2,), (0.8,), power)
        np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_a_query_sees_the_patches_in_its_mask_and_every_other_token():
    masks = np.random.default_rng(0).normal(size=(2, 3, 8, 12)).astype(np.float32)
    lifted = np.array([[False, True, False], [False, False, False]])
    hidden = np.array(hidden_patches(jnp.asarray(masks), (2, 3), jnp.asarray(lifted), 3 + 2 + 6))
    middle = masks.reshape(2, 3, 2, 4, 3, 4)[:, :, :, 1:3, :, 1:3].mean(axis=(3, 5)).reshape(2, 3, 6)
    np.testing.assert_array_equal(hidden[:, :3, -6:], (middle <= 0) & ~lifted[..., None])
    assert hidden[:, :3, -6:].any()
    hidden[:, :3, -6:] = False
    assert not hidden.any()


def test_training_ends_as_the_inference_form():
    """Once masked attention has ended, the last prediction is that without masks; and the progress of the
    training is data of one program."""
    model = random_segmenter(settings())
    model.head.levels.norm.variance[...] = jnp.ones((2, 16))
    tokens = jnp.asarray(np.random.default_rng(1).normal(2, 3, (2, 2, 15, 16)), jnp.float32)
    rope = model.backbone.visual.rope(3, 4)
    predict = jax.jit(lambda *given: model.head(*given[:1], (3, 4), rope, key=given[1], progress=given[2]))
    early, late = (predict(tokens, jax.random.key(0), progress) for progress in (0.0, 1.0))
    assert predict._cache_size() == 1
    assert late.class_logits.shape == (3, 2, 3, 5)
    assert late.mask_logits.shape == (3, 2, 3, 6, 8)
    assert np.abs(early.class_logits[-1] - late.class_logits[-1]).max() > 1e-3
    # the statistics of the batch as running ones
    mean, variance = tokens.mean(axis=(1, 2)), tokens.var(axis=(1, 2))
    np.testing.assert_allclose(
        late.statistics["levels", "norm", "variance"], 0.75 + 0.25 * variance * 30 / 29, rtol=1e-5
    )
    model.head.levels.norm.mean[...], model.head.levels.norm.variance[...] = mean, variance
    once = jax.jit(lambda tokens: model.head(tokens, (3, 4), rope, all_layers=False))(tokens)
    assert once.statistics is None
    np.testing.assert_allclose(late.class_logits[-1:], once.class_logits, atol=2e-5)
    np.testing.assert_allclose(late.mask_logits[-1:], once.mask_logits, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_trains_every_weight_and_carries_the_statistics(family):
    """Adam's first moment is the gradient: only the statistics have none. These are those of the tokens."""
    model = random_segmenter(settings(FAMILIES[family]))
    trainable, frozen = split(model)
    rules = model.optimizer_rules + TrainConfig(steps=4).rules
    statistics = {"head/levels/norm/mean", "head/levels/norm/variance"}
    assert {name for name, (decay, _) in match_rules(rules, trainable).items() if decay == 0} == statistics
    image, before = batch()["image"], {name: np.array(leaf) for name, leaf in named_leaves(trainable).items()}
    features = jax.jit(lambda image: model.features(model.normalise(image)))(image)
    # 1. the step
    optimizer = make_optimizer(TrainConfig(steps=4), trainable, model.optimizer_rules)
    step = make_train_step(make_loss(model, LossConfig(num_points=32), steps=4), optimizer)
    state, logged = step(init_state(trainable, optimizer), frozen, batch(), jax.random.key(0))
    assert STATISTICS not in logged
    assert np.isfinite(logged["loss"])
    # 2. gradients
    moments = optax.tree.get(state.opt_state, "mu")
    assert {name for name, leaf in named_leaves(moments).items() if not np.any(leaf)} == statistics
    # 3. statistics
    after = named_leaves(state.params)
    for level, (prefix, patches) in enumerate(zip(features.prefixes, features.maps, strict=True)):
        tokens = np.concatenate([prefix, np.asarray(patches).reshape(2, -1, 16)], axis=1).reshape(-1, 16)
        for name, found in (("mean", tokens.mean(0)), ("variance", tokens.var(0, ddof=1))):
            leaf = f"head/levels/norm/{name}"
            expected = 0.75 * before[leaf][level] + 0.25 * found
            np.testing.assert_allclose(after[leaf][level], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_data_types_and_rematerialisation(dtype):
    """The loss, its gradients and the statistics are at least float32."""
    with jax.enable_x64(dtype == "float64"):
        config = settings(dtype=dtype, remat="layer")
        structure = abstract_segmenter(config)
        loss = make_loss(structure, LossConfig(num_points=32), steps=10)
        given = (*split(structure), batch(), jax.random.key(0), jnp.int32(3))
        (total, metrics), gradients = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), *given)
        wide = "float64" if dtype == "float64" else "float32"
        kinds = {str(leaf.dtype) for leaf in jax.tree.leaves((total, metrics[STATISTICS], gradients))}
        assert kinds == {wide}


def test_an_adapter_keeps_its_queries_to_itself():
    """The head's queries are its own: linked ones have another width, and nothing reads them."""
    config = load_config("configs/dubai.py").replaced(
        {"model.head": {"kind": "pmt", "num_queries": 5}, "model.out_layers": (0, 2)}
    )
    pixels = jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.uint8)
    structure = abstract_segmenter(segmenter_config(config))
    scores = jax.eval_shape(
        lambda *parts: join(structure, *parts[:2]).scores(parts[2]), *split(structure), pixels
    )
    assert scores.shape == (1, 48, 48, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 3}, "mask_starts = .*for each of the 3 blocks"),
        ({"mask_starts": (0.5,) * 6}, "mask_ends = .*must lie above"),
        ({"mask_ends": (1.5,) * 6}, "between 0 and 1"),
        ({"num_queries": 0}, "between 1 and 10000"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        PlainDecoderConfig(**changes)


@pytest.mark.slow
def test_a_run_of_two_steps_and_its_prediction(tmp_path):
    """The statistics come with the checkpoint, and the map that is predicted depends on them."""
    pytest.importorskip("torch", reason="needs the extra `torch`")
    values = [
        "data.scenes_source=4", "data.scenes_target=1", "data.scene_size=64", "data.holdout=0.25",
        "data.crop=32",
        "model.visual.width=16", "model.visual.patch_size=8", "model.adapter.kind=none",
        "model.head.kind=pmt", "model.head.num_queries=6", "model.head.blocks=2",
        "model.head.mask_starts=0,0.5", "model.head.mask_ends=0.5,1", "loss.num_points=32", "train.steps=2",
        "train.batch_size=2", "train.warmup_steps=1", "train.log_every=1", "train.evaluate_every=2",
        "evaluate.window=32", "evaluate.overlap=8", "evaluate.batch_size=4", "model.dtype=float32",
    ]  # fmt: skip
    config = load_config("configs/quickstart.py", [f"--config.{value}" for value in values])
    assert train(config, tmp_path)["step"] == 2
    with CheckpointStore(tmp_path, config) as store:
        assert store.best == 2
    model = load_trained(tmp_path, config)
    mean = leaves(model)["head", "levels", "norm", "mean"]
    assert np.all(np.abs(mean).max(axis=-1) > 0)
    pixels = np.random.default_rng(0).integers(0, 4000, (2, 32, 32, 4)).astype(np.uint16)
    scores = make_predict(model)(pixels)
    assert scores.shape == (2, 32, 32, 6)
    assert np.all(np.isfinite(scores))
    # the decoder as its authors publish it, and a new run that starts from it
    convert(str(tmp_path), str(tmp_path / "pytorch_model.bin"), to="pmt")
    again = initial_segmenter(config.replaced({"model.weights": str(tmp_path / "pytorch_model.bin")}))
    for path, value in leaves(again).items():
        if path[0] == "head":
            np.testing.assert_array_equal(value, leaves(model)[path])
    model.head.levels.norm.mean[...] = mean + 1
    assert np.any(make_predict(model)(pixels) != scores)
