"""Hidden part files: what a command writes beside a file before it takes the file's name.

A part's name tells the host and process that write it. A process that is asked to end (SIGTERM) removes its
own parts first. Those of a process that was killed are removed by the next one that writes to the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # status of a command that Ctrl-C ended
_PART = re.compile(r"\..*\.part-(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9]+(\..*)?", re.DOTALL)
_FORGOTTEN = 7 * 24 * 3600  # seconds without a change, after which a part of another host is left over
_LONGEST_STEM = 40  # characters of the final name in that of a part: names of files are limited

_numbers = itertools.count()
_in_use: dict[Path, int] = {}  # parts, without further suffixes, and the process that made them
_swept: set[Path] = set()  # folders that this process has looked through
_lock = threading.Lock()


@contextlib.contextmanager
def hidden_part(path: Path) -> Iterator[Path]:
    """Yield a name beside `path`, and with its suffix, for a file or folder that is to replace it.

    What has this name is removed when the block ends. Parts that killed processes left in the folder are
    removed before it begins. Several files go into one part that is a folder.
    """
    _remove_left_over(path.parent)
    name = f".{path.stem[:_LONGEST_STEM]}.part-{_host()}-{os.getpid()}-{next(_numbers)}{path.suffix}"
    with _removed_at_the_end(path.with_name(name)) as part:
        yield part


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder in the system's folder for temporary files, which goes when the block ends.

    Its name is that of a part, so that the next command removes what a killed one left there.
    """
    import tempfile

    place = Path(tempfile.gettempdir())
    _remove_left_over(place)
    prefix = f".spectralmoe.part-{_host()}-{os.getpid()}-{next(_numbers)}."
    with _removed_at_the_end(Path(tempfile.mkdtemp(prefix=prefix, dir=place))) as folder:
        yield folder


@contextlib.contextmanager
def _removed_at_the_end(part: Path) -> Iterator[Path]:
    """Remove a part when the block ends, or when the process is asked to end."""
    with _lock:
        _in_use[part] = os.getpid()
    try:
        with _on_termination():
            yield part
    finally:
        _remove(part)
        with _lock:
            _in_use.pop(part, None)


def _remove(part: Path) -> None:
    """Remove a file or folder if possible; what stays is removed as left over by a later command."""
    with contextlib.suppress(OSError):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)  # another process may still write there
        else:
            part.unlink()


def _remove_left_over(folder: Path) -> None:
    """Remove the parts that no living process writes; once for each folder and process."""
    place = folder.absolute()
    with _lock:
        if place in _swept:
            return
        _swept.add(place)
    with contextlib.suppress(OSError):  # a folder of others; writing there tells
        for entry in list(os.scandir(folder)):
            found = _PART.fullmatch(entry.name)
            if found and _is_left_over(found, entry, place):
                with contextlib.suppress(OSError):
                    _remove(Path(entry.path))


def _is_left_over(found: re.Match[str], entry: os.DirEntry[str], folder: Path) -> bool:
    """Return whether the process that wrote a part is dead."""
    if found["host"] == _host():
        pid = int(found["pid"])
        if pid == os.getpid():  # a former process of this number, unless it is ours
            with _lock:
                return folder / entry.name not in {part.absolute() for part in _in_use}
        return not _is_alive(pid)
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _FORGOTTEN


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # a process of another user
        return True
    return True


@functools.cache
def _host() -> str:
    """Return a name, of 8 digits, of the host and of the process numbers that are valid on it."""
    with contextlib.suppress(OSError):  # a container counts its processes on its own
        return _short(f"{os.uname().nodename} {os.readlink('/proc/self/ns/pid')}")
    return _short(os.uname().nodename)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextlib.contextmanager
def _on_termination() -> Iterator[None]:
    """Remove all parts of this process on SIGTERM, where that would end it at once."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(signum: int, frame: FrameType | None) -> Any:
    """Remove the parts of this process, and end it as the signal does."""
    _remove_own_parts()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def leave(status: int, line: str = "") -> NoReturn:
    """End the process at once: a compiler that still runs in a thread would not survive the usual end.

    The hidden parts of what it writes are removed.

    Args:
      status: exit status.
      line: what to say on standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _remove_own_parts()
    try:
        sys.stdout.flush()
        os.write(2, f"{line}\n".encode() if line else b"")
    except (OSError, RuntimeError):  # closed, or being written to
        pass
    os._exit(status)


def _remove_own_parts() -> None:
    """Remove all parts of this process, which is about to end at once."""
    for part, process in tuple(_in_use.items()):
        if process == os.getpid():  # a forked process has those of its parent in the list
            with contextlib.suppress(OSError):
                _remove(part)
