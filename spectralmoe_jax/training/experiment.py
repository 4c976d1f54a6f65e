"""From a configuration to what the training loop needs: model, loss, batches, evaluation."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.splits import Splits, open_splits, training_batches
from data_pipelines.streams import MAIN, interleave, stream_configs, stream_weights
from spectralmoe_jax.adapters.protocol import hook
from spectralmoe_jax.checkpoints.trained import initial_segmenter, make_scores
from spectralmoe_jax.configuration import from_config, require
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.losses.settings import LossConfig
from spectralmoe_jax.models.bands import for_bands
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import split
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.prediction.windows import WindowSettings
from spectralmoe_jax.training.loop import Experiment
from spectralmoe_jax.training.objective import make_loss, make_stream_loss


def build_experiment(config: ConfigDict, layout: Layout | None = None) -> Experiment:
    """Opens the data and makes the model of a configuration, spread over the devices of a layout.

    Raises:
      UserError: names the key or file that is wrong.
    """
    loss = from_config(LossConfig, config.loss, "loss")
    configs = stream_configs(config)
    structures = {name: abstract_segmenter(segmenter_config(stream)) for name, stream in configs.items()}
    for name, stream in configs.items():
        check_sizes(stream, structures[name].config.visual.patch_size)
    splits = {name: open_splits(stream) for name, stream in configs.items()}
    segmenter = initial_segmenter(config, layout)
    trainable, frozen = split(segmenter)
    holdout = splits[MAIN].holdout
    evaluate = make_evaluation(config, splits[MAIN], structures[MAIN], frozen, layout) if holdout else None
    rules = hook(segmenter.backbone.adapter, "optimizer_rules") or ()
    common = {"rules": rules, "trainable": trainable, "batch_size": config.train.batch_size, "layout": layout}
    part = (0, 1) if layout is None else layout.host_part()
    if len(configs) == 1:
        return Experiment(
            **common,
            frozen=frozen,
            loss_fn=make_loss(structures[MAIN], loss),
            make_batches=lambda start: training_batches(config, splits[MAIN], start, *part),
            evaluate=evaluate,
        )

    def make_batches(start: int) -> Iterator[Any]:
        return interleave(
            stream_weights(config),
            lambda name, number: training_batches(configs[name], splits[name], number, *part),
            start,
        )

    return Experiment(
        **common,
        frozen={MAIN: frozen} | {name: split(_stream(segmenter, name, stream))[1]
                                 for name, stream in configs.items() if name != MAIN},
        loss_fn=make_stream_loss(structures, loss),
        make_batches=make_batches,
        evaluate=evaluate,
    )  # fmt: skip


def check_sizes(config: ConfigDict, patch_size: int) -> None:
    """Checks `config.evaluate`, the sizes that the model takes, and the numbers of workers and threads.

    Raises:
      UserError: names the key; without this it would be found in the middle of a run.
    """
    window = from_config(WindowSettings, config.evaluate, "evaluate").window
    for key, side in (("config.data.crop", config.data.crop), ("config.evaluate.window", window)):
        require(
            isinstance(side, int) and side > 0 and side % patch_size == 0,
            key,
            f"is {side!r}: give a multiple of config.model.visual.patch_size = {patch_size}",
        )
    for key, count, least in (
        ("workers", config.data.workers, 0),
        ("threads", config.data.get("threads", 1), 1),
    ):
        enough = isinstance(count, int) and count >= least
        require(enough, f"config.data.{key}", f"is {count!r}: give {least} or more")


def _stream(segmenter: Segmenter, name: str, config: ConfigDict) -> Segmenter:
    """The segmenter for the bands of a stream, with the parameters of the main one."""
    settings = segmenter_config(config)
    try:
        return for_bands(
            segmenter,
            settings.visual.wavelengths,
            pixel_mean=settings.pixel_mean,
            pixel_std=settings.pixel_std,
            depth_bands=settings.depth_bands,
        )
    except UserError as problem:
        raise UserError(f"config.streams.{name}: {problem}") from None


def make_evaluation(
    config: ConfigDict, splits: Splits, structure: Segmenter, frozen: Any, layout: Layout | None = None
) -> Callable[[Any], Mapping[str, float]]:
    """Scores of trainable parameters on the part of the source held out for choosing a checkpoint."""
    from spectralmoe_jax.evaluation.command import score_split

    scores = make_scores(structure, layout)

    def evaluate(trainable: Any) -> Mapping[str, float]:
        def predict(pixels: np.ndarray) -> np.ndarray:
            return scores(trainable, frozen, pixels)

        return score_split(config, splits, "holdout", predict)

    return evaluate
