"""Stand-ins for what training code leaves in a file of `torch.save` beside the weights.

mmengine stores its log with the state dict: objects of its own, numpy arrays, and methods looked up by
`getattr`. None of that is wanted, and all of it would have torch refuse the file. Each name is therefore
answered with an empty class, so that reading goes on, nothing of the file is run, and mmengine need not be
installed. Every other name is refused as before.
"""

from __future__ import annotations

from typing import Any

_NAMES = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("mmengine.logging", "HistoryBuffer"),
    ("builtins", "getattr"),
    ("__builtin__", "getattr"),  # as pickle's protocol 2 writes it
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("_codecs", "encode"),
)


class _Inert:
    """Takes whatever a pickle hands to it, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def stand_ins() -> list[Any]:
    """One empty class under each name, for `torch.serialization.safe_globals`."""
    return [type(name, (_Inert,), {"__module__": module}) for module, name in _NAMES]
