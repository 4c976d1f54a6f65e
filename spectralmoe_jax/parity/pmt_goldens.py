"""Check golden files of the plain mask decoder: a folder with the authors' values for one tiny model.

`encoder.safetensors` and `decoder.safetensors` are the weights, and five `.npz` files the values: of the
encoder and its levels, of the inference form, of the training form with running and with batch statistics,
and of the loss on the predictions of the training form. Sizes follow from the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.config.adapters import NoAdapterConfig
from spectralmoe_jax.config.model import EncoderConfig, PlainDecoderConfig
from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.head import semantic_scores
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.mask2former.point_sampling import sample_own
from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.models.plain_decoder import PlainDecoder, hidden_patches, mask_probability
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.models.upscaling import upscale
from spectralmoe_jax.parameters import leaves, with_values
from spectralmoe_jax.parity.comparison import Check, compare, read_arrays
from spectralmoe_jax.resampling import corners
from spectralmoe_jax.weights.encoder_file import read_encoder
from spectralmoe_jax.weights.formats import file_fields, recognise
from spectralmoe_jax.weights.reading import open_weight_file
from spectralmoe_jax.weights.released import stream_segmenter

BOUND = 5e-5  # largest relative error, in float32
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of pixels in [0, 1]
DECODER, LEVELS = "decoder.safetensors", "encoder_levels"
# Keys that checks read as inputs, by how they start; what is left is listed as not checked.
INPUTS = ("image_uint8", "per_pixel_argmax", "match_", "rand_", "target_")
NOTES = {"lr_": "the authors' learning rate: this project has its own schedule"}


def verify_plain_decoder(path: Path) -> list[Check]:
    """Check the folder of a golden plain mask decoder.

    Args:
      path: `decoder.safetensors` of the folder.

    Raises:
      UserError: a file is missing, not readable, or does not fit the others.
    """
    folder = path.parent
    goldens = {name: read_arrays(folder / f"{name}.npz") for name in (LEVELS, *CHECKS)}
    try:
        segmenter = golden_segmenter(folder, goldens)
        with jax.default_matmul_precision("highest"):
            tokens, checks = _check_levels(segmenter, goldens[LEVELS])
            parts = [checks, *(check(segmenter, tokens, goldens) for check in CHECKS.values())]
    except (KeyError, ValueError, TypeError, IndexError) as problem:
        raise UserError(
            f"{folder}: not the goldens of a plain mask decoder ({problem}); see goldens/README.md"
        ) from None
    names = (LEVELS, *CHECKS)
    return [
        check._replace(file=f"{name}.npz")
        for name, part in zip(names, parts, strict=True)
        for check in _with_the_rest(part, goldens[name])
    ]


def _with_the_rest(checks: list[Check], golden: dict[str, np.ndarray]) -> list[Check]:
    """Add what the file holds and no check read, without a bound and with the reason."""
    read = {check.quantity for check in checks}
    rest = [key for key in golden if key not in read and not key.startswith(INPUTS)]

    def note(key: str) -> str:
        """Return why an array is not checked."""
        return next((note for start, note in NOTES.items() if key.startswith(start)), "unknown")

    return [*checks, *(Check("", key, np.nan, None, note(key)) for key in rest)]


# The model.


def golden_segmenter(folder: Path, goldens: dict[str, dict[str, np.ndarray]]) -> Segmenter:
    """Make the segmenter of a folder, filled with its weights, in float32."""
    # 1. sizes
    encoder_file = open_weight_file(folder / "encoder.safetensors")
    decoder_file = open_weight_file(folder / DECODER)
    rope = goldens[LEVELS]["rope_cos"]  # (N, D / heads)
    fields = file_fields(recognise(encoder_file))
    visual = EncoderConfig(**{**fields, "heads": fields["width"] // rope.shape[1]})
    decoder = {name.removeprefix("network.decoder."): name for name in decoder_file}
    probabilities = decoder_file[decoder["attn_mask_probs"]]
    blocks, queries = len(probabilities), decoder_file.shape(decoder["q.weight"])[0]
    hidden = decoder_file.shape(decoder["blocks.0.mlp.up_proj.weight"])[0]
    classes = decoder_file.shape(decoder["class_head.bias"])[0] - 1
    settings = SegmenterConfig(
        visual=visual,
        depth=None,
        adapter=NoAdapterConfig(),
        adapter_kind=NoAdapterConfig.kind,
        head=PlainDecoderConfig(
            num_queries=queries, blocks=blocks, mlp_ratio=(hidden + 0.5) / visual.width, num_classes=classes,
            mask_starts=(0.0,) * blocks, mask_ends=(1.0,) * blocks,
        ),
        out_layers=golden_layers(goldens[LEVELS], encoder_file),
        dtype="float32",
        pixel_mean=tuple(255 * mean for mean in IMAGENET[0]),
        pixel_std=tuple(255 * deviation for deviation in IMAGENET[1]),
    )  # fmt: skip
    # 2. weights
    structure = abstract_segmenter(settings)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(structure).items()}
    values: dict[Any, Any] = {
        ("backbone", "visual", *path): leaf for path, leaf in read_encoder(encoder_file, visual)
    }
    values |= stream_segmenter(decoder_file, settings, shapes, {"head"})
    values |= {("pixel_mean",): settings.pixel_mean, ("pixel_std",): settings.pixel_std}
    return with_values(structure, {path: jnp.asarray(leaf, jnp.float32) for path, leaf in values.items()})


def golden_layers(golden: dict[str, np.ndarray], encoder: Any) -> tuple[int, ...]:
    """Return the layers that the levels come from: those whose tokens, after the last norm, are the levels.

    The file does not name them.
    """
    scale, bias = encoder["norm.weight"], encoder["norm.bias"]
    blocks = _numbered(golden, "enc_block{}")
    normed = [
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EncoderConfig.norm_eps)
        for x in blocks
    ]
    return tuple(
        int(np.argmin([np.abs(x * scale + bias - level).max() for x in normed]))
        for level in _numbered(golden, "level{}_normed")
    )


def _numbered(golden: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Return the arrays of a name with a number in it, from 0 on."""
    found: list[np.ndarray] = []
    while name.format(len(found)) in golden:
        found.append(golden[name.format(len(found))])
    return found


# The checks of one file each.


def _check_levels(segmenter: Segmenter, golden: dict[str, np.ndarray]) -> tuple[jax.Array, list[Check]]:
    """Check rotary positions, encoder blocks and levels; also return the levels (levels, B, T, D)."""
    image = segmenter.normalise(jnp.asarray(golden["image_uint8"].transpose(0, 2, 3, 1)))
    visual, head = segmenter.backbone.visual, _head(segmenter)
    rope = visual.rope(*visual.grid(image.shape))
    assert rope is not None
    features = jax.jit(segmenter.features)(image)
    assert features.prefixes is not None
    tokens = jnp.stack([
        jnp.concatenate([prefix, x.reshape(len(x), -1, x.shape[-1])], axis=1)
        for prefix, x in zip(features.prefixes, features.maps, strict=True)
    ])  # fmt: skip
    normed = normalised_levels(head, tokens, in_training=False)
    ours: dict[str, Any] = {"rope_cos": rope.cos, "rope_sin": rope.sin}
    ours |= {f"enc_block{i}": x for i, x in enumerate(jax.jit(functools.partial(all_layers, visual))(image))}
    for i, (level, after) in enumerate(zip(tokens, normed, strict=True)):
        ours |= {f"level{i}_normed": level, f"level{i}_bn": after}
    return tokens, _compared(ours, golden)


def _check_plain(
    segmenter: Segmenter, tokens: jax.Array, goldens: dict[str, dict[str, np.ndarray]]
) -> list[Check]:
    """Check the inference form: tokens of every block, the prediction, and the scores of pixels."""
    golden, head, (grid, rope) = goldens["plain"], _head(segmenter), _positions(segmenter, goldens)
    trail = jax.jit(functools.partial(_trail, head, grid=grid, rope=rope, masked=False))(tokens)
    classes, masks, _ = jax.jit(functools.partial(head, grid=grid, rope=rope, all_layers=False))(tokens)
    size = goldens[LEVELS]["image_uint8"].shape[2:]
    scores = np.asarray(semantic_scores(classes[0], masks[0], (size[0], size[1])))  # (B, H, W, C)
    ours = {"class_logits0": classes[0], "mask_logits0": masks[0], **trail}
    ours |= {"class_logits_last_f32_original": classes[0], "mask_logits_last_f32_original": masks[0]}
    ours["per_pixel_logits"] = scores[:1].transpose(0, 3, 1, 2)
    # the golden class of a pixel has to have the best score: where two are equal, either may be the argmax
    chosen = np.take_along_axis(scores, golden["per_pixel_argmax"].astype(int)[..., None], axis=-1)[..., 0]
    argmax = compare("", "per_pixel_argmax (score)", chosen, scores.max(axis=-1), BOUND)
    return [*_compared(ours, golden), argmax]


def _check_masked(
    segmenter: Segmenter, tokens: jax.Array, goldens: dict[str, dict[str, np.ndarray]]
) -> list[Check]:
    """Check the training form with running statistics, with masked attention throughout."""
    head, (grid, rope) = _head(segmenter), _positions(segmenter, goldens)
    ours = jax.jit(functools.partial(_trail, head, grid=grid, rope=rope, masked=True))(tokens)
    classes, masks, _ = jax.jit(functools.partial(head, grid=grid, rope=rope))(tokens)
    ours |= _predictions(classes, masks)
    ours |= {"class_logits_last_f32_original": classes[-1], "mask_logits_last_f32_original": masks[-1]}
    return _compared(ours, goldens["masked"])


def _check_batch_statistics(
    segmenter: Segmenter, tokens: jax.Array, goldens: dict[str, dict[str, np.ndarray]]
) -> list[Check]:
    """Check the training form with statistics of the batch, and the running ones after it."""
    head, (grid, rope) = _head(segmenter), _positions(segmenter, goldens)
    training = jax.jit(functools.partial(head, grid=grid, rope=rope))
    # with a key, and no progress: masked attention has the probability 1
    classes, masks, statistics = training(tokens, key=jax.random.key(0))
    ours = _predictions(classes, masks)
    normed = normalised_levels(head, tokens, in_training=True)
    ours |= {f"level{i}_bn": level for i, level in enumerate(normed)}
    for ending, name in (("mean", "mean"), ("var", "variance")):
        values = statistics["levels", "norm", name]
        ours |= {f"bn{i}_running_{ending}_after": value for i, value in enumerate(values)}
    return _compared(ours, goldens["train_bn"])


def _head(segmenter: Segmenter) -> PlainDecoder:
    assert isinstance(segmenter.head, PlainDecoder)
    return segmenter.head


def _positions(segmenter: Segmenter, goldens: dict[str, dict[str, np.ndarray]]) -> tuple[Any, Any]:
    """Return the patch grid and the rotary positions."""
    batch, _, height, width = goldens[LEVELS]["image_uint8"].shape
    visual = segmenter.backbone.visual
    grid = visual.grid((batch, height, width, 3))
    return grid, visual.rope(*grid)


def normalised_levels(head: PlainDecoder, tokens: jax.Array, *, in_training: bool) -> jax.Array:
    """Return the levels (levels, B, T, D) after their batch normalisation."""
    graph, weights = nnx.split(head.levels)

    def one(tokens: jax.Array, weights: nnx.State) -> jax.Array:
        """Normalise one level."""
        level: Any = nnx.merge(graph, weights)
        return level.norm(tokens, in_training=in_training)

    return jax.jit(jax.vmap(one))(tokens, weights)


def _trail(
    head: PlainDecoder, tokens: jax.Array, grid: tuple[int, int], rope: Any, *, masked: bool
) -> dict[str, Any]:
    """Run block by block: tokens around every block, attention maps, and parts of the last prediction."""
    x, queries = head.joined(head.fuse(tokens, in_training=False)[0]), head.config.num_queries
    patches, found = grid[0] * grid[1], dict[str, Any]()
    for index in range(head.config.blocks):
        blocked = None
        if masked:
            lifted = jnp.zeros((x.shape[0], queries), bool)
            blocked = hidden_patches(head.predict(x, grid)[1], grid, lifted, x.shape[1])
            found[f"attn_allowed{index}"] = ~blocked[:, :queries, -patches:]
        found[f"dec_in{index}"] = x
        weights = jax.tree.map(lambda leaf, index=index: leaf[index], nnx.state(head.blocks))
        x = head.block(x, weights, rope, blocked)
        found[f"dec_block{index}"] = x
    normed = head.norm(x)
    found["mask_embed_last"] = head.mask_embed(normed[:, :queries])
    upscaled = upscale(normed[:, -patches:].reshape(len(x), *grid, -1), head.upscaling)
    return found | {"upscaled_last": jnp.moveaxis(upscaled, -1, 1)}


def _predictions(classes: jax.Array, masks: jax.Array) -> dict[str, Any]:
    """Return the predictions (K, B, ...) under the names of a golden file."""
    named: dict[str, Any] = {f"class_logits{i}": logits for i, logits in enumerate(classes)}
    return named | {f"mask_logits{i}": logits for i, logits in enumerate(masks)}


def _compared(ours: dict[str, Any], golden: dict[str, np.ndarray]) -> list[Check]:
    """Compare what the file holds; attention maps have to be equal."""
    bounds = {key: 0.0 if key.startswith("attn_allowed") else BOUND for key in ours}
    return [compare("", key, ours[key], golden[key], bounds[key]) for key in ours if key in golden]


def _check_loss(
    segmenter: Segmenter, tokens: jax.Array, goldens: dict[str, dict[str, np.ndarray]]
) -> list[Check]:
    """Check matching, losses and gradients on the golden predictions, and the fall of masked attention."""
    golden, masked = goldens["loss_schedules"], goldens["masked"]
    classes, masks = (
        jnp.asarray(np.stack(_numbered(masked, name)), jnp.float32)
        for name in ("class_logits{}", "mask_logits{}")
    )  # (K, B, Q, C + 1), (K, B, Q, h, w)
    labels = label_maps(golden, masks.shape[1])
    config = LossConfig(num_points=golden["rand_match_0_0"].shape[1])
    match_points = np.stack([
        np.concatenate([golden[f"rand_match_{k}_{b}"] for b in range(masks.shape[1])])
        for k in range(len(masks))
    ]).astype(np.float32)  # fmt: skip
    points = loss_points(golden, masks, classes.shape[-1] - 1, config)

    def total(classes: jax.Array, masks: jax.Array) -> tuple[jax.Array, Any]:
        """Compute the loss, and its parts."""
        loss = mask2former_loss(
            classes, masks, jnp.asarray(labels), config=config,
            match_points=jnp.asarray(match_points), loss_points=jnp.asarray(points),
        )  # fmt: skip
        return loss.total, (loss.terms, loss.assignment)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, (terms, assignment)), slopes = run(classes, masks)
    checks = [compare("", "matching", assignment, golden_assignment(golden, classes.shape), 0.0)]
    ours: dict[str, Any] = {"total": value}
    weights = {"mask": config.mask_weight, "dice": config.dice_weight, "cls": config.class_weight}
    names = {"mask": "loss_mask", "dice": "loss_dice", "cls": "loss_cross_entropy"}
    for k in range(len(masks)):
        prefix = "" if k == len(masks) - 1 else f"d{k}."
        of_output = {term: terms[f"{prefix}loss_{term}"] for term in weights}
        ours |= {f"{names[term]}_{k}": of_output[term] / weight for term, weight in weights.items()}
        ours[f"total_{k}"] = sum(of_output.values())
        ours |= {f"grad_class_logits_{k}": slopes[0][k], f"grad_mask_logits_{k}": slopes[1][k]}
    return [*checks, *_compared(ours, golden), *_check_annealing(golden)]


def _check_annealing(golden: dict[str, np.ndarray]) -> list[Check]:
    """Check samples of the probability of masked attention, named `annealing_startS_endE`, in steps."""
    checks = []
    for key in (key for key in golden if key.startswith("annealing_start")):
        start, end = (float(number) for number in key.removeprefix("annealing_start").split("_end"))
        power = PlainDecoderConfig.mask_power
        steps, wanted = golden[key].T
        ours = np.stack([mask_probability(step, (start,), (end,), power)[0] for step in steps])
        checks.append(compare("", key, ours, wanted, BOUND))
    return checks


def label_maps(golden: dict[str, np.ndarray], batch: int) -> np.ndarray:
    """Join the target masks of every image to labels (B, H, W), 255 outside of all."""
    labels = []
    for image in range(batch):
        masks, classes = golden[f"target_masks_{image}"], golden[f"target_labels_{image}"]
        if masks.sum(axis=0).max() > 1 or len(set(classes.tolist())) < len(classes):
            raise ValueError(f"target_masks_{image} overlap, or have a class twice")
        label = np.full(masks.shape[1:], 255, np.int32)
        for mask, number in zip(masks, classes, strict=True):
            label[mask] = number
        labels.append(label)
    return np.stack(labels)


def golden_assignment(golden: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return class + 1 of every matched query, 0 for the others: (K, B, Q)."""
    found = np.zeros(shape[:3], np.int64)
    for k, image in np.ndindex(shape[:2]):
        query, target = golden[f"match_q_{k}_{image}"], golden[f"match_t_{k}_{image}"]
        found[k, image, query] = golden[f"target_labels_{image}"][target] + 1
    return found


def loss_points(
    golden: dict[str, np.ndarray], masks: jax.Array, classes: int, config: LossConfig
) -> np.ndarray:
    """Choose the points of the mask terms as the authors do, one slot for every class: (K, B, C, P, 2).

    For every matched pair, in the order of images and then of queries, the least certain points of a pool,
    then others.
    """
    assignment = golden_assignment(golden, masks.shape)
    points = np.zeros((*masks.shape[:2], classes, config.num_points, 2), np.float32)
    for k in range(len(masks)):
        pairs = np.argwhere(assignment[k])  # image and query
        pool = golden[f"rand_pool_{k}"].astype(np.float32)
        own = masks[k, pairs[:, 0], pairs[:, 1]]  # (pairs, h, w)
        where = corners(jnp.asarray(pool[..., 0]), jnp.asarray(pool[..., 1]), *own.shape[1:])
        logits = np.abs(np.asarray(sample_own(own, where)))
        for pair, (image, query) in enumerate(pairs):
            certain = np.argsort(logits[pair], kind="stable")[: config.uncertain_points]
            chosen = np.concatenate([pool[pair][certain], golden[f"rand_extra_{k}"][pair]])
            points[k, image, assignment[k, image, query] - 1] = chosen
    return points


CHECKS: dict[str, Callable[..., list[Check]]] = {
    "plain": _check_plain,
    "masked": _check_masked,
    "train_bn": _check_batch_statistics,
    "loss_schedules": _check_loss,
}
"""The check of every file but that of the levels, which come first."""
