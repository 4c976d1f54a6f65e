"""What a server accepts, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import math

from spectralmoe_jax.errors import bad_value


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one server accepts.

    Attributes:
      queue: requests at a time, those that arrive, wait or are mapped; further ones are refused.
      max_mb: size of an image's file in megabytes (10**6 bytes).
      max_megapixels: size of an image in millions of pixels; one that is narrower or lower than a window
        counts as wide or as high as a window.
      timeout: seconds that a body may take to arrive, and then its map to be made.

    Raises:
      UserError: a limit is not positive.
    """

    queue: int = 32
    max_mb: float = 64
    max_megapixels: float = 50
    timeout: float = 60

    def __post_init__(self) -> None:
        """Check that every limit lets something through."""
        if self.queue < 1:
            raise bad_value("--queue", self.queue, "must be at least 1")
        for field in ("max_mb", "max_megapixels", "timeout"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise bad_value(f"--{field.replace('_', '-')}", value, "must be a number above 0")

    @property
    def max_bytes(self) -> int:
        """Size of an image's file in bytes."""
        return int(self.max_mb * 1e6)
