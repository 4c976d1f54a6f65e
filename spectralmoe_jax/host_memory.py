"""Memory of the machine, and processes that allocate and free large arrays all the time."""

from __future__ import annotations

import ctypes
import os

from spectralmoe_jax.errors import bad_value

# parameters of mallopt, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 1 << 28  # bytes by which a heap grows
_LARGEST_INT = 2**31 - 1


def keep_freed_memory(*, one_heap: bool) -> bool:
    """Ask the C library to keep large freed blocks instead of returning them to the system.

    The system has to map and zero every page of a returned block again for the next array. For tiles of many
    megabytes that takes longer than reading them; for a small model's step on a CPU it took half the
    processor time.

    Args:
      one_heap: all threads share one heap, so that memory freed by one serves the others. Otherwise each
        thread's heap grows in large pieces.

    Returns:
      Whether the C library accepted all settings; only glibc does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    growth = (_M_ARENA_MAX, 1) if one_heap else (_M_TOP_PAD, _TOP_PAD)
    settings = (growth, (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))
    answers = [mallopt(key, value) for key, value in settings]  # set all of them even if one is refused
    return all(answer == 1 for answer in answers)


def physical_memory() -> int:
    """Return the bytes of memory that this machine has; practically endless where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 60


def require_memory(key: str, value: object, needed: float, what: str) -> None:
    """Check that what a value of the configuration asks for fits into the memory, before it is allocated.

    Args:
      key: the key whose value is too large if it does not.
      value: that value.
      needed: bytes, at least.
      what: what they are for, for the message.

    Raises:
      UserError: it does not.
    """
    most = physical_memory()
    if needed > most:
        must = f"needs {needed / 1e9:,.0f} GB for {what}, and the memory has {most / 1e9:,.0f}: give less"
        raise bad_value(key, value, must)
