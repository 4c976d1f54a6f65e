"""A linear head that starts fitted: `config.train.head_start = "probe"`.

The features are those of the model as it starts, from the first tiles that the run trains on; `linear_probe`
fits the head to them. Nothing is random but the tiles, which depend on the run's seed alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import Array

from spectralmoe_jax.config.model import LinearHeadConfig
from spectralmoe_jax.config.schema import TrainConfig
from spectralmoe_jax.models.linear_head import labels_to_learn
from spectralmoe_jax.models.linear_probe import Example, fit_linear
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parameters import join
from spectralmoe_jax.training.loop import prefetch


def make_probe_start(
    structures: Mapping[str, Segmenter],
    frozen: Mapping[str, Any],
    make_batches: Callable[[int], Iterator[Mapping[str, Any]]],
    settings: TrainConfig,
    layout: Layout | None = None,
    class_weights: Sequence[float] | None = None,
) -> Callable[[Any], Any]:
    """Make a function from trainable parameters to the same with a fitted head.

    Args:
      structures: a segmenter for the bands of each stream, read for its structure only.
      frozen: the frozen parameters of each stream.
      make_batches: function from a first step to this process's part of the batches, `{stream: batch}`.
      settings: size of a batch, number of tiles, and penalty.
      layout: mesh that parameters and batches are sharded over; None for one device.
      class_weights: weights of a pixel by its class, as in the loss; None for equal ones.
    """
    learnt = jax.jit(labels_to_learn, static_argnums=(1, 2))
    features = {name: _make_features(structure, layout) for name, structure in structures.items()}
    head = next(iter(structures.values())).config.head
    assert isinstance(head, LinearHeadConfig)  # other heads have no such start
    place = jax.device_put if layout is None else layout.place_batch
    count = -(-settings.probe_tiles // settings.batch_size)

    def start(trainable: Any) -> Any:
        """Fit the head on the features of the first batches, and replace its leaves."""
        # 1. features of the first batches
        examples: list[Example] = []
        with contextlib.closing(prefetch(make_batches(0), ahead=1, place=place)) as batches:
            for batch in itertools.islice(batches, count):
                ((name, tiles),) = batch.items()
                found = features[name](trainable, frozen[name], tiles["image"])  # (B, h, w, F)
                examples.append((found, learnt(tiles["label"], found.shape[1:3], head)))

        # 2. fit, and report
        fit = fit_linear(examples, head.num_classes, settings.probe_penalty, layout, class_weights)
        if jax.process_index() == 0:
            tiles, entropy = count * settings.batch_size, f"{float(fit.loss):.4f}"
            print(f"head fitted to {tiles} tiles, cross-entropy {entropy}", flush=True)

        # 3. the head's leaves
        before = trainable["head"]["classifier"]
        fitted = {"kernel": fit.kernel, "bias": fit.bias}
        placed = {
            name: jax.device_put(value.astype(before[name].dtype), before[name].sharding)
            for name, value in fitted.items()
        }
        return {**trainable, "head": {**trainable["head"], "classifier": placed}}

    return start


def _make_features(structure: Segmenter, layout: Layout | None) -> Callable[[Any, Any, Array], Array]:
    """Make the jitted function (trainable, frozen, raw tiles (B, H, W, bands)) -> features (B, h, w, F)."""

    def features(trainable: Any, frozen: Any, pixels: Array) -> Array:
        """Compute what the head classifies, without the adapter's noise."""
        model = join(structure, trainable, frozen)
        return model.head_features(model.normalise(pixels))

    if layout is None:
        return jax.jit(features)
    return jax.jit(layout.traced(features), out_shardings=layout.sharding(("batch", None, None, None)))
