"""Record of a run's held-out scores: the best so far, and how long ago that was.

Every checkpoint stores it, so that a resumed run counts on where it stopped, on all hosts alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from spectralmoe_jax.config.schema import TrainConfig


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The best held-out score so far.

    Attributes:
      best: the score, higher is better; None before the first one that is a number.
      waited: evaluations since then.
    """

    best: float | None = None
    waited: int = 0

    def after(self, score: float) -> HeldOut:
        """Return the record after one more evaluation; an equal score or NaN is no improvement."""
        is_better = not math.isnan(score) and (self.best is None or score > self.best)
        return HeldOut(score, 0) if is_better else HeldOut(self.best, self.waited + 1)

    def is_complete(self, step: int, settings: TrainConfig) -> bool:
        """Return whether a run is complete after a step: the last one, or one at which patience ends."""
        is_over = settings.patience is not None and self.waited >= settings.patience
        return step >= settings.steps or is_over

    def stored(self, metric: str) -> dict[str, Any]:
        """Return JSON values to store.

        Args:
          metric: name of the score.
        """
        return {"metric": metric, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None, metric: str) -> Self | None:
        """Return the record that `stored` wrote; None if there is none, or one of another score."""
        if not isinstance(stored, Mapping) or stored.get("metric") != metric:
            return None
        best, waited = stored.get("best"), stored.get("waited")
        if not isinstance(best, float | int | None) or not isinstance(waited, int):
            return None
        return cls(best, waited)


NOTHING_YET = HeldOut()
"""The record before the first evaluation."""
