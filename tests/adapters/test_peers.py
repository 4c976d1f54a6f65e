"""The peers: their sizes at ViT-L, every layer against float64 formulas, and training of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from spectralmoe_jax.adapters.fada import haar, inverse_haar
from spectralmoe_jax.adapters.registry import BUILTIN, adapter_class
from spectralmoe_jax.adapters.set import polar
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.schema import LossConfig, RunConfig, TrainConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, count_parameters, segmenter_config
from spectralmoe_jax.models.encoders.vit import VisionTransformer
from spectralmoe_jax.models.linear_head import pixel_cross_entropy
from spectralmoe_jax.parameters import join, leaves, split, with_values
from spectralmoe_jax.training.optimizer import match_rules
from spectralmoe_jax.training.step import make_loss
from tests.adapters import peer_formulas

LAYERS, WIDTH, BATCH, GRID = 3, 8, 2, (4, 6)
FULL = "configs/fbp_cross_sensor.py"
# How these come about is in docs/adding_an_adapter.md.
PARAMETERS = {
    "rein": {"adapter": 2_990_081},
    "depthforge": {"adapter": 2_990_081, "depth refinement": 4_336_705},
    "set": {"adapter": 5_520_897},
    "fada": {"adapter": 5_520_897},
    "none": {},
    "full": {"visual encoder": 303_413_248},
    "lora": {"adapter": 786_432},
    "adaptformer": {"adapter": 3_171_840},
    "vpt": {"adapter": 3_686_400},
    "bitfit": {"visual encoder": 271_360},
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_published_size(kind):
    parts = count_parameters(load_config(FULL, [f"--config.model.adapter.kind={kind}"]))
    backbone = ("visual encoder", "depth encoder", "adapter", "depth refinement")
    found = {part.name: part.trainable for part in parts if part.name in backbone and part.trainable}
    assert found == PARAMETERS[kind]
    assert ("depth encoder" in {part.name for part in parts}) == (kind == "depthforge")


def made(kind, seed=0, **settings):
    """An adapter in float64, every parameter random, and its parameters as numpy by path."""
    cls = adapter_class(kind)
    return filled(lambda: cls(cls.Config(**settings), layers=LAYERS, width=WIDTH, rngs=nnx.Rngs(0)), seed)


def filled(make, seed=0):
    """A module with every leaf random, and its leaves as numpy by path; nothing is computed by jax."""
    module, rng = nnx.eval_shape(make), np.random.default_rng(seed)
    values = {path: 0.5 * rng.normal(size=leaf.shape) for path, leaf in leaves(module).items()}
    return with_values(module, {path: jnp.asarray(value) for path, value in values.items()}), values


def branch_of(values, name, layer):
    return {
        "tokens_a": values[name, "tokens_a"][layer], "tokens_b": values[name, "tokens_b"][layer],
        "W_T": values[name, "token_to_feature", "kernel"], "b_T": values[name, "token_to_feature", "bias"],
        "W_f": values[name, "delta_to_feature", "kernel"], "b_f": values[name, "delta_to_feature", "bias"],
    }  # fmt: skip


def pair(values, *path):
    return values[(*path, "kernel")], values[(*path, "bias")]


TOKENS = {"num_tokens": 5, "rank": 2, "query_dim": 4}
GRIDS = {"rein": [GRID], "depthforge": [GRID], "set": [GRID], "fada": [GRID, (3, 5)]}


@pytest.mark.parametrize(("kind", "grid"), [(kind, grid) for kind, grids in GRIDS.items() for grid in grids])
def test_layer_equals_its_formula(kind, grid):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        extra = {"gate_width": 3} if kind == "depthforge" else {}
        adapter, values = made(kind, **TOKENS, **extra)
        visual, depth = rng.normal(size=(2, BATCH, grid[0] * grid[1], WIDTH))
        layer = 1
        weights = jax.tree.map(lambda x: x[layer], adapter.stacked())
        out = adapter.layer(
            weights, jnp.asarray(visual), jnp.asarray(depth) if kind == "depthforge" else None, None, grid
        )
        scale = {"scale": values["scale",]}
        for image in range(BATCH):
            if kind in ("rein", "depthforge"):
                own = scale | {"branch": branch_of(values, "branch", layer)}
                wanted = peer_formulas.rein(
                    own, visual[image], depth[image] if kind == "depthforge" else None
                )
            else:
                own = scale | {name: branch_of(values, name, layer) for name in ("content", "style")}
                wanted = {"set": peer_formulas.set_layer, "fada": peer_formulas.fada_layer}[kind](
                    own, visual[image], grid
                )
            np.testing.assert_allclose(out.tokens[image], wanted, rtol=1e-9, atol=1e-9)
        assert out.experts is None
        assert out.auxiliary_loss == 0
        name = "branch" if kind in ("rein", "depthforge") else "content"
        tokens = values[name, "tokens_a"] @ values[name, "tokens_b"]
        wanted = peer_formulas.link(tokens, pair(values, "link", "transform"), pair(values, "link", "merge"))
        np.testing.assert_allclose(adapter.queries(), wanted, rtol=1e-9, atol=1e-9)


def test_query_features_are_a_linear_map_of_the_queries():
    with jax.enable_x64(True):
        adapter, values = made("rein", **TOKENS, link_query_features=True)
        kernel, bias = pair(values, "to_features")
        queries = np.asarray(adapter.queries())
        np.testing.assert_allclose(adapter.query_features(queries), queries @ kernel + bias, rtol=1e-9)


def test_refinement_equals_its_formula():
    scales, rng = (2.0, 1.0, 1.0, 0.5), np.random.default_rng(2)
    with jax.enable_x64(True):
        adapter, values = made("depthforge", **TOKENS, gate_width=3)
        maps = rng.normal(size=(4, 1, 4, 6, WIDTH))
        refined, left = adapter.refine_maps([jnp.asarray(x) for x in maps], scales)
        own = {name: pair(values, "refinement", name) for name in ("reduce", "expand", "fuse")}
        own["spatial"] = (
            values["refinement", "spatial_kernel"], values["refinement", "spatial_bias"]
        )  # fmt: skip
        finest, added = peer_formulas.refinement(own, maps[:, 0], scales)
        np.testing.assert_allclose(refined[0][0], finest + added, rtol=1e-9, atol=1e-9)
        assert left == (1.0, *scales[1:])
        for given, found in zip(maps[1:], refined[1:], strict=True):
            np.testing.assert_array_equal(found, given)


@pytest.mark.parametrize("kind", ["lora", "adaptformer", "vpt"])
def test_block_equals_its_formula(kind):
    config = EncoderConfig(
        kind="dinov2", width=WIDTH, layers=LAYERS, heads=2, patch_size=4, table_size=4, mlp_ratio=2.0
    )
    settings = {
        "lora": {"lora_rank": 2, "lora_alpha": 3.0},
        "adaptformer": {"bottleneck": 3, "branch_scale": 0.7},
        "vpt": {"num_prompts": 2},
    }
    rng, layer = np.random.default_rng(3), 1
    with jax.enable_x64(True):
        encoder, everything = filled(lambda: VisionTransformer(config, rngs=nnx.Rngs(0)))
        own = {path[1:]: x[layer] for path, x in everything.items() if path[0] == "blocks"}
        adapter, values = made(kind, **settings[kind])
        x = rng.normal(size=(BATCH, 1 + 12, WIDTH))
        layers = encoder.stacked(3, 4)
        block = jax.tree.map(lambda leaf: leaf[layer], layers.weights)

        def run(tokens, edit=None, beside=None):
            return layers.apply(tokens, block, edit, beside)

        weights = jax.tree.map(lambda leaf: leaf[layer], adapter.stacked())
        found = adapter.block(weights, jnp.asarray(x), run)
        p = {path[0]: value[layer] for path, value in values.items()}
        for image in range(BATCH):
            tokens, options = x[image], {}
            if kind == "lora":
                (a_q, a_v), (b_q, b_v) = p["lora_a"], p["lora_b"]
                options["lora"] = (a_q, b_q, a_v, b_v, 1.5)
            elif kind == "adaptformer":
                names = ("down_kernel", "down_bias", "up_kernel", "up_bias")
                options["adaptformer"] = (*(p[name] for name in names), 0.7)
            else:  # between class and patch tokens, as published
                tokens = np.concatenate([tokens[:1], p["prompts"], tokens[1:]])
            wanted = peer_formulas.block(own, tokens, 2, config.norm_eps, **options)
            if kind == "vpt":
                wanted = np.concatenate([wanted[:1], wanted[3:]])
            np.testing.assert_allclose(found[image], wanted, rtol=1e-8, atol=1e-8)


def test_prompts_equal_additional_storage_tokens_in_dinov3():
    """These have no position either; with them the encoder is held against transformers' elsewhere."""
    few, more = (
        EncoderConfig(kind="dinov3", width=WIDTH, layers=LAYERS, heads=2, patch_size=4, storage_tokens=count)
        for count in (1, 3)
    )
    with jax.enable_x64(True):
        encoder, _ = filled(lambda: VisionTransformer(few, rngs=nnx.Rngs(0)))
        adapter, values = made("vpt", num_prompts=2)
        layers = encoder.stacked(3, 4)
        block = jax.tree.map(lambda leaf: leaf[1], layers.weights)
        tokens = np.random.default_rng(5).normal(size=(BATCH, 2 + 12, WIDTH))
        weights = jax.tree.map(lambda leaf: leaf[1], adapter.stacked())
        found = adapter.block(weights, jnp.asarray(tokens), lambda x: layers.apply(x, block, None, None))

        prompts = np.broadcast_to(values["prompts",][1], (BATCH, 2, WIDTH))
        whole = jnp.asarray(np.concatenate([tokens[:, :2], prompts, tokens[:, 2:]], axis=1))
        other, _ = filled(lambda: VisionTransformer(more, rngs=nnx.Rngs(0)))
        wanted = other.stacked(3, 4).apply(whole, block, None, None)
        np.testing.assert_allclose(found[:, :2], wanted[:, :2], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found[:, 2:], wanted[:, 4:], rtol=1e-9, atol=1e-9)


def test_haar_transform_is_orthonormal_and_invertible():
    with jax.enable_x64(True):
        image = np.random.default_rng(0).normal(size=(1, 4, 6, 2))
        bands = haar(jnp.asarray(image))
        np.testing.assert_allclose(sum(float((x**2).sum()) for x in bands), (image**2).sum(), rtol=1e-12)
        np.testing.assert_allclose(inverse_haar(bands), image, atol=1e-12)


def test_absent_frequencies_have_zero_gradient():
    image = jnp.ones((1, 4, 4, 2))  # of which all frequencies but one are absent
    gradient = jax.grad(lambda x: sum(jnp.sum(part**2) for part in polar(x)))(image)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)


def test_cross_entropy_of_labelled_pixels():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 6, 8))
    labels[0, :2] = 255
    large = np.stack([peer_formulas.bilinear(x, (6, 8)) for x in logits.astype(np.float64)])
    terms = [
        -np.log(peer_formulas.softmax(large[i])[labels[i] < 5, labels[i][labels[i] < 5]]) for i in range(2)
    ]
    found = pixel_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, np.concatenate(terms).mean(), rtol=1e-6)
    assert pixel_cross_entropy(jnp.asarray(logits), jnp.full((2, 6, 8), 255)) == 0


def test_cross_entropy_with_weights_of_classes():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 6, 8))
    labels[0, :2], weights = 255, (0.2, 3.0, 1.5)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits).movedim(-1, 1), torch.tensor(labels), torch.tensor(weights), ignore_index=255
    )
    found, gradient = jax.value_and_grad(pixel_cross_entropy)(
        jnp.asarray(logits), jnp.asarray(labels), weights
    )
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-6)
    assert not np.asarray(gradient)[labels == 255].any()
    assert pixel_cross_entropy(jnp.asarray(logits), jnp.full((2, 6, 8), 255), weights) == 0


LINKED = ("rein", "depthforge", "set", "fada")
SMALL = {
    "lora": {"lora_rank": 2}, "adaptformer": {"bottleneck": 3}, "vpt": {"num_prompts": 2},
    "depthforge": {"gate_width": 3, "maps": 4},
}  # fmt: skip


def tiny(kind, head="linear", **adapter) -> RunConfig:
    """Two layers, a frozen encoder, and a depth encoder for those that read one."""
    encoder = {"kind": "dinov2", "width": 8, "layers": 2, "heads": 2, "patch_size": 8, "table_size": 2,
               "mlp_ratio": 2.0, "layer_scale": 1.0}  # fmt: skip
    linked = {"num_tokens": 5, "rank": 2, "query_dim": 8, "scale_init": 0.3} if kind in LINKED else {}
    sizes = {"num_queries": 5, "width": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
             "encoder_ffn": 8, "decoder_ffn": 8, "group_norm_groups": 2,
             "scales": (2.0, 1.0, 1.0, 0.5)}  # fmt: skip
    is_decoder = head == "mask2former"
    return load_config("configs/dubai.py").replaced({
        "model.visual": encoder,
        "model.depth": encoder if kind == "depthforge" else None,
        "model.adapter": {"kind": kind, **SMALL.get(kind, {}), **linked, **adapter},
        "model.out_layers": (0, 0, 1, 1) if is_decoder or kind == "depthforge" else (0, 1),
        "model.head": {"kind": head, **(sizes if is_decoder else {})},
        "model.dtype": "float32",
        "loss.num_points": 8 if is_decoder else 1024,
    })  # fmt: skip


def rules_of(structure):
    return structure.backbone.adapter.optimizer_rules + TrainConfig(steps=1).rules


def leaf_names(tree):
    return {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


KINDS = [(kind, "linear") for kind in sorted(set(BUILTIN) - {"spectral_moe"})]  # which all other tests train
WITH_QUERIES = [pytest.param(kind, "mask2former", marks=pytest.mark.slow) for kind in LINKED]


@pytest.mark.parametrize(("kind", "head"), [*KINDS, *WITH_QUERIES])
def test_every_kind_trains_its_parameters_and_predicts(kind, head):
    """With every weight random, every parameter that trains has a gradient; with the mask decoder also those
    that link queries, as positions and as features."""
    config = tiny(kind, head, **({"link_query_features": True} if head == "mask2former" else {}))
    structure = abstract_segmenter(segmenter_config(config))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), split(structure))
    trainable, frozen = values
    frozen["pixel_mean"], frozen["pixel_std"] = np.full(3, 120, np.float32), np.full(3, 60, np.float32)
    pixels = rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    batch = {"image": pixels, "label": rng.integers(0, 5, (2, 32, 32)).astype(np.uint8)}
    loss = make_loss(structure, LossConfig())

    @jax.jit
    def run(trainable, frozen):
        return jax.value_and_grad(loss, has_aux=True)(trainable, frozen, batch, jax.random.key(0))

    (total, _), gradients = run(trainable, frozen)
    assert np.isfinite(total)
    found = leaf_names(gradients)
    assert all(np.all(np.isfinite(leaf)) for leaf in found.values())
    still = {name for name, leaf in found.items() if not np.any(leaf)}
    assert {name for name in still if not set(name.split("/")) & {"link", "transform", "merge"}} == set()
    # the linear head has no use for linked queries
    assert bool(still) == (kind in LINKED and head == "linear")
    match_rules(rules_of(structure), trainable)  # raises for a parameter without one
    encoders = [name for name in found if name.startswith(("backbone/visual/", "backbone/depth/"))]
    assert bool(encoders) == (kind in ("full", "bitfit"))
    assert not any(name.startswith("backbone/depth/") for name in found)
    assert kind != "bitfit" or all(name.endswith("bias") for name in encoders)
    scores = jax.eval_shape(lambda *parts: join(structure, *parts).scores(pixels), trainable, frozen)
    assert scores.shape == (2, 32, 32, 5)


def test_experts_are_counted_with_a_linear_head():
    config = tiny("spectral_moe", num_experts=3, use_depth=False, num_tokens=5, rank=2)
    structure = abstract_segmenter(segmenter_config(config))
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    batch = {"image": pixels, "label": np.zeros((2, 32, 32), np.uint8)}
    given = (*split(structure), batch, jax.random.key(0))
    _, metrics = jax.eval_shape(make_loss(structure, LossConfig()), *given)
    assert metrics["expert_usage"].shape == (2, 1, 3)
    assert set(metrics) == {"expert_usage", "loss_balance", "loss_cls"}
    routed = jax.eval_shape(lambda *parts: join(structure, *parts).scores_and_experts(pixels), *given[:2])
    assert [leaf.shape for leaf in routed] == [(2, 32, 32, 5), (2, 1, 2, 16)]


def test_linked_queries_give_the_link_a_gradient():
    adapter, _ = made("set", **TOKENS)
    values, _ = split(adapter)
    gradients = jax.jit(jax.grad(lambda values: jnp.sum(join(adapter, values).queries() ** 2)))(values)
    taught = {name for name, leaf in leaf_names(gradients).items() if np.any(leaf)}
    assert taught == {f"content/tokens_{x}" for x in "ab"} | {
        f"link/{part}/{x}" for part in ("transform", "merge") for x in ("kernel", "bias")
    }


@pytest.mark.parametrize("kind", ["depthforge", "none"])
def test_the_mask_decoder_with_and_without_linked_queries(kind):
    config = tiny(kind, "mask2former", **({"link_query_features": True} if kind == "depthforge" else {}))
    structure = abstract_segmenter(segmenter_config(config))
    own = {name for name in split(structure)[0]["head"] if name.startswith("query_")}
    assert own == (set() if kind == "depthforge" else {"query_feat", "query_embed"})

    def logits(*parts):
        out = join(structure, *parts)(jnp.zeros((1, 32, 32, 3)))
        return out.class_logits, out.mask_logits

    class_logits, mask_logits = jax.eval_shape(logits, *split(structure))
    assert class_logits.shape == (2, 1, 5, 6)
    assert mask_logits.shape == (2, 1, 5, 8, 8)


DECAYED = {
    "rein": {"token_to_feature", "delta_to_feature", "transform", "merge"},
    "lora": {"lora_a", "lora_b"}, "adaptformer": set(), "vpt": set(), "bitfit": set(),
}  # fmt: skip


@pytest.mark.parametrize("kind", DECAYED)
def test_weight_decay_as_published(kind):
    structure = abstract_segmenter(segmenter_config(tiny(kind)))
    factors = match_rules(rules_of(structure), {"backbone": split(structure)[0]["backbone"]})
    decayed = {name for name, (decay, _) in factors.items() if decay}
    wanted = {name for name in factors if set(name.split("/")) & DECAYED[kind]}
    assert decayed == wanted
    assert bool(decayed) == bool(DECAYED[kind])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("rein", {"model.adapter.num_tokens": 7}, r"num_tokens = 7: must equal config\.model\.head"),
        ("rein", {"model.adapter.gating": "laplace"}, r"config\.model\.adapter\.gating is not a known key"),
        ("depthforge", {"model.depth": None}, r"adapter\.kind reads depth tokens"),
        (
            "bitfit",
            {"model.visual.trainable": True},
            r"visual\.trainable = True: set it to False, .*'bitfit'",
        ),
        ("lora", {"model.adapter.lora_rank": 0}, r"adapter\.lora_rank = 0: must be at least 1"),
        ("rein", {"model.head.kind": "fcn"}, r"config\.model\.head\.kind = 'fcn': must be one of"),
        ("vpt", {"model.visual.kind": "sam", "model.visual.global_every": 2}, r"'vpt' adds tokens, .* 'sam'"),
    ],
)
def test_incompatible_settings(kind, change, message):
    config = tiny(kind, "mask2former")
    with pytest.raises(UserError, match=message):
        segmenter_config(config.replaced(change))
