"""Keeping freed memory in the process when training on a CPU."""

from __future__ import annotations

import ctypes

import jax

# from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 1 << 28
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library not to give large freed blocks back to the system.

    A step on the CPU allocates and frees the same large temporaries every time; given back, each page
    must be mapped and zeroed again, which took half of the processor time of a small model's step.
    Returns whether it was asked: only on the CPU backend, and with glibc.
    """
    if jax.default_backend() != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT), (_M_TOP_PAD, _TOP_PAD))
    answers = [mallopt(key, value) for key, value in settings]  # each setting on its own
    return all(answer == 1 for answer in answers)
