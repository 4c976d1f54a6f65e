"""libtiff, the library in which GDAL writes TIFF files: what it prints by itself."""

import contextlib
import ctypes
import functools
from pathlib import Path


@functools.cache
def keep_libtiff_quiet() -> None:
    """Keep libtiff from printing on standard error that a file cannot be written.

    GDAL reports the same as an error. Outside Linux, where loaded libraries are not listed, it
    prints on.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        for library in {line.split(maxsplit=5)[-1] for line in lines if "libtiff" in line}:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(library).TIFFSetErrorHandler(None)
