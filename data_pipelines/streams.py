"""Several sensors in one run: which sensor each batch comes from, and the configuration of each.

A run has the stream of its own `data` section. `config.streams` adds others, each a section that overrides
keys of the configuration (bands, sensor, data, augment, model.pixel_mean, ...) and may give a `weight`:

  config.streams = ConfigDict({"landsat": {"weight": 0.5, "bands": ..., "sensor": "landsat8", "data": {...},
                                           "model": {"pixel_mean": ..., "pixel_std": ...}}})

A batch comes from one stream, so its tiles have the same bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from spectralmoe_jax.errors import UserError

MAIN = "main"
_ROUNDING = 1e-9
B = TypeVar("B")


def stream_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The configuration of every stream by name, `main` first; classes and architecture are the run's.

    Raises UserError naming a key that a stream cannot have.
    """
    base = ConfigDict({key: value for key, value in config.items() if key != "streams"})
    configs = {MAIN: base.copy_and_resolve_references().lock()}
    for name, section in (config.get("streams") or {}).items():
        if name == MAIN:
            raise UserError(f"config.streams.{MAIN} is the run's own stream: give another name")
        configs[name] = _overlaid(base, section, f"config.streams.{name}").lock()
    return configs


def choose_stream(config: ConfigDict, name: str) -> ConfigDict:
    """The configuration of one stream. Raises UserError for a name that is none."""
    configs = stream_configs(config)
    if name not in configs:
        raise UserError(f"--stream {name}: the configuration has {', '.join(configs)}")
    return configs[name]


def stream_weights(config: ConfigDict) -> dict[str, float]:
    """The share of batches of every stream, 1 where none is given; the main stream's is `config.weight`.

    Raises UserError for a weight that is not positive.
    """
    sections = {MAIN: config, **(config.get("streams") or {})}
    weights = {name: float(section.get("weight", 1.0)) for name, section in sections.items()}
    for name, weight in weights.items():
        if weight <= 0:
            key = "config.weight" if name == MAIN else f"config.streams.{name}.weight"
            raise UserError(f"{key} = {weight}: give a number above 0, or remove the stream")
    return weights


def schedule(weights: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """(stream, number of its batches so far) of batch 0, 1, ...: after any number of batches every stream has
    had its share of them to within one batch (Tijdeman, "The chairman assignment problem", 1980)."""
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    slack = 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0.0
    counts = dict.fromkeys(shares, 0)
    for step in itertools.count(1):
        owed = {name: share * step - counts[name] for name, share in shares.items()}
        due = {n: (1 - slack - owed[n]) / shares[n] for n in shares if owed[n] >= slack - _ROUNDING}
        name = min(due, key=due.__getitem__)
        yield name, counts[name]
        counts[name] += 1


def interleave(
    weights: Mapping[str, float], make_batches: Callable[[str, int], Iterator[B]], start: int
) -> Iterator[dict[str, B]]:
    """`{stream: batch}` of batch `start`, `start + 1`, ...; batch n is the same whatever `start` was.

    Args:
      weights: share of each stream.
      make_batches: from a stream and a number to the stream's batches from that number on.
      start: number of the first batch.
    """
    plan = schedule(weights)
    for _ in range(start):
        next(plan)
    opened: dict[str, Iterator[B]] = {}
    try:
        for name, number in plan:
            if name not in opened:
                opened[name] = make_batches(name, number)
            yield {name: next(opened[name])}
    finally:
        for batches in opened.values():
            if hasattr(batches, "close"):
                batches.close()


def _overlaid(config: ConfigDict, section: Mapping, place: str) -> ConfigDict:
    """A copy of `config` with the values of `section` in place of its own."""
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f"{place} = {section!r}: give a section of keys that differ from the configuration")
    result = config.copy_and_resolve_references()
    with result.unlocked(), result.ignore_type():
        for key, value in section.items():
            if key == "weight" and place.count(".") == 2:
                continue
            if isinstance(value, Mapping | ConfigDict) and isinstance(result.get(key), ConfigDict):
                result[key] = _overlaid(result[key], value, f"{place}.{key}")
            else:
                result[key] = value
    return result
