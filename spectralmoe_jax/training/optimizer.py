"""AdamW with parameter groups by first-match rules, and the learning-rate schedules.

Default groups and numbers are those of arXiv 2603.13352 and the released training configuration. Weight decay
is 0.05, except 0 on norms, query and level embeddings, experts, gates, noise and alpha; biases are decayed
like weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.adapters.base import Rule
from spectralmoe_jax.config.schema import PartRates, TrainConfig
from spectralmoe_jax.errors import UserError, require
from spectralmoe_jax.parameters import from_named_leaves, named_leaves

HEAD = "head/"
PARTS = {"visual": "backbone/visual/", "adapter": "backbone/adapter/", "head": HEAD}
"""What the names of a part's parameters start with, by its key in `config.train.lr_factors`."""


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
      `p - lr * (m / (sqrt(v) + eps) + decay * p)`, per group. With `head_first_steps` = N, all that is not of
      the head is left as it is for N steps, moments included, and is then trained as from a first step.

    Raises:
      UserError: names the parameters that no rule covers.
    """
    factors = match_rules(first + settings.rules, params)
    decays = {name: decay for name, (decay, _) in factors.items()}
    rates = {name: rate * part_rate(name, settings.lr_factors) for name, (_, rate) in factors.items()}
    head_first = settings.head_first_steps

    def group(wanted: Callable[[str], bool]) -> Any:
        """Mask the parameters whose names are `wanted`."""
        return from_named_leaves({name: wanted(name) for name in factors}, params)

    def held_at_first(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """Apply `inner` to all but the head, from step N on; before, updates are 0 and its state rests."""
        later = optax.conditionally_mask(inner, lambda step: step >= head_first)
        return optax.masked(later, group(lambda name: not name.startswith(HEAD)))

    # 1. with the head first, other gradients are 0, so that they do not count in the norm
    chain = [held_at_first(optax.identity())] if head_first else []
    # 2. clip the global norm
    chain += [] if settings.clip_norm is None else [optax.clip_by_global_norm(settings.clip_norm)]
    # 3. Adam's direction
    adam = optax.scale_by_adam(*settings.betas, eps=settings.eps)
    if head_first:
        head = optax.masked(adam, group(lambda name: name.startswith(HEAD)))
        chain += [head, held_at_first(adam)]
    else:
        chain += [adam]
    # 4. weight decay and learning rate, group by group
    for factor in sorted(set(decays.values()) - {0.0}):
        mask = group(lambda name: decays[name] == factor)
        chain += [optax.add_decayed_weights(settings.weight_decay * factor, mask=mask)]
    for factor in sorted(set(rates.values()) - {1.0}):
        chain += [optax.masked(optax.scale(factor), group(lambda name: rates[name] == factor))]
    # 5. with the head first, the rise of the other parameters
    if head_first:
        chain += [held_at_first(optax.scale_by_schedule(_rise(head_first)))]
    # 6. the schedule
    return optax.chain(*chain, optax.scale_by_learning_rate(make_schedule(settings)))


def part_rate(name: str, factors: PartRates) -> float:
    """Return the factor on the learning rate of the part that a parameter belongs to; 1 outside all parts."""
    found = (getattr(factors, part) for part, start in PARTS.items() if name.startswith(start))
    return next(found, 1.0)


def _rise(steps: int) -> Callable[[Any], jax.Array]:
    """Return a factor that rises linearly to 1: step n of the first `steps` has (n + 1) / (steps + 1)."""
    return lambda step: jnp.minimum((jnp.asarray(step, jnp.float32) + 1) / (steps + 1), 1.0)


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
    """Make the learning rate by step: linear warm-up over w steps, then `settings.schedule`.

    With x = (t - w) / (T - w), `poly` is `lr * (1 - x) ** power`, `cosine` is `lr * (1 + cos(pi x)) / 2` and
    `constant` is `lr`. Step 0 of a warm-up has `lr / (w + 1)`, so that no step is wasted.
    """
    warmup, decay = settings.warmup_steps, settings.steps - settings.warmup_steps
    shape = {
        "poly": lambda remaining: remaining**settings.power,
        "cosine": lambda remaining: (1 - jnp.cos(jnp.pi * remaining)) / 2,
        "constant": jnp.ones_like,
    }[settings.schedule]

    def learning_rate(step: Any) -> jax.Array:
        """Return the learning rate of a step, scalar or traced."""
        rising = (jnp.asarray(step, jnp.float32) + 1) / (warmup + 1)
        remaining = 1 - jnp.clip((step - warmup) / decay, 0.0, 1.0)
        return settings.learning_rate * jnp.where(step < warmup, rising, shape(remaining))

    return learning_rate
