"""How many parameters a configuration has, by part, without allocating one."""

from __future__ import annotations

import math
from typing import NamedTuple

from flax import nnx

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig

# the first path that is a prefix of a variable's names its part
PARTS = {
    ("backbone", "visual"): "visual encoder",
    ("backbone", "depth"): "depth encoder",
    ("backbone", "adapter", "refinement"): "depth refinement",
    ("backbone", "adapter"): "adapter",
    ("head", "pixel_decoder"): "pixel decoder",
    ("head", "classifier"): "linear head",
    ("head",): "mask decoder",
    (): "pixel statistics",
}


class Part(NamedTuple):
    """The numbers of trainable and frozen parameters of one part of a segmenter."""

    name: str
    trainable: int
    frozen: int


def describe(config: Configuration) -> list[Part]:
    """Count the parameters of every part of the configured segmenter, in the order data flows through them.

    Args:
      config: a configuration in any form of `config.load.Configuration`.

    Raises:
      UserError: the configuration is not a model.
    """
    model = segmenter_config(as_run_config(config))
    return count(abstract_segmenter(model), model)


def count(segmenter: Segmenter, config: SegmenterConfig) -> list[Part]:
    """As `describe`, for a segmenter that exists, abstract or not.

    Expert tables are stored at the largest rank; what a smaller expert never uses is not counted.
    """
    sums = {name: [0, 0] for name in PARTS.values()}
    for path, variable in nnx.to_flat_state(nnx.state(segmenter)):
        name = next(part for prefix, part in PARTS.items() if path[: len(prefix)] == prefix)
        sums[name][0 if isinstance(variable, nnx.Param) else 1] += math.prod(variable.shape)
    adapter = config.adapter
    if isinstance(adapter, SpectralMoEConfig):
        unused = max(adapter.ranks) * adapter.num_experts - sum(adapter.ranks)
        rows = adapter.num_tokens + config.visual.width
        sums["adapter"][0] -= config.visual.layers * unused * rows
    return [Part(name, *numbers) for name, numbers in sums.items() if any(numbers)]
