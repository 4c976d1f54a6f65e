"""The mesh of a run, and which logical axes are spread over which of its axes: `config.parallel`."""

from __future__ import annotations

import dataclasses

from spectralmoe_jax.configuration import choose, require
from spectralmoe_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "expert")
Rule = tuple[str, str | tuple[str, ...] | None]  # logical axis, and the axes of the mesh it is spread over

# Logical axes of parameters are in `parallel/axes.py`; `batch` is that of images and tokens.
RULES: tuple[Rule, ...] = (
    ("batch", ("data", "fsdp")),
    ("expert", "expert"),  # experts, their gates, the optimizer's state for both, and what they compute
    ("embed", "fsdp"),  # width of the encoders' weights, gathered layer by layer
)


@dataclasses.dataclass(frozen=True)
class ParallelSettings:
    """`config.parallel`.

    Attributes:
      data, fsdp, expert: devices along each axis of the mesh. At most one is -1, for all that are left.
        Images are spread over data and fsdp, experts over expert, the encoders' weights over fsdp.
      rules: (logical axis, mesh axis, several, or None); a logical axis without a rule is not spread. Default
        `RULES`.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    rules: tuple[tuple, ...] | None = None

    def __post_init__(self) -> None:
        for axis in MESH_AXES:
            size = getattr(self, axis)
            require(size == -1 or size > 0, f"config.parallel.{axis}", f"is {size}: give 1 or more, or -1")
        open_axes = [axis for axis in MESH_AXES if getattr(self, axis) == -1]
        require(
            len(open_axes) < 2,
            "config.parallel",
            f"{' and '.join(open_axes)} are -1: one can be what is left",
        )
        for rule in self.rules or ():
            require(len(rule) == 2, "config.parallel.rules", f"{rule!r} is no pair (logical axis, mesh axis)")
            for axis in axes_of(rule[1]):
                choose(f"config.parallel.rules, {rule[0]}", axis, MESH_AXES)

    def shape(self, devices: int) -> tuple[int, int, int]:
        """Devices along data, fsdp and expert, of so many.

        Raises:
          UserError: the mesh does not use them all.
        """
        sizes = [getattr(self, axis) for axis in MESH_AXES]
        known = 1
        for size in sizes:
            known *= max(size, 1)
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
            known = devices
        if known != devices:
            given = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
            raise UserError(
                f"config.parallel: {given} does not divide {devices} devices: the product of the three has "
                f"to be {devices}; one of them may be -1"
            )
        return sizes[0], sizes[1], sizes[2]

    def fitted(self, devices: int) -> ParallelSettings:
        """These where they fit so many devices, else all devices along data: for using a trained model."""
        try:
            self.shape(devices)
        except UserError:
            return dataclasses.replace(self, data=-1, fsdp=1, expert=1)
        return self


def axes_of(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a rule's right side."""
    return (rule,) if isinstance(rule, str) else tuple(rule or ())
