"""AdamW with parameter groups by first-match rules, and the published learning-rate schedule.

Groups and numbers are those of arXiv 2603.13352 and the released training configuration. Weight decay is
0.05, except 0 on norms, query and level embeddings, experts, gates, noise and alpha; biases are decayed like
weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.adapters.base import Rule
from spectralmoe_jax.config.schema import TrainConfig
from spectralmoe_jax.errors import UserError, require
from spectralmoe_jax.parameters import from_named_leaves, named_leaves


def make_optimizer(
    settings: TrainConfig, params: Any, first: tuple[Rule, ...] = ()
) -> optax.GradientTransformation:
    """Make AdamW for these parameters.

    Args:
      settings: numbers and rules.
      params: the trainable pytree, or its shapes; only names are read.
      first: rules that come before those of the settings: `Segmenter.optimizer_rules`.

    Returns:
      An optax transformation whose update equals that of AdamW with decoupled weight decay,
      `p - lr * (m / (sqrt(v) + eps) + decay * p)`, per group.

    Raises:
      UserError: names the parameters that no rule covers.
    """
    factors = match_rules(first + settings.rules, params)
    decays, rates = (from_named_leaves({n: f[i] for n, f in factors.items()}, params) for i in (0, 1))

    def group(values: Any, wanted: float) -> Any:
        """Mask the parameters whose factor is `wanted`."""
        return jax.tree.map(lambda value: value == wanted, values)

    # 1. clip the global norm
    chain = [] if settings.clip_norm is None else [optax.clip_by_global_norm(settings.clip_norm)]
    # 2. Adam's direction
    chain += [optax.scale_by_adam(*settings.betas, eps=settings.eps)]
    # 3. weight decay and learning rate, group by group
    for factor in sorted({decay for decay, _ in factors.values()} - {0.0}):
        chain += [optax.add_decayed_weights(settings.weight_decay * factor, mask=group(decays, factor))]
    for factor in sorted({rate for _, rate in factors.values()} - {1.0}):
        chain += [optax.masked(optax.scale(factor), group(rates, factor))]
    # 4. the schedule
    return optax.chain(*chain, optax.scale_by_learning_rate(make_schedule(settings)))


def match_rules(rules: tuple[Rule, ...], params: Any) -> dict[str, tuple[float, float]]:
    """Return the factors on (weight decay, learning rate) of every parameter by its name.

    The first rule whose expression is found in a name counts.

    Raises:
      UserError: a rule is not a regular expression, or no rule covers a parameter.
    """
    factors: dict[str, tuple[float, float]] = {}
    for name in named_leaves(params):
        try:
            found = next(((decay, rate) for rule, decay, rate in rules if re.search(rule, name)), None)
        except re.error as error:
            raise UserError(
                f"config.train.rules: not a regular expression: {error.pattern!r} ({error.msg})"
            ) from None
        if found is not None:
            factors[name] = found
    uncovered = [name for name in named_leaves(params) if name not in factors]
    require(not uncovered, "config.train.rules", f"no rule covers {', '.join(uncovered)}")
    return factors


def make_schedule(settings: TrainConfig) -> Callable[[Any], jax.Array]:
    """Make the learning rate by step: linear warm-up, then `lr * (1 - t / T) ** power` down to 0.

    Step 0 of a warm-up of w steps has `lr / (w + 1)`, so that no step is wasted.
    """
    warmup, decay = settings.warmup_steps, settings.steps - settings.warmup_steps

    def learning_rate(step: Any) -> jax.Array:
        """Return the learning rate of a step, scalar or traced."""
        rising = (jnp.asarray(step, jnp.float32) + 1) / (warmup + 1)
        remaining = 1 - jnp.clip((step - warmup) / decay, 0.0, 1.0)
        return settings.learning_rate * jnp.where(step < warmup, rising, remaining**settings.power)

    return learning_rate
