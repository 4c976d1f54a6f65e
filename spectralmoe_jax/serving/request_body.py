"""Bodies of requests, received with a limit on their size and on their time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from spectralmoe_jax.serving.limits import Limits

_LINGER = 5  # seconds in which the rest of a refused body is received and thrown away
_CLOSE = {"Connection": "close"}

log = logging.getLogger(__name__)


class Body:
    """The body of one request, which is received once.

    Args:
      request: the request; nothing else may receive its body.
      limits: of the server.
    """

    def __init__(self, request: Request, limits: Limits):
        self._request, self._limits = request, limits
        self._has_more = True

    async def save(self, path: Path) -> None:
        """Write the body to a file.

        Raises:
          HTTPException: it is too large (413), too slow (408) or empty (422), or there is no room (500).
          ClientDisconnect: the client has gone.
        """
        self.check_length()
        size = 0
        try:
            async with asyncio.timeout(self._limits.timeout):
                with path.open("wb") as file:
                    while self._has_more:
                        chunk = await self._receive()
                        size += len(chunk)
                        if size > self._limits.max_bytes:
                            raise self._too_large()
                        file.write(chunk)
        except TimeoutError:
            self._has_more = False  # the client is too slow to wait for the rest
            raise HTTPException(
                408, f"the body took longer than {self._limits.timeout:g} s to arrive", _CLOSE
            ) from None
        except OSError as error:
            log.error("%s: %s", path, error)
            raise HTTPException(500, "the server has no room for the body") from None
        if not size:
            raise HTTPException(422, "the body is empty; post the image itself as the body")

    def check_length(self) -> None:
        """Check the length that the request states.

        Raises:
          HTTPException: it is too large (413).
        """
        stated = self._request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > self._limits.max_bytes:
            if self._request.headers.get("expect"):
                self._has_more = False  # the client waits for leave to send it
            raise self._too_large()

    async def discard(self) -> None:
        """Receive the rest for a while, because most clients read no answer before they have sent all."""
        with contextlib.suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_LINGER):
                while self._has_more:
                    await self._receive()

    async def _receive(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self._has_more = False
            raise ClientDisconnect
        self._has_more = message.get("more_body", False)
        return message.get("body", b"")

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._limits.max_mb:g} MB", _CLOSE)
