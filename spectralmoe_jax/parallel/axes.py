"""The logical axes of every parameter that is not the same on all devices.

Names are those of `models.state`'s nested dictionaries, joined by "/". The first rule that is found in a name
counts; a parameter without one, or of another number of dimensions, is kept whole on every device: norms,
biases, the head and the adapter's shared projections are small.
"""

from __future__ import annotations

import re

Axes = tuple[str | None, ...]

PARAMETER_AXES: tuple[tuple[str, Axes], ...] = (
    (r"adapter/experts_a$", ("layer", "expert", "token", "rank")),
    (r"adapter/experts_b$", ("layer", "expert", "rank", "adapter_embed")),
    (r"adapter/w_(gate|noise)$", ("layer", "router", "adapter_embed", "expert")),
    (r"(visual|depth)/blocks/(attention/out|mlp/last)/kernel$", ("layer", "hidden", "embed")),
    (r"(visual|depth)/blocks/(attention/qkv|mlp/first)/kernel$", ("layer", "embed", "hidden")),
)


def axes_of_parameter(name: str, dimensions: int) -> Axes:
    """Logical axes of a parameter, or of an optimizer's moment of one, by name."""
    for pattern, axes in PARAMETER_AXES:
        if len(axes) == dimensions and re.search(pattern, name):
            return axes
    return (None,) * dimensions
