"""Properties of the head that the golden files do not cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.config.model import Mask2FormerConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.head import Mask2FormerHead
from spectralmoe_jax.mask2former.transformer_decoder import MaskDecoder, Memory
from spectralmoe_jax.parameters import leaves, with_values

SMALL = {"num_classes": 3, "num_queries": 5, "width": 16, "num_heads": 2, "encoder_layers": 1,
         "encoder_ffn": 16, "decoder_ffn": 16, "points": 2, "group_norm_groups": 4}  # fmt: skip


def small_head(**changes):
    config = Mask2FormerConfig(**{**SMALL, "decoder_layers": 2, **changes})
    return Mask2FormerHead(config, in_features=12, rngs=nnx.Rngs(0))


def inputs(height=5, width=7):
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((2, height, width, 12), np.float32) for _ in range(4)]
    return features, rng.standard_normal((SMALL["num_queries"], SMALL["width"]), np.float32)


@pytest.mark.parametrize("scale", [4.0, 2.0, 0.5])
def test_projecting_before_resizing_changes_nothing(scale):
    torch = pytest.importorskip("torch")
    x = inputs()[0][0]
    resized = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=scale, mode="bilinear"
    )
    project = small_head().pixel_decoder.lateral_conv
    want = project(jnp.asarray(resized.numpy().transpose(0, 2, 3, 1)), 1.0)
    np.testing.assert_allclose(project(jnp.asarray(x), scale), want, atol=1e-5)


def test_shapes():
    features, queries = inputs()
    class_logits, mask_logits = jax.eval_shape(lambda: small_head()(features, queries))
    assert class_logits.shape == (3, 2, 5, 4)
    assert mask_logits.shape == (3, 2, 5, 20, 28)


def test_last_layer_only_and_external_queries():
    """The same numbers where the head has the query positions itself and is given the query features."""
    features, queries = inputs()
    head = small_head()
    kinds = {"own_positions": True, "own_features": False}
    other = nnx.eval_shape(lambda: Mask2FormerHead(head.config, in_features=12, rngs=nnx.Rngs(0), **kinds))
    values = leaves(head)
    start = values.pop(("query_feat",))
    other = with_values(other, values | {("query_embed",): jnp.asarray(queries)})
    both = jax.jit(lambda x, q: (head(x, q), other(x, None, query_features=start, all_layers=False)))(
        features, queries
    )
    for every, last in zip(*both, strict=True):
        assert last.shape == (1, *every.shape[1:])
        np.testing.assert_allclose(last[0], every[-1], atol=1e-5)


def test_a_fully_masked_query_attends_everywhere():
    features, queries = inputs()

    def class_logits(mask_logit):
        head = small_head()
        head.pixel_decoder.mask_feature.kernel[...] = jnp.zeros_like(
            head.pixel_decoder.mask_feature.kernel[...]
        )
        head.pixel_decoder.mask_feature.bias[...] = jnp.ones_like(head.pixel_decoder.mask_feature.bias[...])
        head.mask_embed.third.kernel[...] = jnp.zeros_like(head.mask_embed.third.kernel[...])
        head.mask_embed.third.bias[...] = jnp.full_like(head.mask_embed.third.bias[...], mask_logit)
        return head(features, queries)[0]

    # all masks negative hides everything, all positive nothing
    np.testing.assert_allclose(class_logits(-1.0), class_logits(1.0), atol=1e-6)


@pytest.mark.parametrize("count", [2, 7])
def test_any_number_of_decoder_layers(count):
    rng = np.random.default_rng(3)
    decoder = MaskDecoder(Mask2FormerConfig(**SMALL, decoder_layers=count), rngs=nnx.Rngs(1))
    query, positions = rng.standard_normal((2, 5, 16), np.float32), rng.standard_normal((5, 16), np.float32)
    memories = [Memory(*rng.standard_normal((2, 2, n, 16), np.float32)) for n in (4, 6, 9)]
    hidden = [rng.uniform(size=(2, 5, n)) < 0.4 for n in (4, 6, 9)]
    got = jax.jit(lambda q: decoder(q, positions, memories, lambda _, level: jnp.asarray(hidden[level])))(
        query
    )

    graph, weights = nnx.split(decoder.layers)
    trail = [decoder.post_norm(jnp.asarray(query))]
    for i in range(count):
        layer = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], weights))
        query = layer(query, positions, memories[i % 3], jnp.asarray(hidden[i % 3]))
        trail.append(decoder.post_norm(query))
    np.testing.assert_allclose(got, np.stack(trail), atol=1e-5)


def test_remat_keeps_fewer_residuals():
    features, queries = inputs()

    def kept(remat):
        config = Mask2FormerConfig(**{**SMALL, "encoder_layers": 6}, decoder_layers=9)  # as published
        head = nnx.eval_shape(lambda: Mask2FormerHead(config, in_features=12, remat=remat, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(head)
        pull = jax.eval_shape(
            lambda s: jax.vjp(lambda s: nnx.merge(graph, s)(features, queries), s)[1], state
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    assert kept(True) < 0.5 * kept(False)


def test_the_published_head_has_the_published_size():
    config = Mask2FormerConfig(num_classes=19)
    head = nnx.eval_shape(lambda: Mask2FormerHead(config, in_features=1024, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(head))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    encoder_layer = (192 + 96 + 256 + 256) * 257 + 1024 * 257 + 256 * 1025 + 4 * 256
    decoder_layer = 2 * (768 + 256) * 257 + 2048 * 257 + 256 * 2049 + 6 * 256
    pixel = 3 * (1024 * 256 + 256 + 512) + 3 * 256 + 1024 * 256 + 512 + 9 * 256 * 256 + 512 + 256 * 257
    rest = 100 * 256 + 3 * 256 + 20 * 257 + 3 * 256 * 257 + 512
    want = 6 * encoder_layer + 9 * decoder_layer + pixel + rest
    assert sum(leaf.size for leaf in leaves) == want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "config.model.head.num_heads = 3: must divide"),
        ({"group_norm_groups": 5}, "config.model.head.group_norm_groups = 5"),
        ({"width": 18}, "config.model.head.width = 18: must be a multiple of 4"),
        ({"decoder_layers": 0}, "config.model.head.decoder_layers = 0"),
        ({"points": 2.5}, "config.model.head.points = 2.5"),
        ({"scales": (4, 2, 1)}, "config.model.head.scales"),
    ],
)
def test_bad_settings_name_their_key(change, message):
    with pytest.raises(UserError) as caught:
        Mask2FormerConfig(**{**SMALL, **change})
    assert message in str(caught.value)


def test_queries_of_another_shape_are_rejected():
    features, queries = inputs()
    with pytest.raises(ValueError, match="queries"):
        small_head()(features, queries[:-1])


def test_bfloat16_has_gradients_on_this_device():
    """Not every product of bfloat16 with a float32 result exists on every backend."""
    config = Mask2FormerConfig(**SMALL, decoder_layers=3)
    head = Mask2FormerHead(config, in_features=12, dtype=jnp.bfloat16, own_positions=True, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(head)
    features = [jnp.ones((1, 8, 8, 12))] * 4

    def total(weights):
        return sum(jnp.sum(logits**2) for logits in nnx.merge(graph, weights)(features, None))

    gradients = jax.jit(jax.grad(total))(weights)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
