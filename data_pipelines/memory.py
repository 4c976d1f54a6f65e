"""Keeping freed memory in processes that allocate and free large arrays all the time."""

from __future__ import annotations

import ctypes

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Asks the C library not to give large freed blocks back to the system; whether it was asked (glibc).

    Given back, each page of the next array has to be mapped and zeroed again, which for tiles of many
    megabytes takes longer than reading them. All threads share one heap: what one frees serves the others.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))
    answers = [mallopt(key, value) for key, value in settings]  # each setting on its own
    return all(answer == 1 for answer in answers)
