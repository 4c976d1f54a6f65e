"""Files of `hf://owner/name[@revision][/file]`: the local cache first, then the hub."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HUB = "hf://"
PATIENCE = 2.0  # seconds until the hub counts as out of reach
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
    _require_network(spec, repository, revision, file)
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


def fetch_first(specs: Iterable[str]) -> None:
    """Fetch what is on the hub among `specs`, before slower things are loaded: without a network that is said
    at once. Raises UserError as `fetch` does."""
    for spec in specs:
        if spec.strip().startswith(HUB):
            fetch(spec.strip())


def shards_of(index: Path) -> list[str]:
    """File names of the shards that an index names. Raises UserError where the index is broken."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index}: has no weight_map that names the shards; download it again")
    return sorted(set(table.values()))


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise UserError(
            f"{path}: not a readable JSON file ({' '.join(str(problem).split())}); download it again"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return value


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
    indices = [path for path in map(lookup, (INDEX, TORCH_INDEX)) if path is not None]
    whole = any(all(lookup(shard) for shard in shards_of(index)) for index in indices)
    return config.parent if whole or lookup(WEIGHTS) or lookup(TORCH_WEIGHTS) else None


def _download(repository: str, revision: str | None, file: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, name, revision=revision, etag_timeout=PATIENCE))
        except EntryNotFoundError:
            return None

    advice = f"name a file that it has: {HUB}{repository}/FILE"
    if file is not None:
        found = get(file)
        if found is None:
            raise UserError(f"{HUB}{repository}: has no {file}; {advice}")
        return found
    config = get(CONFIG)
    if config is None:
        raise UserError(f"{HUB}{repository}: has no {CONFIG}, so it is no Hugging Face folder; {advice}")
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX):
        path = get(name)
        if path is None:
            continue
        for shard in shards_of(path) if name in (INDEX, TORCH_INDEX) else ():
            get(shard)  # one that is missing is named when the folder is opened
        return config.parent
    raise UserError(f"{HUB}{repository}: has a {CONFIG} but no {WEIGHTS}; {advice}")


def _require_network(spec: str, repository: str, revision: str | None, file: str | None) -> None:
    from huggingface_hub import constants, hf_hub_url

    url = hf_hub_url(repository, file or CONFIG, revision=revision)
    if constants.HF_HUB_OFFLINE or not _reachable(url):
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


def _reachable(url: str) -> bool:
    """Whether the hub answers a request for a file within `PATIENCE` seconds, through the client, and so the
    proxy, that would download it. In a thread: neither name lookup nor an answer in drops knows a limit."""
    from huggingface_hub.utils import get_session

    session = get_session()
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # the client raises errors of several HTTP libraries
            if session.head(url, timeout=PATIENCE).status_code < 500:  # above that a proxy failed
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
