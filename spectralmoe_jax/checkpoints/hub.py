"""Files of `hf://owner/name[@revision][/file]`: the local cache first, then the hub."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from spectralmoe_jax.checkpoints.sources import CONFIG, HUB, INDEX, TORCH_WEIGHTS, WEIGHTS, shards_of
from spectralmoe_jax.errors import UserError

PATIENCE = 3.0  # seconds until the hub counts as out of reach
_SPEC = re.compile(HUB + r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?")


def fetch(spec: str) -> Path:
    """The file, or the folder with config.json and all weights, that `spec` names; downloaded where it is not
    in the cache.

    Raises UserError where it cannot be had; without a network within `PATIENCE` seconds, saying what to
    download by hand.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise UserError(f"{spec}: write hf://owner/name, hf://owner/name@revision or hf://owner/name/file")
    repository, revision, file = found.groups()
    cached = _cached(repository, revision, file)
    if cached is not None:
        return cached
    _require_network(spec, repository, file)
    try:
        return _download(repository, revision, file)
    except UserError:
        raise
    except Exception as problem:  # the client raises errors of several HTTP libraries
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise UserError(
            f"{spec}: could not be downloaded ({reason}); for weights behind a licence accept it and run "
            f"`hf auth login`, or {_by_hand(repository, file)}"
        ) from None


def _cached(repository: str, revision: str | None, file: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    def lookup(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    if file is not None:
        return lookup(file)
    config = lookup(CONFIG)
    if config is None:
        return None
    index = lookup(INDEX)
    whole = all(lookup(shard) for shard in shards_of(index)) if index else False
    return config.parent if whole or lookup(WEIGHTS) or lookup(TORCH_WEIGHTS) else None


def _download(repository: str, revision: str | None, file: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision, etag_timeout=PATIENCE))

    if file is not None:
        return get(file)
    folder = get(CONFIG).parent
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS):
        try:
            path = get(name)
        except EntryNotFoundError:
            continue
        for shard in shards_of(path) if name == INDEX else ():
            get(shard)
        return folder
    raise UserError(
        f"{HUB}{repository}: has a {CONFIG} but no {WEIGHTS}; name a file: {HUB}{repository}/FILE"
    )


def _require_network(spec: str, repository: str, file: str | None) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise UserError(
            f"{spec}: not in the local cache, and the hub is out of reach; {_by_hand(repository, file)}"
        )


def _by_hand(repository: str, file: str | None) -> str:
    if file is not None:
        return f"download {file} of {repository} by hand and give the path of the file"
    return (
        f"download {CONFIG} and {WEIGHTS} (or {INDEX} and its shards) of {repository} by hand into a folder "
        "and give the path of that folder"
    )


def _reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy before it, takes a connection within `PATIENCE` seconds. In a thread of
    its own: name lookup knows no timeout."""
    parts = urlsplit(getproxies().get(urlsplit(endpoint).scheme) or endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
