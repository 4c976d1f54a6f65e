"""Balanced weights of classes reach the loss as numbers, from the pixels of the training images."""

import numpy as np

from data_pipelines.splits import open_splits
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.training import train
from tests.tiny_run import SIZES


def test_balanced_weights_are_of_the_training_pixels(monkeypatch):
    overrides = [*SIZES, "model.out_layers=(0,1,2,3)", "loss.class_weights=balanced"]
    config = load_config("configs/quickstart.py", [f"--config.{value}" for value in overrides])
    given = []
    monkeypatch.setattr(train, "make_loss", lambda structure, settings, steps: given.append(settings))
    train.build_experiment(config)
    labels = np.concatenate([label.ravel() for *_, label in open_splits(config).examples("train")])
    pixels = np.bincount(labels, minlength=6)
    wanted = [labels.size / (np.count_nonzero(pixels) * n) if n else 1 for n in pixels]
    np.testing.assert_allclose(given[0].class_weights, wanted, rtol=1e-12)
    assert config.loss.class_weights == "balanced"  # as the run stores it
