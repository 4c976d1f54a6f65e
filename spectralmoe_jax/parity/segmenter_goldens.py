"""Check golden files of the whole segmenter: features, logits, losses and gradients from released weights.

The released code orders assignments and loss points differently from ours. It numbers the ground truths of an
image by the sorted classes present in it, and lists masks by image, then by query; we have one slot for every
class. `released_assignment`, `class_assignment` and `slot_points` translate between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig
from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.head import Mask2FormerHead, semantic_scores
from spectralmoe_jax.mask2former.loss import mask2former_loss, term_names
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import with_values
from spectralmoe_jax.parity.comparison import (
    Check,
    Shape,
    compare,
    compare_if_present,
    parse_meta,
    raise_problems,
    read_arrays,
    require_arrays,
    worst,
)
from spectralmoe_jax.resampling import resize_bilinear
from spectralmoe_jax.weights.name_rules import write_tensors
from spectralmoe_jax.weights.released import load_released, segmenter_rules

# Largest relative errors of features and queries; of logits and losses; of gradients.
FEATURES, LOGITS, GRADIENTS = 1e-5, 1e-4, 1e-3
OUTPUTS = (
    "queries", "balance_loss", "class_logits", "mask_logits", "seg_logits", "loss_total", "loss/", "grad/",
)  # fmt: skip


def verify_segmenter(path: Path) -> list[Check]:
    """Check one golden segmenter: `NAME.json` beside `NAME.npz` and `NAME.safetensors`.

    If the folder lacks the weights, the result is one check without a bound that reports this. A quantity
    that the file does not hold is listed without a bound, too.

    Raises:
      UserError: a file is not readable or does not fit the others.
    """
    golden = read_arrays(path.with_suffix(".npz"))
    try:
        meta = parse_meta(path, path.read_bytes())
        require_arrays(path.with_suffix(".npz"), golden, _input_shapes(golden, meta), OUTPUTS)
        config, loss_config = golden_segmenter_config(
            meta, [golden[f"feature_{i}"].shape[-1] for i in range(4)]
        )
        slot_points(*_recorded(golden, config.head.num_classes))
    except KeyError as missing:
        raise UserError(f"{path}: not a segmenter golden (no {missing}); see goldens/README.md") from None
    except (OSError, ValueError, TypeError, IndexError) as problem:
        raise UserError(f"{path}: not a segmenter golden ({problem}); see goldens/README.md") from None
    weights = path.with_suffix(".safetensors")
    if not weights.exists():
        return [Check(path.name, "everything", np.nan, None, f"skipped: {weights.name} is not here")]
    segmenter = Segmenter(config, rngs=nnx.Rngs(0))
    load_released(segmenter, weights)
    with jax.default_matmul_precision("highest"):
        return _check(path, segmenter, golden, loss_config)


def golden_segmenter_config(meta: dict, feature_sizes: Sequence[int]) -> tuple[SegmenterConfig, LossConfig]:
    """Return the configuration of a golden segmenter and of its loss.

    Args:
      meta: hyper-parameters in the `.json` file.
      feature_sizes: side of each feature map that the head sees. The released DOFA backbone, unlike that of
        DINOv3, leaves all of them at the size of the patch grid.

    Raises:
      ValueError: the patch padding is not that of the encoder.
    """
    depth, adapter, head = meta["depth_encoder"], meta["adapter"], meta["head"]
    grid = meta["image_size"] // meta["patch_size"]
    sizes = {"width": meta["embed_dim"], "layers": meta["depth"], "heads": meta["num_heads"]}
    visual = EncoderConfig(
        kind=meta.get("backbone", "dinov3"), **sizes, patch_size=meta["patch_size"],
        in_channels=meta["in_channels"], storage_tokens=meta["num_storage_tokens"],
        rope_base=meta["rope_base"], norm_eps=meta["norm_eps"], table_size=grid,
        wavelengths=tuple(meta.get("wavelengths_um", ())),
    )  # fmt: skip
    depth_encoder = EncoderConfig(
        kind=depth["kind"], width=depth["embed_dim"], layers=depth["depth"], heads=depth["num_heads"],
        patch_size=depth["patch_size"], in_channels=len(depth["channels"]), storage_tokens=0,
        norm_eps=depth["norm_eps"], table_size=grid, name="depth",
    )  # fmt: skip
    shared = ("num_experts", "rank", "num_tokens", "query_dim", "top_k", "gating")
    model = SegmenterConfig(
        visual=visual,
        depth=depth_encoder,
        adapter=SpectralMoEConfig(
            preset="released", balance_weight=adapter["balance_loss_coef"], **{k: adapter[k] for k in shared}
        ),
        head=Mask2FormerConfig(
            num_classes=head["num_classes"], num_queries=head["num_queries"], width=head["feat_channels"],
            num_heads=head["num_heads"], encoder_layers=head["encoder_layers"],
            decoder_layers=head["decoder_layers"], encoder_ffn=head["encoder_ffn"],
            decoder_ffn=head["decoder_ffn"], points=head["deformable_points"],
            group_norm_groups=head["group_norm_groups"],
            scales=tuple(size / grid for size in feature_sizes),
        ),
        depth_bands=tuple(depth["channels"]),
        out_layers=tuple(meta["out_layers"]),
        dtype="float32",
        pixel_mean=(0.0,) * meta["in_channels"],
        pixel_std=(1.0,) * meta["in_channels"],
    )  # fmt: skip
    if meta.get("patch_embed_padding", visual.family.padding) != visual.family.padding:
        raise ValueError(f"patch_embed_padding is {meta['patch_embed_padding']}, not {visual.family.padding}")
    weights = head["weights"]
    loss = LossConfig(
        class_weight=weights["cls"], mask_weight=weights["mask"], dice_weight=weights["dice"],
        no_object_weight=weights["no_object"], num_points=head["num_points_loss"],
        oversample_ratio=head["oversample_ratio"], importance_sample_ratio=head["importance_sample_ratio"],
    )  # fmt: skip
    return model, loss


def _input_shapes(golden: dict[str, np.ndarray], meta: dict) -> dict[str, Shape]:
    """Return the shapes of the arrays that the quantities are computed from."""
    head, side = meta["head"], meta["image_size"]
    layers, queries = head["decoder_layers"] + 1, head["num_queries"]
    batch = golden["image"].shape[0] if "image" in golden and golden["image"].ndim else None
    assignment = np.asarray(golden.get("assignment", ()))
    masks: list[int | None] = [None] * layers
    if assignment.shape == (layers, batch, queries):
        masks = [int(np.count_nonzero(layer)) for layer in assignment]
    points = head["num_points_loss"]
    return {
        "image": (None, meta["in_channels"], side, side),
        "label": (batch, side, side),
        **{f"feature_{i}": (batch, meta["embed_dim"], None, None) for i in range(4)},
        "assign_points": (layers, batch, None, 2),
        "assignment": (layers, batch, queries),
        **{f"loss_points_{i}": (masks[i], points, 2) for i in range(layers)},
    }


def _recorded(golden: dict, classes: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
    """Return the arguments of `slot_points`: recorded loss points, assignment, labels, class count."""
    points = [golden[f"loss_points_{i}"] for i in range(len(golden["assignment"]))]
    return points, golden["assignment"], golden["label"], classes


def _check(path: Path, segmenter: Segmenter, golden: dict, loss_config: LossConfig) -> list[Check]:
    file = path.name
    trainable = {
        leaf_path: variable.get_value()
        for leaf_path, variable in nnx.to_flat_state(nnx.state(segmenter))
        if isinstance(variable, nnx.Param)
    }
    _refuse_unknown_names(path, segmenter, golden, trainable)
    # 1. Compute all quantities and gradients.
    run = jax.jit(jax.value_and_grad(_objective(segmenter, golden, loss_config), has_aux=True))
    (total, parts), grads = run(trainable)
    # 2. Compare features, queries, logits and the assignment.
    features = [
        compare(file, f"feature_{i}", _channels_first(parts["features"][i]), golden[f"feature_{i}"], FEATURES)
        for i in range(4)
    ]
    queries = compare_if_present(file, "queries", parts["queries"], golden, FEATURES)
    logits = [
        compare_if_present(file, key, parts[key], golden, LOGITS)
        for key in ("class_logits", "mask_logits", "seg_logits")
    ]
    ours = released_assignment(parts["assignment"], golden["label"], segmenter.config.head.num_classes)
    assignment = compare(file, "assignment", ours, golden["assignment"], 0.0)
    # 3. Compare losses and gradients, under the released names.
    terms = {"balance_loss": parts["balance"], "loss_total": total, "loss/loss_lora": parts["balance"]}
    terms |= {f"loss/{name}": value for name, value in parts["terms"].items()}
    gradients = _released_gradients(segmenter, grads)
    losses = [compare(file, key, terms[key], golden[key], LOGITS) for key in terms if key in golden]
    each = [compare(file, key, gradients[key], golden[key], GRADIENTS) for key in gradients if key in golden]
    return [
        *features, queries, *logits, assignment, worst(file, losses, "losses"), worst(file, each, "gradients")
    ]  # fmt: skip


def _released_gradients(segmenter: Segmenter, gradients: dict) -> dict[str, np.ndarray]:
    """Return gradients by path, or anything of the same shapes, under their names in a golden file."""
    rules = segmenter_rules(segmenter.config.visual, segmenter.config.depth)
    tensors = write_tensors(rules, {path: np.asarray(leaf) for path, leaf in gradients.items()})
    return {f"grad/{name}": value for name, value in tensors.items()}


def _refuse_unknown_names(path: Path, segmenter: Segmenter, golden: dict, trainable: dict) -> None:
    """Check the names of losses and gradients, before anything is computed.

    Raises:
      UserError: the file holds a loss or a gradient that the segmenter does not have.
    """
    outputs = golden["assignment"].shape[0]
    known = {f"loss/{name}" for name in ("loss_lora", *term_names(outputs))}
    known |= _released_gradients(segmenter, trainable).keys()
    unknown = [key for key in golden if key.startswith(("loss/", "grad/")) and key not in known]
    raise_problems(path.with_suffix(".npz"), {"unexpected": unknown})


def _objective(segmenter: Segmenter, golden: dict, loss_config: LossConfig):
    """Return the function from trainable weights to the loss at the recorded points, and all quantities."""
    image = jnp.asarray(golden["image"].transpose(0, 2, 3, 1))  # (B, H, W, bands)
    labels = golden["label"]
    loss_points = slot_points(*_recorded(golden, segmenter.config.head.num_classes))

    def objective(trainable):
        """Compute the total loss from the trainable parameters."""
        model = with_values(segmenter, trainable)
        features = model.backbone(image)
        assert isinstance(model.head, Mask2FormerHead)
        class_logits, mask_logits = model.head(features.maps, features.queries)
        loss = mask2former_loss(
            class_logits, mask_logits, jnp.asarray(labels), config=loss_config,
            match_points=jnp.asarray(golden["assign_points"]), loss_points=jnp.asarray(loss_points),
        )  # fmt: skip
        scores = semantic_scores(class_logits[-1], mask_logits[-1], (image.shape[1], image.shape[2]))
        sizes = [golden[f"feature_{i}"].shape[2:] for i in range(4)]
        return loss.total + features.auxiliary_loss, {
            "features": [resize_bilinear(x, size) for x, size in zip(features.maps, sizes, strict=True)],
            "queries": features.queries,
            "balance": features.auxiliary_loss,
            "class_logits": class_logits,
            "mask_logits": mask_logits,
            "seg_logits": _channels_first(scores),
            "assignment": loss.assignment,
            "terms": loss.terms,
        }

    return objective


def _channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(x), -1, 1)


def released_assignment(assignment: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Translate an assignment of queries from ours to the released numbering.

    Args:
      assignment: (K, B, Q), class + 1 of every query as `mask2former_loss` returns it, 0 for no object.
      labels: (B, H, W); values from `num_classes` up are ignored.
      num_classes: number of classes.

    Returns:
      (K, B, Q), index + 1 of the class among the sorted classes of the image, 0 for no object.
    """
    ranks = _ranks(labels, num_classes)  # (B, C + 1)
    assignment = np.asarray(assignment)
    return np.stack([ranks[b][assignment[:, b]] for b in range(len(ranks))], axis=1)


def class_assignment(released: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Translate an assignment from the released numbering to ours: the inverse of `released_assignment`."""
    codes = [np.concatenate([[0], np.flatnonzero(row[1:]) + 1]) for row in _ranks(labels, num_classes)]
    released = np.asarray(released)
    return np.stack([code[released[:, b]] for b, code in enumerate(codes)], axis=1)


def slot_points(
    points: Sequence[np.ndarray], released: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Bring recorded loss points into one slot for every class.

    Args:
      points: for each of the K decoder outputs (masks, P, 2), masks ordered by image, then by query.
      released: (K, B, Q), the recorded assignment in the released numbering.
      labels: (B, H, W).
      num_classes: number of classes.

    Returns:
      (K, B, C, P, 2); slots of absent classes are zero.
    """
    classes = class_assignment(released, labels, num_classes)  # (K, B, Q), class + 1 or 0
    layers, batch, _ = classes.shape
    slots = np.zeros((layers, batch, num_classes, *points[0].shape[1:]), points[0].dtype)
    for layer in range(layers):
        image, query = np.nonzero(classes[layer])
        slots[layer, image, classes[layer, image, query] - 1] = points[layer]
    return slots


def _ranks(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (B, C + 1): at class + 1 its rank + 1 among the image's classes, 0 if absent; at 0 a zero."""
    present = np.stack([np.isin(np.arange(num_classes), image) for image in np.asarray(labels)])  # (B, C)
    ranks = np.where(present, np.cumsum(present, axis=1), 0)
    return np.concatenate([np.zeros((len(ranks), 1), ranks.dtype), ranks], axis=1)
