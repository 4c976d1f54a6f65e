"""Fit a linear classifier to features that are held fixed: the linear head's training loss is then convex.

L-BFGS finds the minimum of

  mean over batches of the cross-entropy of x W + b, plus penalty / 2 * sum of (sigma W)^2,

with sigma the deviation of each feature, so that the penalty does not depend on the features' scale. For
batches of as many labelled pixels this is multinomial logistic regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spectralmoe_jax.layers import project, wide_type
from spectralmoe_jax.models.linear_head import pixel_cross_entropy
from spectralmoe_jax.parallel import Layout

ITERATIONS = 500
STALLED = 4  # iterations in a row that do not lower the value, after which rounding is all that is left
TOLERANCE = 1e-5  # norm of the gradient for standardised features; without any weights it is about 1
HIGHEST = jax.lax.Precision.HIGHEST

Example = tuple[Array, Array]  # features (B, h, w, F), labels (B, H, W)


class Fit(NamedTuple):
    """A fitted linear classifier.

    Attributes:
      kernel: (F, C), at least float32.
      bias: (C,), likewise.
      loss: (), without the penalty.
      iterations: int32 (), those of L-BFGS.
    """

    kernel: Array
    bias: Array
    loss: Array
    iterations: Array


def fit_linear(
    examples: Sequence[Example],
    classes: int,
    penalty: float,
    layout: Layout | None = None,
    class_weights: Sequence[float] | None = None,
) -> Fit:
    """Fit a linear classifier to features, with its logits resized to the labels as in training.

    Args:
      examples: batches of features and labels; labels outside 0..C-1 are ignored.
      classes: C.
      penalty: factor of half the squared weights for standardised features; the bias is not penalised.
      layout: mesh that the batches are sharded over; the result is replicated. None for one device.
      class_weights: C weights of a pixel by its class, as in the training loss; None for equal ones.
    """

    def fit(examples: Sequence[Example]) -> Fit:
        """Standardise and minimise."""
        mean, deviation = _moments([features for features, _ in examples])
        wide = mean.dtype

        def classifier(weights: tuple[Array, Array]) -> tuple[Array, Array]:
            """Kernel (F, C) and bias (C,) for the features as they are, from those for standardised ones."""
            kernel = weights[0] / deviation[:, None]
            return kernel, weights[1] - jnp.matmul(mean, kernel, precision=HIGHEST)

        def entropy(weights: tuple[Array, Array]) -> Array:
            """Mean over batches of the head's training loss."""
            kernel, bias = classifier(weights)
            # features in the type of the kernel: rounded to theirs, it would make the loss a staircase
            logits = [project(x.astype(wide), kernel, wide, HIGHEST) + bias for x, _ in examples]
            losses = [
                pixel_cross_entropy(x, labels, class_weights)
                for x, (_, labels) in zip(logits, examples, strict=True)
            ]
            return jnp.stack(losses).mean()

        def objective(weights: tuple[Array, Array]) -> Array:
            """Cross-entropy and penalty."""
            return entropy(weights) + penalty / 2 * jnp.sum(weights[0] ** 2)

        zero = jnp.zeros((mean.shape[0], classes), wide), jnp.zeros((classes,), wide)
        weights, iterations = minimise(objective, zero)
        return Fit(*classifier(weights), entropy(weights), iterations)

    if layout is None:
        return jax.jit(fit)(examples)
    return jax.jit(layout.traced(fit), out_shardings=layout.sharding())(examples)


def _moments(features: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and deviation of every feature over all tokens, (F,) each; 1 for that of a constant feature.

    Args:
      features: (B, h, w, F) each.
    """
    wide = [x.astype(wide_type(x.dtype)) for x in features]
    mean = jnp.stack([x.mean(axis=(0, 1, 2)) for x in wide]).mean(axis=0)
    variance = jnp.stack([((x - mean) ** 2).mean(axis=(0, 1, 2)) for x in wide]).mean(axis=0)
    return mean, jnp.sqrt(jnp.where(variance > 0, variance, 1))


def minimise(objective: Callable[[Any], Array], start: Any) -> tuple[Any, Array]:
    """Return the minimum of a smooth convex function by L-BFGS (optax), and the number of iterations."""
    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        """Do one iteration."""
        weights, state, iterations, stalled = carry
        value, gradient = value_and_gradient(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=objective
        )
        falls = optax.tree.get(state, "value") < value
        return optax.apply_updates(weights, updates), state, iterations + 1, jnp.where(falls, 0, stalled + 1)

    def goes_on(carry: Any) -> Array:
        """Return whether the gradient is not small yet, and the value still falls, but for rounding."""
        _, state, iterations, stalled = carry
        is_small = optax.tree.norm(optax.tree.get(state, "grad")) <= TOLERANCE
        return (iterations == 0) | (~is_small & (stalled < STALLED) & (iterations < ITERATIONS))

    count = jnp.zeros((), jnp.int32)
    weights, _, iterations, _ = jax.lax.while_loop(goes_on, step, (start, solver.init(start), count, count))
    return weights, iterations
