"""What of a configuration leaves this machine: values without its folders and without credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

_SCHEME = r"[A-Za-z][\w+.-]*://"
_UPWARDS = r"(?:[^\s,;=:\"'/]+/)*\.\./"  # relative, and out of the folder that it starts in
_START = rf"(?:~|/|{_UPWARDS}|{_SCHEME})"
_NEXT = rf"(?=\s*[,;]\s*(?:[\w.-]+=|{_START})|[\"'\n]|$)"  # a comma alone may be part of a name
_PLACE = re.compile(
    rf"(?P<file>\bfile://[^\"'\n]*?{_NEXT})"
    rf"|(?P<address>\b{_SCHEME}(?:[^/\s\"'@]*@)?[^\s,;?#\"']*)(?P<query>[?#][^\s\"']*?(?={_NEXT}|\s))?"
    # after a space, a slash alone is one of a sentence
    rf"|(?:(?<![^,;=:\"'(\[])\s*|(?<=\s)(?=/[^\s/]+/|~/|\.\./))(?P<path>(?:~|/|{_UPWARDS})[^\"'\n]*?){_NEXT}"
)
_NAMES = {"classes", "bands", "file_bands"}  # keys whose values name no files, whatever they look like
_LOGIN = re.compile(rf"({_SCHEME})[^/\s\"'@]*@")


def without_folders(value: Any) -> Any:
    """Cut every path among JSON values to its last part, and every address to what is no secret.

    Paths are those that start with `/`, `~` or `file://`, or lead upwards with `..`; alone, in a list with
    commas, or after `key=`. Addresses lose the name and password before the host, and their query.
    Names of classes and bands stay as they are.
    """
    if isinstance(value, Mapping):
        return {
            key: item if _NAMES & set(str(key).split(".")) else without_folders(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _PLACE.sub(_shortened, value) if isinstance(value, str) else value


def _shortened(match: re.Match[str]) -> str:
    """Return what stays of a path or an address."""
    if match["address"] is not None:
        return _LOGIN.sub(r"\1", match["address"])
    path = match["file"] or match["path"]
    if path.startswith("/vsi") or "://" in path:  # a name of GDAL, which may end in a query
        path = path.partition("?")[0]
    return PurePosixPath(path.strip()).name
