"""From a configuration to what the training loop needs: model, loss, batches, evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.splits import Splits, open_splits, training_batches
from spectralmoe_jax.checkpoints.trained import initial_segmenter
from spectralmoe_jax.configuration import from_config
from spectralmoe_jax.losses.settings import LossConfig
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import join, split
from spectralmoe_jax.training.loop import Experiment
from spectralmoe_jax.training.objective import make_loss


def build_experiment(config: ConfigDict) -> Experiment:
    """Opens the data and makes the model of a configuration.

    Raises:
      UserError: names the key or file that is wrong.
    """
    model = segmenter_config(config)
    loss = from_config(LossConfig, config.loss, "loss")
    splits = open_splits(config)
    trainable, frozen = split(initial_segmenter(config))
    structure = abstract_segmenter(model)
    return Experiment(
        trainable=trainable,
        frozen=frozen,
        loss_fn=make_loss(structure, loss),
        make_batches=lambda start: training_batches(config, splits, start),
        batch_size=config.train.batch_size,
        evaluate=make_evaluation(config, splits, structure, frozen) if splits.holdout else None,
    )


def make_evaluation(
    config: ConfigDict, splits: Splits, structure: Segmenter, frozen: Any
) -> Callable[[Any], Mapping[str, float]]:
    """Scores of trainable parameters on the part of the source held out for choosing a checkpoint."""
    from spectralmoe_jax.evaluation.command import score_split

    scores = jax.jit(lambda trainable, frozen, pixels: join(structure, trainable, frozen).scores(pixels))

    def evaluate(trainable: Any) -> Mapping[str, float]:
        def predict(pixels: np.ndarray) -> np.ndarray:
            return np.asarray(scores(trainable, frozen, pixels))

        return score_split(config, splits, "holdout", predict)

    return evaluate
