"""Variants of a good input: damaged bytes, and JSON documents of another shape, by seed."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\n", b"{", b"[", b'"', b"<", b"\\", b"\xef\xbb\xbf")


def damaged(data: bytes, count: int, seed: int, headers: float = 0.5) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, bytes) of `count` damaged copies of a file.

    Args:
      data: the good file.
      count: number of copies.
      seed: decides what is done and where.
      headers: share of the places that lie in the first 512 bytes, where most formats keep what they state.
    """
    random = np.random.default_rng(seed)
    kinds = (_flip, _overwrite, _cut, _remove, _insert, _repeat, _blank, _extreme_number)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        end = min(len(data), 512) if random.random() < headers else len(data)
        place = int(random.integers(0, max(1, end)))
        yield (
            f"{kind.__name__.strip('_')} at {place} (seed {seed}, number {number})",
            kind(data, place, random),
        )


def _flip(data: bytes, place: int, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _overwrite(data: bytes, place: int, random: np.random.Generator) -> bytes:
    length = int(random.integers(1, 32))
    return data[:place] + random.bytes(length) + data[place + length :]


def _cut(data: bytes, place: int, random: np.random.Generator) -> bytes:
    return data[:place]


def _remove(data: bytes, place: int, random: np.random.Generator) -> bytes:
    return data[:place] + data[place + int(random.integers(1, 64)) :]


def _insert(data: bytes, place: int, random: np.random.Generator) -> bytes:
    return (
        data[:place]
        + EXTREMES[int(random.integers(len(EXTREMES)))] * int(random.integers(1, 9))
        + data[place:]
    )


def _repeat(data: bytes, place: int, random: np.random.Generator) -> bytes:
    return data[:place] + data[max(0, place - int(random.integers(1, 128))) :]


def _blank(data: bytes, place: int, random: np.random.Generator) -> bytes:
    length = int(random.integers(1, 64))
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def _extreme_number(data: bytes, place: int, random: np.random.Generator) -> bytes:
    size = int(random.choice((1, 2, 4, 8)))
    value = (0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1)[int(random.integers(4))]
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


def reshaped(document: Any, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (what was done, bytes) of `count` JSON documents in which one value is another, or gone."""
    random = np.random.default_rng(seed)
    places = list(_places(document))
    odd = (
        None, True, -1, 0, 2**63, 1e308, float("nan"), "", "\x1b[2J", "../../x", "a" * 10_000, [], {}, [[]],
        {"": {}}, [None], ["x", 1],
    )  # fmt: skip
    for number in range(count):
        path = places[int(random.integers(len(places)))]
        changed = copy.deepcopy(document)
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        label = f"{'.'.join(map(str, path))} (seed {seed}, number {number})"
        if number % 4 == 0:
            del holder[path[-1]]
            yield f"removed {label}", json.dumps(changed).encode()
        elif number % 29 == 1:
            holder[path[-1]] = "DEEP"
            deep = "[" * 100_000 + "]" * 100_000
            yield f"deep {label}", json.dumps(changed).replace('"DEEP"', deep).encode()
        else:
            value = odd[int(random.integers(len(odd)))]
            holder[path[-1]] = value
            yield f"{str(value)[:20]!r} for {label}", json.dumps(changed).encode()


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value below the top of a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))
