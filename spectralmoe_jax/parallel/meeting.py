"""The processes of a run meet before JAX joins them: JAX ends a process that waits in vain without a line
that says which of the others is missing."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterable

from spectralmoe_jax.errors import UserError

GREETING = "spectralmoe"
GO = "go"


def meet(address: str, processes: int, process: int, time_limit: float) -> None:
    """Returns when all processes of the run have called this with the address of process 0.

    Args:
      address: HOST:PORT; free again on return.

    Raises:
      UserError: not all were there within `time_limit` seconds; names the missing ones.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + time_limit
    if process == 0:
        _receive(int(port), processes, until, time_limit)
    else:
        _report(host.strip("[]"), int(port), processes, process, until, time_limit)


def _receive(port: int, processes: int, until: float, time_limit: float) -> None:
    """Process 0: waits for the others to report, then lets them go."""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        with _listen(port) as listener:
            while len(present) < processes - 1:
                try:
                    listener.settimeout(_left(until))
                    visitor = stack.enter_context(listener.accept()[0])
                    visitor.settimeout(min(5, _left(until)))
                    words = _line(visitor).split()
                except OSError:
                    if time.monotonic() < until:
                        continue  # a visitor without a word
                    missing = ", ".join(str(i) for i in range(1, processes) if i not in present)
                    problem = f"process {missing} of {processes} did not report within {time_limit:g} s"
                    _tell(present.values(), problem)
                    raise UserError(_with_remedy(problem)) from None
                if len(words) != 3 or words[0] != GREETING:
                    continue
                if words[2] != str(processes):
                    problem = f"process {words[1]} was told of {words[2]} processes, process 0 of {processes}"
                    _tell([*present.values(), visitor], problem)
                    raise UserError(_with_remedy(problem))
                present[int(words[1])] = visitor
        # The port is free now: JAX listens there next.
        _tell(present.values(), GO)


def _report(host: str, port: int, processes: int, process: int, until: float, time_limit: float) -> None:
    """Another process: reports to process 0 until it is let go."""
    problem = "no answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, port), timeout=min(5, _left(until))) as connection:
                connection.sendall(f"{GREETING} {process} {processes}\n".encode())
                # Process 0 gives up first, and says who is missing.
                connection.settimeout(_left(until) + 2)
                answer = _line(connection)
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if answer == GO:
                return
            if answer:
                raise UserError(_with_remedy(answer))
        time.sleep(min(0.5, _left(until)))
    raise UserError(
        f"process {process} of {processes} cannot reach process 0 at {host}:{port} within {time_limit:g} s "
        f"({problem}): see that it was started there and that the port is open"
    )


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(f"port {port} of the coordinator is taken on this host: give another one") from None


def _line(connection: socket.socket) -> str:
    with connection.makefile(encoding="utf-8", errors="replace") as file:
        return file.readline(1000).strip()


def _tell(connections: Iterable[socket.socket], line: str) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(f"{line}\n".encode())


def _left(until: float) -> float:
    return max(0.01, until - time.monotonic())


def _with_remedy(problem: str) -> str:
    return f"{problem}: see that all were started, with the same count, and reach the coordinator"
