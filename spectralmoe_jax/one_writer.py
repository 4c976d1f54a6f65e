"""One writer for a folder at a time: a lock file that outlives no process, on shared file systems too.

`.writer.json` in the folder names the machine and the process that writes there, which renews the file's time
every few seconds. A lock is stale, and is taken over,

* at once, where it is of this machine and its process is gone: another one may have its number, but not its
  time of start;
* of another machine, or of a process that cannot be told, once it was not renewed for `STALE_SECONDS` while
  this process watched, or sooner where it is minutes old by the clock of the file system. The clocks of two
  machines are not compared.

Locks of the system are not enough: they do not always reach other machines, and child processes inherit them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError, shown

log = logging.getLogger(__name__)

LOCK_FILE = ".writer.json"
BEAT_SECONDS = 3.0
STALE_SECONDS = 20.0
_OLD_SECONDS = 120.0
_POLL_SECONDS = 0.1
_LONGEST_FLOCK = 5.0  # seconds
_MOST_PROCESSES = 1 << 31
_LARGEST = 1 << 16  # bytes of a lock file
_LATEST = 1 << 33  # seconds since 1970 that a time can be
_held: set[Path] = set()  # folders that this process holds


@contextlib.contextmanager
def one_writer(folder: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder inside the block; a block inside, of the same process, holds it as well.

    Args:
      folder: an existing folder.
      what: what the holder does, for the message of others, such as "trains".
      patience: seconds to wait for a holder that is about to end.

    Raises:
      UserError: another process holds it; names its machine and number.
      OSError: the folder cannot be written.
    """
    place = folder.resolve()
    if place in _held:
        yield
        return
    path = place / LOCK_FILE
    own = _describe_self(place, what)
    _acquire(path, own, patience)
    _held.add(place)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, own, ended), daemon=True, name="one writer")
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join(STALE_SECONDS)  # it may wait for a file system that is away
        _held.discard(place)
        if (_read(path) or {}).get("token") == own["token"]:
            path.unlink(missing_ok=True)


def _beat(path: Path, own: dict[str, Any], ended: threading.Event) -> None:
    """Renew the time of the lock file until the block ends; write it again if somebody removed it."""
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a file system that is away for a while
            there = _read(path)
            if there is not None and there["token"] != own["token"]:  # this process was asleep for long
                log.error("%s: %s writes there too: stop one of the two", path.parent, _named(there))
                return
            if there is not None or not _created(path, own):
                os.utime(path)


def _acquire(path: Path, own: dict[str, Any], patience: float) -> None:
    """Write the lock file once no other process holds it.

    Raises:
      UserError: another process does.
    """
    until = time.monotonic() + patience
    watched: tuple[Any, float] | None = None  # a lock of another machine, and since when it is unchanged
    while not _created(path, own):
        there, state = _read(path), _state(path)
        if state is None:
            continue  # just released
        if there is not None and _is_here(there, path):
            # 1. this machine's: look at its process
            is_alive = _started(there["pid"]) == there["started"]
            is_stale = not is_alive
        else:
            # 2. another machine's, or a copy, or damaged: see whether it is renewed
            if watched is None:
                watched = (state, time.monotonic())
                log.warning("%s: waiting to see whether %s is still there", path.parent, _named(there))
            is_alive = watched[0] != state
            silent = max(_age(path, own), time.monotonic() - watched[1])
            watch = BEAT_SECONDS * 2 if silent > _OLD_SECONDS else STALE_SECONDS
            is_stale = not is_alive and time.monotonic() - watched[1] >= watch
            if is_stale:
                log.warning("%s: %s was silent for %.0f s: taken over", path.parent, _named(there), silent)
        if is_stale:
            _remove_stale(path, there, state)
        elif is_alive and time.monotonic() >= until:
            raise _refusal(path, there)
        else:
            time.sleep(_POLL_SECONDS)


def require_free(folder: Path) -> None:
    """Check early, without holding it, that no process of this machine holds a folder.

    Raises:
      UserError: one does; names it.
    """
    path = folder.resolve() / LOCK_FILE
    there = _read(path)
    if path.parent in _held or there is None or not _is_here(there, path):
        return
    if _started(there["pid"]) == there["started"]:
        raise _refusal(path, there)


def _named(lock: dict[str, Any] | None) -> str:
    return "a process" if lock is None else f"process {lock['pid']} on {shown(lock['host'])}"


def _age(path: Path, own: dict[str, Any]) -> float:
    """Return the seconds since a lock file was renewed, by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{own['token']}")
    try:
        probe.touch()
        return max(0.0, probe.stat().st_mtime - path.stat().st_mtime)
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _refusal(path: Path, there: dict[str, Any] | None) -> UserError:
    what = "is at work" if there is None else shown(there["what"])
    since = "" if there is None else time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(there["time"]))
    return UserError(
        f"{path.parent}: {_named(there)} {what} there{since}: wait for it, stop it, or choose another folder"
    )


def _created(path: Path, own: dict[str, Any]) -> bool:
    """Create the lock file with its content, unless there is one; return whether it is ours now."""
    aside = path.with_name(f"{path.name}.{own['token']}")
    try:
        aside.write_text(json.dumps(own) + "\n", encoding="utf-8")
        try:
            os.link(aside, path)  # fails where there is a file, on shared file systems too
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with path.open("x") as file:
                    file.write(json.dumps(own) + "\n")
            except FileExistsError:
                return False
        return (_read(path) or {}).get("token") == own["token"]
    finally:
        aside.unlink(missing_ok=True)


def _remove_stale(path: Path, there: dict[str, Any] | None, state: Any) -> None:
    """Remove a stale lock file, unless another process has taken it over already."""
    with _one_at_a_time(path.parent):
        if _state(path) == state and _read(path) == there:
            if path.is_dir() and not path.is_symlink():
                raise UserError(f"{path}: a folder, where a command notes that it writes there: remove it")
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Exclude other processes from the block, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            _flock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> None:
    """Wait for a lock of the system, but not for one that a broken lock service never gives.

    Raises:
      OSError: there is none.
    """
    until = time.monotonic() + _LONGEST_FLOCK
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.01)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says; None if there is none, or it says nothing."""
    try:
        with _opened(path) as descriptor:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            found = json.loads(os.read(descriptor, _LARGEST)) if is_file else None
    except (OSError, ValueError, RecursionError):
        return None
    texts = ("started", "machine", "host", "what", "token")
    is_whole = (
        isinstance(found, dict)
        and all(isinstance(found.get(key), str) for key in texts)
        and type(found.get("pid")) is int
        and 0 < found["pid"] < _MOST_PROCESSES
        and isinstance(found.get("time"), float)
        and 0 <= found["time"] < _LATEST
    )
    return found if is_whole else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file to read, whatever it is; a pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _state(path: Path) -> tuple[int, int] | None:
    """Return what changes when a lock file is renewed or replaced; None if there is none.

    The file is opened, as shared file systems then ask the server for its time.
    """
    try:
        with _opened(path) as descriptor:
            found = os.fstat(descriptor)
    except OSError:  # there is none, or one that others may not read, or a link that leads nowhere
        try:
            found = path.lstat()
        except OSError:
            return None
    return found.st_ino, found.st_mtime_ns


def _describe_self(folder: Path, what: str) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": os.uname().nodename,
        "pid": pid,
        "what": what,
        "time": time.time(),
        "started": _started(pid) or "",
        "machine": _machine(),
        "folder": folder.stat().st_ino,
        "token": secrets.token_hex(8),
    }


def _is_here(lock: dict[str, Any], path: Path) -> bool:
    """Return whether the process of a lock file would be among those that this process sees.

    It would not if the lock was copied with its folder, or if the system hides processes of other users.
    """
    if lock["machine"] != _machine() or not lock["started"]:
        return False
    folder = path.parent.stat().st_ino
    return lock.get("folder", folder) == folder and not _is_hidden(lock["pid"])


def _is_hidden(pid: int) -> bool:
    """Return whether there is a process of another user of which the system says nothing else."""
    if _started(pid) is not None:
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return False


def _machine() -> str:
    """Return the name of this machine, of its start, and of the container whose processes are seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def _started(pid: int) -> str | None:
    """Return when a process was started, as the system counts it; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    return None if fields[0] in ("Z", "X") else fields[19]
