"""Classifiers on fixed features: multinomial logistic regression, and nearest centroids."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spectralmoe_jax.models.linear_probe import minimise


class LinearClassifier(NamedTuple):
    """Logits x W + b of features x.

    Attributes:
      weights: (D, C).
      bias: (C,).
    """

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(..., D) -> logits (..., C)."""
        return features @ self.weights + self.bias


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    penalty: float = 1.0,
    weights: np.ndarray | None = None,
) -> LinearClassifier:
    """Fit multinomial logistic regression to convergence, on features standardised by their own statistics.

    The objective is scikit-learn's: sum of cross-entropies + penalty / 2 |W|^2, W on standardised features
    and without the bias; divided by the number of samples. It is convex, so the result depends on the data
    alone.

    Args:
      features: (n, D).
      labels: (n,) integers in 0..classes-1.
      classes: number of classes C.
      penalty: of the squared weights.
      weights: weight of each sample, (n,); None for ones.

    Returns:
      The classifier for features as they are, standardisation folded in.
    """
    x, mean, deviation = _standardised(features)
    sample = np.ones(len(labels)) if weights is None else np.asarray(weights)
    w, b = _fit(
        jnp.asarray(x, jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(sample, jnp.float32),
        jnp.asarray(penalty, jnp.float32),
        classes,
    )
    w = np.asarray(w) / deviation[:, None]
    return LinearClassifier(w, np.asarray(b) - mean @ w)


def _standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised features (n, D), and the mean and deviation (D,) that were used; 1 for a constant one."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    return (features - mean) / deviation, mean, deviation


@functools.partial(jax.jit, static_argnums=4)
def _fit(
    x: jax.Array, labels: jax.Array, sample: jax.Array, penalty: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Minimise the objective of `fit_logistic`, divided by the number of samples."""
    total = sample.sum()

    def objective(parameters: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Mean cross-entropy and penalty."""
        w, b = parameters
        with jax.default_matmul_precision("highest"):
            losses = optax.softmax_cross_entropy_with_integer_labels(x @ w + b, labels)
        return (jnp.sum(losses * sample) + penalty / 2 * jnp.sum(w**2)) / total

    return minimise(objective, (jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)))[0]


def fit_centroids(features: np.ndarray, labels: np.ndarray, classes: int) -> LinearClassifier:
    """Classify by the nearest centroid of standardised features, as a linear classifier.

    |x - m_c|^2 = |x|^2 - 2 (x m_c - |m_c|^2 / 2): the nearest centroid has the largest x m_c - |m_c|^2 / 2.
    A class without a sample is never chosen.

    Args:
      features: (n, D).
      labels: (n,) integers in 0..classes-1.
      classes: number of classes C.
    """
    x, mean, deviation = _standardised(features)
    counts = np.bincount(labels, minlength=classes)
    sums = np.stack([x[labels == label].sum(axis=0) for label in range(classes)])
    centroids = sums / np.maximum(counts, 1)[:, None]  # (C, D)
    w = centroids.T / deviation[:, None]
    bias = np.where(counts > 0, -np.sum(centroids**2, axis=1) / 2, -np.inf)
    return LinearClassifier(w, bias - mean @ w)
