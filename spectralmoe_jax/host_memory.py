"""Keeping freed memory in processes that allocate and free large arrays all the time."""

from __future__ import annotations

import ctypes

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_TOP_PAD = 1 << 28
_LARGEST_INT = 2**31 - 1


def keep_freed_memory(*, one_heap: bool) -> bool:
    """Asks the C library not to give large freed blocks back to the system; whether it was asked (glibc).

    Given back, each page of the next array has to be mapped and zeroed again. For tiles of many megabytes
    that takes longer than reading them; of a small model's step on a CPU it took half the processor time.

    Args:
      one_heap: all threads share one: what one frees serves the others. Else the heap grows in large pieces.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    growth = (_M_ARENA_MAX, 1) if one_heap else (_M_TOP_PAD, _TOP_PAD)
    settings = (growth, (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))
    answers = [mallopt(key, value) for key, value in settings]  # each setting on its own
    return all(answer == 1 for answer in answers)
