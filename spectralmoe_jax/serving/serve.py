"""`spectralmoe serve`: a trained model behind HTTP, until it is asked to stop."""

from __future__ import annotations

import math
import os
import signal
import socket
import warnings
from types import FrameType

import uvicorn
from rasterio.errors import NotGeoreferencedWarning

from spectralmoe_jax.config.load import Configuration
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.inference.model import load
from spectralmoe_jax.part_files import INTERRUPTED, leave
from spectralmoe_jax.serving.app import make_app
from spectralmoe_jax.serving.limits import Limits

LOOPBACK = "127.0.0.1"


def serve(
    model: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    host: str = LOOPBACK,
    port: int = 8000,
    limits: Limits | None = None,
    allow_code: bool = False,
) -> None:
    """Serve a trained model over HTTP, until SIGTERM or Ctrl-C.

    SIGTERM ends it in order: no connection is accepted any more, every request that was accepted is answered,
    and the function returns.

    Args:
      model: the model, as `spectralmoe_jax.load` takes it.
      config: as there.
      host: address to listen on; by default this machine alone can connect.
      port: to listen on; 0 for one that is free, which is printed.
      limits: what the server accepts; None for the defaults.
      allow_code: as in `spectralmoe_jax.load`.

    Raises:
      UserError: the model cannot be read, or the address cannot be listened on.
    """
    limits = limits or Limits()
    with _bound(host, port) as listener:
        app = make_app(load(model, config, allow_code=allow_code), limits, compile=True)
        patience = math.ceil(2 * limits.timeout) + 5  # for a body and its map
        settings = uvicorn.Config(app, lifespan="on", server_header=False, timeout_graceful_shutdown=patience)
        server = _Server(settings, f"{model}: http://{_shown(listener)}/docs")

        def stop(number: int, frame: FrameType | None) -> None:
            """Stop in order; uvicorn sends itself the signal again once it has."""
            server.should_exit = True

        before = signal.signal(signal.SIGTERM, stop)
        # catch_warnings, which mapping uses, is not safe across threads
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """A server that prints a line once it accepts connections."""

    def __init__(self, settings: uvicorn.Config, line: str):
        super().__init__(settings)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, listen, and print the line."""
        await super().startup(sockets)
        print(printable(self._line), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order; at once while a thread still compiles, which cannot be interrupted."""
        if not self.started and sig == signal.SIGINT:
            leave(INTERRUPTED, "error: interrupted")
        elif not self.started:
            leave(0)
        super().handle_exit(sig, frame)


def _shown(listener: socket.socket) -> str:
    """Return a socket's address as it stands in a URL."""
    name, number = listener.getsockname()[:2]
    return f"[{name}]:{number}" if listener.family == socket.AF_INET6 else f"{name}:{number}"


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, which refuses connections until the server listens on it.

    Raises:
      UserError: the address is not one of this machine, or is in use.
    """
    if not 0 <= port <= 65535:
        raise bad_value("--port", port, "must be between 0 and 65535")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        said = error.strerror or str(error)
        raise UserError(f"--host {host} --port {port}: cannot be listened on ({said})") from error
    return listener
