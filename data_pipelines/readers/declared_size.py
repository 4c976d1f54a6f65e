"""The size that a raster's header declares, compared with that of its file before anything is allocated."""

from __future__ import annotations

import math
import os

import numpy as np
import rasterio
from rasterio.enums import Interleaving

from data_pipelines.readers.unreadable import UnreadableFile
from spectralmoe_jax.host_memory import physical_memory

_SMALL = 1 << 28  # bytes of decoded pixels that are not worth a look
_LEAST_PER_BLOCK = 4  # bytes of the tables of a TIFF, which tell where each block is and how long
_MOST_PER_BYTE = {"PNG": 1100, "JPEG": 1100, "BMP": 130, "GIF": 5000}
"""Decoded bytes that a byte of a file can hold at most, by GDAL's driver. Sparse TIFFs have no such limit."""
_MOST_PER_BYTE_OF_BLOCK = 10_000  # likewise of a block, which the compressions of TIFF do not reach


def check_declared_size(dataset: rasterio.DatasetReader, name: str) -> None:
    """Check that a file is large enough for the pixels that it says it has, and a block for the memory.

    Raises:
      UnreadableFile: it is not.
    """
    samples = [_sample_bytes(dtype) for dtype in dataset.dtypes]
    decoded = dataset.width * dataset.height * sum(samples)
    shapes, is_mixed = dataset.block_shapes, dataset.interleaving == Interleaving.pixel
    sizes = [math.prod(shape) * sample for shape, sample in zip(shapes, samples, strict=True)]
    block = sum(sizes) if is_mixed else max(sizes, default=0)  # what is decoded at once
    if max(decoded, block) <= _SMALL or not os.path.isfile(name):
        return
    length = os.path.getsize(name)
    if dataset.driver == "GTiff":
        rows, columns = shapes[0]
        down, across = -(-dataset.height // rows), -(-dataset.width // columns)
        least = down * across * (1 if is_mixed else dataset.count) * _LEAST_PER_BLOCK
    else:
        least = decoded // _MOST_PER_BYTE.get(dataset.driver, decoded)
    says = f"{name}: says that it has {dataset.height} x {dataset.width} pixels in {dataset.count} bands"
    if length < least or (block > _SMALL and block > length * _MOST_PER_BYTE_OF_BLOCK):
        raise UnreadableFile(f"{says}, and its {length} bytes cannot hold them: restore the file")
    if block > physical_memory():
        raise UnreadableFile(
            f"{says}, stored in blocks of {block / 1e9:.0f} GB, more than this machine's memory: restore the "
            "file, or write it anew in tiles"
        )


def _sample_bytes(dtype: str) -> int:
    """Return the bytes of a value; `complex_int16` is no name of NumPy's."""
    return 8 if dtype.startswith("complex_int") else np.dtype(dtype).itemsize
