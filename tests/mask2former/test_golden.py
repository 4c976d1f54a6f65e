"""The head and its loss against numbers of the released implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.head import semantic_scores
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.parity.segmenter_goldens import released_assignment, slot_points
from spectralmoe_jax.weights.name_rules import write_tensors
from spectralmoe_jax.weights.released import head_rules


@pytest.fixture(scope="module")
def run(golden):
    """Logits, loss and gradients of the recorded input, in float32."""
    arrays, classes = golden.arrays, golden.config.num_classes
    config = LossConfig(num_points=golden.sizes["num_points_loss"])
    layers = 1 + golden.config.decoder_layers
    recorded = [arrays[f"loss_points_{i}"] for i in range(layers)]
    loss_points = slot_points(recorded, arrays["assignment"], arrays["label"], classes)
    graph, state = golden.head()

    def objective(state, features, queries, labels, match_points, loss_points):
        logits = nnx.merge(graph, state)(features, queries)
        loss = mask2former_loss(
            *logits, labels, config=config, match_points=match_points, loss_points=loss_points
        )
        return loss.total, (logits, loss)

    points = (arrays["assign_points"], loss_points)
    arguments = (golden.features, arrays["queries"], arrays["label"], *points)
    (_, (logits, loss)), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(state, *arguments)
    leaves = jax.tree.map(np.asarray, flatten_dict(nnx.to_pure_dict(gradient)))
    return logits, loss, write_tensors(head_rules(path=()), leaves)


def test_logits(golden, run, relative_error):
    (class_logits, mask_logits), _, _ = run
    assert relative_error(class_logits, golden.arrays["class_logits"]) < 1e-5
    assert relative_error(mask_logits, golden.arrays["mask_logits"]) < 1e-5


def test_semantic_scores(golden, run, relative_error):
    (class_logits, mask_logits), _, _ = run
    want = golden.arrays["seg_logits"]
    scores = semantic_scores(class_logits[-1], mask_logits[-1], want.shape[2:])
    assert relative_error(np.asarray(scores).transpose(0, 3, 1, 2), want) < 1e-5


def test_assignment(golden, run):
    _, loss, _ = run
    got = released_assignment(loss.assignment, golden.arrays["label"], golden.config.num_classes)
    np.testing.assert_array_equal(got, golden.arrays["assignment"])
    assert loss.bad_costs == 0


def test_every_loss_term(golden, run):
    _, loss, _ = run
    prefix = "loss/"
    names = {name[len(prefix) :] for name in golden.arrays.files if name.startswith(prefix)}
    assert set(loss.terms) == names - {"loss_lora"}  # the balance loss is the adapter's
    for name, value in loss.terms.items():
        np.testing.assert_allclose(value, golden.arrays[prefix + name].item(), rtol=1e-5, err_msg=name)
    total = golden.arrays["loss_total"].item() - golden.arrays["balance_loss"].item()
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)


def test_every_recorded_gradient(golden, run, relative_error):
    _, _, gradient = run
    prefix = "grad/"
    names = [name for name in golden.arrays.files if name.startswith(prefix + "decode_head.")]
    assert len(names) == 15
    errors = {name: relative_error(gradient[name[len(prefix) :]], golden.arrays[name]) for name in names}
    assert max(errors.values()) < 1e-4, errors


def test_released_tensors_round_trip_bit_for_bit(golden):
    _, state = golden.head()
    leaves = jax.tree.map(np.asarray, flatten_dict(nnx.to_pure_dict(state)))
    back = write_tensors(head_rules(path=()), leaves)
    assert set(back) == set(golden.tensors)
    for name, tensor in golden.tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-5), ("bfloat16", 0.1)])
def test_other_precisions(golden, relative_error, dtype, bound):
    with jax.enable_x64(dtype == "float64"):
        graph, state = golden.head(np.float64 if dtype == "float64" else np.float32)
        head = nnx.merge(graph, state)
        head.dtype = jnp.dtype(dtype)
        graph, state = nnx.split(head)
        run = jax.jit(lambda s, f, q: nnx.merge(graph, s)(f, q))
        class_logits, mask_logits = run(state, golden.features, golden.arrays["queries"])
        assert class_logits.dtype == mask_logits.dtype == ("float64" if dtype == "float64" else "float32")
        # the first prediction: later ones may differ more in bfloat16, where a mask flips at its edge
        assert relative_error(class_logits[0], golden.arrays["class_logits"][0]) < bound
        assert relative_error(mask_logits[0], golden.arrays["mask_logits"][0]) < bound
        if dtype == "float64":
            assert relative_error(mask_logits, golden.arrays["mask_logits"]) < bound
