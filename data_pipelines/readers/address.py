"""Addresses that GDAL opens, on servers and in object stores: `https://`, `s3://`, `gs://`, `/vsi...`."""

from __future__ import annotations

import os
import re
from pathlib import Path, PosixPath
from typing import Any

# Of reading over a network: large requests, retries, no waiting for a server that has gone silent, and no
# listing of folders: side files, such as masks, are asked for by their names.
_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "YES", "GDAL_HTTP_MAX_RETRY": "4", "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "10", "GDAL_HTTP_LOW_SPEED_LIMIT": "1", "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES", "GDAL_INGESTED_BYTES_AT_OPEN": "65536",
    "CPL_VSIL_CURL_CHUNK_SIZE": "1048576",
    # parallel requests are not repeated if they fail: https://github.com/OSGeo/gdal/issues/12933
    "GDAL_HTTP_MULTIRANGE": "SERIAL",
}  # fmt: skip
_NETWORK = (
    "/vsicurl",
    "/vsis3",
    "/vsigs",
    "/vsiaz",
    "/vsiadls",
    "/vsioss",
    "/vsiswift",
    "/vsihdfs",
    "/vsiwebhdfs",
)
_PART = re.compile(r"[A-Za-z][A-Za-z0-9_]+:")


def is_remote(name: str) -> bool:
    """Return whether a name is not that of a local file, but an address or a place inside an archive."""
    return "://" in name or name.startswith("/vsi")


def container_of(name: str) -> Path | None:
    """Return the local file of GDAL's name for one of the rasters in it, such as `netcdf:FILE:VARIABLE`.

    None for other names.
    """
    if not _PART.match(name) or os.path.exists(name):
        return None
    files = (Path(part.strip('"')) for part in name.split(":")[1:])
    return next((file for file in files if file.is_file()), None)


def network_options(name: str) -> dict[str, Any]:
    """Return GDAL's options for reading an address, but for those that the environment sets.

    None for a local file, or for a place inside a local archive.
    """
    if "://" not in name and not any(part in name for part in _NETWORK):
        return {}
    return {key: value for key, value in _OPTIONS.items() if key not in os.environ}


class Address(PosixPath):
    """An address with the methods of a path, so that readers take either.

    Whether there is a file is found out when it is opened.
    """

    def __str__(self) -> str:
        """Return the address; a path would have a single slash behind the colon."""
        return re.sub(r"(?<=[a-z0-9]):/(?!/)", "://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)

    def is_file(self) -> bool:
        """Return True: nothing is asked over the network."""
        return True


def as_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file, which may be an address."""
    text = os.fspath(name)
    return Address(text) if is_remote(text) else Path(text)
