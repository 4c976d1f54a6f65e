"""The loss of a batch of raw pixels, as a pure function of plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spectralmoe_jax.losses.cross_entropy import pixel_cross_entropy
from spectralmoe_jax.losses.mask2former import mask2former_loss
from spectralmoe_jax.losses.settings import LossConfig
from spectralmoe_jax.models.segmenter import PixelOutput, Segmenter
from spectralmoe_jax.models.state import join
from spectralmoe_jax.training.step import LossFunction, Metrics


def make_loss(segmenter: Segmenter, config: LossConfig) -> LossFunction:
    """The training loss of a segmenter, of which only the structure is read.

    The returned function takes the two dicts of `models.state.split`, a batch `{"image": (B, H, W, C) raw
    pixels, "label": (B, H, W)}` and a key, and gives the scalar loss with its named terms: class, mask and
    dice summed over decoder layers (of the linear head, its cross-entropy as class), and the adapter's own;
    and where there are experts `expert_usage` (L, J, E), the share of tokens of a layer and modality whose
    strongest expert each is.
    """

    def loss_fn(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        model = join(segmenter, trainable, frozen)
        noise_key, point_key = jax.random.split(key)
        out = model(model.normalise(batch["image"]), key=noise_key)
        labels = batch["label"].astype(jnp.int32)
        metrics: Metrics = {"loss_balance": out.auxiliary_loss}
        if out.experts is not None and out.experts.size:
            metrics["expert_usage"] = expert_usage(out.experts, segmenter.config.adapter.num_experts)
        if isinstance(out, PixelOutput):
            entropy = pixel_cross_entropy(out.logits, labels)
            return entropy + out.auxiliary_loss, metrics | {"loss_cls": entropy}
        loss = mask2former_loss(out.class_logits, out.mask_logits, labels, config=config, key=point_key)
        sums = {
            name: jnp.stack([value for term, value in loss.terms.items() if term.endswith(name)]).sum()
            for name in ("loss_cls", "loss_mask", "loss_dice")
        }
        # a matching on costs that are not finite would go unnoticed: let the loop see it
        total = jnp.where(loss.bad_costs > 0, jnp.nan, loss.total) + out.auxiliary_loss
        return total, metrics | sums

    return loss_fn


def expert_usage(strongest: jax.Array, experts: int) -> jax.Array:
    """Share of tokens by their strongest expert: (L, J, B, N) int32 -> (L, J, E) float32."""
    return jnp.mean(strongest[..., None] == jnp.arange(experts), axis=(2, 3), dtype=jnp.float32)


def make_stream_loss(segmenters: Mapping[str, Segmenter], config: LossConfig) -> LossFunction:
    """The training loss of a run on several sensors, each with a segmenter for its bands.

    As `make_loss`, of batches `{stream: batch}` with one stream each, and frozen weights by stream. The
    function is compiled once a stream.
    """
    losses = {name: make_loss(segmenter, config) for name, segmenter in segmenters.items()}

    def loss_fn(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        ((name, tiles),) = batch.items()
        return losses[name](trainable, frozen[name], tiles, key)

    return loss_fn
