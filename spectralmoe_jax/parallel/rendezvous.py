"""The meeting of the processes of a run at the coordinator's address, before JAX joins them.

Each process sends process 0 one line, `spectralmoe INDEX COUNT`, and keeps the connection open. Once all are
there, process 0 answers each with `go` and frees the port. Whatever else is said there comes from strangers:
it is not counted, ends nothing, and takes neither time nor memory from the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import re
import selectors
import socket
import time
from collections.abc import Iterable, Set

from spectralmoe_jax.errors import UserError

_GREETING, _GO, _REFUSAL = "spectralmoe", "go", "spectralmoe: "
_SAID = re.compile(rf"{_GREETING} ([0-9]{{1,9}}) ([0-9]{{1,9}})\r?\n".encode())
_LONGEST_LINE = 1000  # bytes
_TIME_TO_SPEAK = 5.0  # seconds
_MOST_SILENT = 200  # visitors that have said nothing yet; the oldest make room for others
_PAUSE = 0.05  # seconds after the last process came, in which one that left again is noticed
_LISTED = 20  # missing processes in a message


def rendezvous(address: str, processes: int, process: int, time_limit: float) -> None:
    """Wait until all processes of the run have called this.

    Args:
      address: HOST:PORT of process 0; the port is free again on return.
      processes: number of processes.
      process: index of this process.
      time_limit: seconds to wait.

    Raises:
      UserError: not all were there in time; names the missing ones.
    """
    until = time.monotonic() + time_limit
    if process == 0:
        _await_others(address, processes, until, time_limit)
    else:
        _report(address, processes, process, until, time_limit)


def bind_address(address: str) -> str | None:
    """Return the HOST:PORT that process 0 listens at; None for every address of its host.

    That is the given one, unless this host does not have it (as behind a forwarded port), does not know it,
    or calls itself by it alone (a host name that stands for loopback in its own table).
    """
    return address if _own_addresses(_split(address)[0]) else None


# 1. Process 0.


@dataclasses.dataclass
class _Visitor:
    """A connection that has not said who it is yet.

    Attributes:
      until: when it must have done so.
      said: what it said so far.
    """

    until: float
    said: bytes = b""


class _Door:
    """The port of process 0, with the visitors and the processes that are there.

    Attributes:
      present: the index that each connection of another process gave. Two may have the same: one is of a
        process that started again, or of a stranger that says its words.
      mismatch: what a process with another count was told; empty if there was none.
    """

    def __init__(self, listeners: Iterable[socket.socket], processes: int):
        self.present: dict[socket.socket, int] = {}
        self.mismatch = ""
        self._processes = processes
        self._silent: dict[socket.socket, _Visitor] = {}
        self._selector = selectors.DefaultSelector()
        self._listeners = list(listeners)
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    @property
    def indices(self) -> set[int]:
        """The indices of the other processes that are there."""
        return set(self.present.values())

    def wait(self, until: float) -> None:
        """Handle what happens next, or return when the time is over."""
        for key, _ in self._selector.select(_remaining(until)):
            assert isinstance(key.fileobj, socket.socket)
            if key.fileobj in self._listeners:
                self._admit(key.fileobj)
            elif key.fileobj in self._silent:
                self._hear(key.fileobj)
            elif key.fileobj.fileno() >= 0:
                self._leave(key.fileobj)  # a process ended, or goes on to speak, which ours do not
        for visitor, known in list(self._silent.items()):
            if known.until < time.monotonic():
                self._leave(visitor)

    def close(self) -> None:
        """Close the port and the connections that belong to no process."""
        for visitor in list(self._silent):
            self._leave(visitor)
        for listener in self._listeners:
            listener.close()
        self._selector.close()

    def _admit(self, listener: socket.socket) -> None:
        while len(self._silent) >= _MOST_SILENT:
            self._leave(next(iter(self._silent)))
        try:
            visitor, _ = listener.accept()
        except OSError:  # gone already, or too many open files
            if self._silent:
                self._leave(next(iter(self._silent)))
            else:
                time.sleep(0.05)
            return
        visitor.setblocking(False)
        self._silent[visitor] = _Visitor(time.monotonic() + _TIME_TO_SPEAK)
        self._selector.register(visitor, selectors.EVENT_READ)

    def _hear(self, visitor: socket.socket) -> None:
        """Read on what a visitor says, and decide who it is at the end of the line."""
        try:
            more = visitor.recv(_LONGEST_LINE)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        known = self._silent[visitor]
        known.said += more
        if more and b"\n" not in known.said and len(known.said) < _LONGEST_LINE:
            return
        said = _SAID.fullmatch(known.said)
        index, count = (int(number) for number in said.groups()) if said else (0, 0)
        if count == self._processes and 0 < index < count:
            _, *later = [other for other, known_as in self.present.items() if known_as == index] or [visitor]
            for other in later:  # the first one and the last one stay
                self._leave(other)
            del self._silent[visitor]
            self.present[visitor] = index
            return
        if 0 < index < count:
            self.mismatch = (
                f"process {index} was started as one of {count} processes, process 0 as one of "
                f"{self._processes}"
            )
            _send([visitor], _REFUSAL + self.mismatch)
        self._leave(visitor)

    def _leave(self, visitor: socket.socket) -> None:
        self._silent.pop(visitor, None)
        self.present.pop(visitor, None)
        self._selector.unregister(visitor)
        visitor.close()


def _await_others(address: str, processes: int, until: float, time_limit: float) -> None:
    """Wait, as process 0, for the others to report, then let them go."""
    with contextlib.ExitStack() as stack:
        door = _Door(_listen(address), processes)
        try:
            while time.monotonic() < until:
                is_full = len(door.indices) == processes - 1
                door.wait(time.monotonic() + _PAUSE if is_full else until)
                if is_full and len(door.indices) == processes - 1:
                    break
        finally:
            door.close()
            for connection in door.present:
                stack.enter_context(connection)
        # The port is free now: JAX listens there next.
        if len(door.indices) == processes - 1:
            _send(door.present, _GO)
            return
        problem = door.mismatch or _missing(door.indices, processes, time_limit)
        _send(door.present, _REFUSAL + problem)
        raise UserError(_with_remedy(problem))


def _missing(present: Set[int], processes: int, time_limit: float) -> str:
    """Say which processes did not report; of many only the first."""
    missing = []
    for index in range(1, processes):
        if index not in present:
            missing.append(str(index))
        if len(missing) > _LISTED:
            missing[-1] = "..."
            break
    return f"process {', '.join(missing)} of {processes} did not report within {time_limit:g} s"


def _listen(address: str) -> list[socket.socket]:
    """Return sockets that listen at the address, or at every one of this host where that cannot be.

    Raises:
      UserError: the port is taken.
    """
    host, port = _split(address)
    found: list[socket.socket] = []
    try:
        own = _own_addresses(host)
        for family, name in own:
            found.append(socket.create_server((name, port), family=family, backlog=1024))
        if not own and socket.has_dualstack_ipv6():
            everywhere = socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
            found.append(everywhere)
        elif not own:
            found.append(socket.create_server(("", port), backlog=1024))
    except OSError as error:
        for listener in found:
            listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is not for this user to open"
        raise UserError(f"port {port} of the coordinator {why} on this host: give another one") from None
    return found


def _own_addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return the addresses that a name stands for, if all belong to this host; else none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    own: list[tuple[socket.AddressFamily, str]] = []
    is_name = host != "localhost" and not _is_address(host)
    for family, _, _, _, place in found:
        name = str(place[0])
        if is_name and _is_loopback(name):  # other hosts have another address for it
            return []
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((name, 0, *place[2:]))
        except OSError:
            if host == "localhost":  # a host without IPv6
                continue
            return []
        if (family, name) not in own:
            own.append((family, name))
    return own


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


# 2. The others.


def _report(address: str, processes: int, process: int, until: float, time_limit: float) -> None:
    """Report, as another process, to process 0 until it answers."""
    (host, port), problem = _split(address), "no answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=min(5, _remaining(until))) as connection:
                connection.sendall(f"{_GREETING} {process} {processes}\n".encode())
                # Process 0 gives up first, and says who is missing.
                answer = _read_line(connection, until + 2)
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        else:
            if answer == _GO:
                return
            if answer.startswith(_REFUSAL):
                raise UserError(_with_remedy(answer.removeprefix(_REFUSAL)))
            problem = "another program answers there" if answer else "no answer"
        time.sleep(min(0.5, _remaining(until)))
    raise UserError(
        f"process {process} of {processes} cannot reach process 0 at {host}:{port} within {time_limit:g} s "
        f"({problem}): see that it was started there and that the port is open"
    )


def _read_line(connection: socket.socket, until: float) -> str:
    """Return the first line that is said until a time, without its end; of a long one the beginning."""
    said = b""
    while b"\n" not in said and len(said) < _LONGEST_LINE and time.monotonic() < until:
        connection.settimeout(_remaining(until))
        more = connection.recv(_LONGEST_LINE)
        if not more:
            break
        said += more
    return said[:_LONGEST_LINE].split(b"\n")[0].decode(errors="replace").strip()


def _send(connections: Iterable[socket.socket], line: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.settimeout(1)
            connection.sendall(f"{line}\n".encode())


def _remaining(until: float) -> float:
    return min(60.0, max(0.01, until - time.monotonic()))


def _with_remedy(problem: str) -> str:
    return f"{problem}: see that all were started, with the same count, and reach the coordinator"
