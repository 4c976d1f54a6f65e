"""Fetch `hf://owner/name[@revision][/file or folder]` from the local cache or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import read_json as read_json_file

# Files of a Hugging Face folder: weights in one file, or in shards that an index lists.
CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_WEIGHTS, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
GALILEO_WEIGHTS = "encoder.pt"  # beside Galileo's own config.json

HUB = "hf://"
TIMEOUT = 2.0  # seconds without an answer after which the hub counts as unreachable
_SPEC = re.compile(
    HUB + r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^/]+(?:/[^/]+)*))?",
    re.ASCII,
)
_LONGEST = 96  # characters of owner/name; other parts are names of files
_LONGEST_FILE = 255
_DAMAGED = "download it again"


def fetch(spec: str) -> Path:
    """Return the local path of a name on the hub, downloading it if it is not in the cache.

    Args:
      spec: `hf://owner/name[@revision]` for the folder with config.json and all weights,
        `hf://owner/name[@revision]/folder` for such a folder inside the repository, or
        `hf://owner/name[@revision]/file` for one file, whose name has a suffix.

    Raises:
      UserError: the name is malformed, the repository lacks the file, or the hub cannot be reached within
        `TIMEOUT` seconds; the message describes what to download by hand.
    """
    repository, revision, inside = _parse(spec)
    file, folder = (inside, "") if inside and Path(inside).suffix else (None, f"{inside}/" if inside else "")
    cached = _find_in_cache(repository, revision, file, folder)
    if cached is not None:
        return cached
    _require_network(spec, repository, revision, file, folder)
    try:
        return _download(repository, revision, file, folder)
    except UserError:
        raise
    except Exception as problem:  # the client raises errors of several HTTP libraries
        reason = shown(" ".join(str(problem).split())) or type(problem).__name__
        raise UserError(
            f"{spec}: could not be downloaded ({reason}); for weights behind a licence accept it and run "
            f"`hf auth login`, or {_manual_download(repository, file, folder)}"
        ) from None


def _parse(spec: str) -> tuple[str, str | None, str | None]:
    """Return repository, revision and file or folder of a name on the hub; the last two may be None.

    Raises:
      UserError: the name is malformed, or one that the hub does not allow.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(
            f"{shown(spec)}: write hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
        )
    repository, revision, inside = match.groups()
    names, rest = repository.split("/"), [revision or "main", *(inside or "file").split("/")]
    if len(repository) > _LONGEST or not all(map(_is_name, names)) or not all(map(_is_plain, rest)):
        raise UserError(
            f"{shown(spec)}: no name on the hub: owner and name are letters, digits, single - and dots, at "
            f"most {_LONGEST} characters together, and a file lies inside the repository"
        )
    return repository, revision, inside


def _is_name(part: str) -> bool:
    """Return whether the hub allows an owner or the name of a repository."""
    unfit = part[0] in "-." or part[-1] in "-." or part.endswith(".git")
    return not unfit and "--" not in part and ".." not in part


def fetch_first(specs: Iterable[str]) -> None:
    """Fetch every `hf://` name among `specs`.

    Commands call this before they load JAX, so that a missing network is reported at once.

    Raises:
      UserError: as `fetch`.
    """
    for spec in specs:
        if spec.strip().startswith(HUB):
            fetch(spec.strip())


def shard_names(index: Path) -> list[str]:
    """Return the file names of the shards that an index lists.

    Raises:
      UserError: the index is not readable, lists no shards, or names something else than a weight file beside
        it.
    """
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index}: has no weight_map that names the shards; {_DAMAGED}")
    suffix = ".safetensors" if index.name == INDEX else ".bin"
    for name in table.values():
        if not (isinstance(name, str) and name.endswith(suffix) and _is_plain(name)):
            raise UserError(
                f"{index}: names {shown(repr(name))} as a shard, which is no {suffix} file beside it; "
                f"{_DAMAGED}"
            )
    return sorted(set(table.values()))


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a file in the same folder."""
    short = len(name.encode(errors="replace")) <= _LONGEST_FILE
    return short and name.isprintable() and not set("/\\") & set(name) and not name.startswith(".")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a downloaded file.

    Raises:
      UserError: the file is not readable, not JSON, or holds no object.
    """
    try:
        return read_json_file(path, _DAMAGED)
    except OSError as problem:
        raise UserError(f"{path}: not readable ({problem.strerror}); {_DAMAGED}") from None


def _find_in_cache(repository: str, revision: str | None, file: str | None, folder: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    def lookup(name: str) -> Path | None:
        """Return the cached path of a file, or None."""
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    if file is not None:
        return lookup(file)
    config = lookup(folder + CONFIG)
    if config is None:
        return None
    indices = [path for name in (INDEX, TORCH_INDEX) if (path := lookup(folder + name)) is not None]
    has_shards = any(all(lookup(folder + name) for name in shard_names(index)) for index in indices)
    whole = any(lookup(folder + name) for name in (WEIGHTS, TORCH_WEIGHTS, GALILEO_WEIGHTS))
    return config.parent if has_shards or whole else None


def _download(repository: str, revision: str | None, file: str | None, folder: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def get(name: str) -> Path | None:
        """Download a file; None if the repository does not have it."""
        try:
            return Path(hf_hub_download(repository, name, revision=revision, etag_timeout=TIMEOUT))
        except EntryNotFoundError:
            return None

    advice = f"name a file that it has: {HUB}{repository}/FILE"
    if file is not None:
        path = get(file)
        if path is None:
            raise UserError(f"{HUB}{repository}: has no {file}; {advice}")
        return path
    config = get(folder + CONFIG)
    if config is None:
        raise UserError(
            f"{HUB}{repository}: has no {folder}{CONFIG}, so it is no Hugging Face folder; {advice}"
        )
    for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX, GALILEO_WEIGHTS):
        path = get(folder + name)
        if path is None:
            continue
        for shard in shard_names(path) if name in (INDEX, TORCH_INDEX) else ():
            get(folder + shard)  # a missing shard is reported when the folder is opened
        return config.parent
    raise UserError(f"{HUB}{repository}: has a {folder}{CONFIG} but no {WEIGHTS}; {advice}")


def _require_network(spec: str, repository: str, revision: str | None, file: str | None, folder: str) -> None:
    from huggingface_hub import constants, hf_hub_url

    url = hf_hub_url(repository, file or folder + CONFIG, revision=revision)
    if constants.HF_HUB_OFFLINE or not is_reachable(url):
        raise UserError(
            f"{spec}: not in the local cache, and the hub is out of reach; "
            f"{_manual_download(repository, file, folder)}"
        )


def _manual_download(repository: str, file: str | None, folder: str) -> str:
    if file is not None:
        return f"download {file} of {repository} by hand and give the path of the file"
    inside = f"{folder.rstrip('/')} in {repository}" if folder else repository
    return (
        f"download {CONFIG} and {WEIGHTS} (or {INDEX} and its shards) of {inside} by hand into a folder "
        "and give the path of that folder"
    )


def is_reachable(url: str) -> bool:
    """Return whether the hub answers a request for a file within `TIMEOUT` seconds.

    The request goes through the client, and so through the proxy, that would download the file. It runs in a
    thread because neither a hanging name lookup nor a response that trickles in obeys the client's timeout.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    answered = threading.Event()

    def ask() -> None:
        """Send one request and note whether it is answered."""
        with contextlib.suppress(Exception):  # the client raises errors of several HTTP libraries
            if session.head(url, timeout=TIMEOUT).status_code < 500:  # 500 and above: a proxy failed
                answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return answered.is_set()
