"""The ASGI application: images in, maps out, with one line for whatever is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from spectralmoe_jax import __version__
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.part_files import scratch_folder
from spectralmoe_jax.serving.answers import FORMATS, ImageTooLargeError, ServerFailedError
from spectralmoe_jax.serving.limits import Limits
from spectralmoe_jax.serving.openapi_page import as_page
from spectralmoe_jax.serving.request_body import Body
from spectralmoe_jax.serving.service import QueueFullError, Service
from spectralmoe_jax.serving.window_queue import OutOfTimeError

IMAGES = ("image/tiff", "image/png", "image/jpeg", "application/octet-stream")
"""Media types of bodies; a body without one is taken as it is."""
_ACCEPTED = {
    **{media: format for format, media in FORMATS.items()},
    "application/json": "geojson", "image/*": "tif", "application/*": "geojson", "*/*": "tif",
}  # fmt: skip
_SAID = {
    406: "The client accepts none of the formats",
    408: "The body took too long to arrive",
    413: "The body, or the image, is too large",
    415: "The body is said to be no image",
    422: "The body is no image, or not one for this model",
    429: "The queue is full; try again",
    504: "The map was not ready in time",
}
_IMAGE_BODY = {media: {"schema": {"type": "string", "format": "binary"}} for media in IMAGES}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The map", "content": {media: {} for media in FORMATS.values()}},
    **{status: {"description": said} for status, said in _SAID.items()},
}
_SAFE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

log = logging.getLogger(__name__)


def make_app(model: Model, limits: Limits | None = None, *, compile: bool = False) -> FastAPI:
    """Make the application of one model, for any ASGI server, in one process.

    Args:
      model: the trained model.
      limits: of the server; None for the defaults.
      compile: compile the programs at the start, before the first request.

    Raises:
      UserError: the model's configuration has no palette.
    """
    limits = limits or Limits()
    about = describe(model, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Run the threads of the service while the application is up."""
        service = Service(model, limits)
        if compile:
            await asyncio.to_thread(service.compile)
        app.state.service = service
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title=f"SpectralMoE: {model.config.name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load a script from another server
        redoc_url=None,
    )
    _add_handlers(app, limits)

    @app.post(
        "/predict",
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra={"requestBody": {"required": True, "content": _IMAGE_BODY}},
    )
    async def predict(request: Request, format: Literal["tif", "png", "geojson"] | None = None) -> Response:
        """Map the image in the body.

        The format is that of the query, or else of the header Accept; by default tif: a GeoTIFF with the
        georeference of the image, class numbers, colours and names of classes. png: an indexed picture with
        the colours of the classes. geojson: polygons in longitude and latitude.
        """
        body = Body(request, limits)
        try:
            chosen = format or _accepted(request)
            _check_type(request)
            body.check_length()
            job = await _admit(app.state.service, body, chosen)
        except (HTTPException, QueueFullError):
            await body.discard()
            raise
        return Response(await _result(job, limits), media_type=FORMATS[chosen])

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell whether the model answers."""
        if not app.state.service.windows.is_alive:
            raise HTTPException(503, "the thread of the model has ended; start the server again")
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """Describe the model, its bands and classes, and the limits."""
        return about

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        """Show the description of /openapi.json; loads nothing from elsewhere."""
        return HTMLResponse(as_page(app.openapi()), headers=_SAFE)

    return app


def describe(model: Model, limits: Limits) -> dict[str, Any]:
    """Return what `/info` tells, as plain values.

    Raises:
      UserError: the configuration has no palette.
    """
    config = model.config
    return {
        "name": config.name,
        "version": __version__,
        "classes": [
            {"class": number, "name": name, "colour": list(colour)}
            for number, (name, colour) in enumerate(zip(model.classes, config.classes.colours, strict=True))
        ],
        "bands": list(model.bands),
        "sensor": model.sensor,
        "pixel_mean": model.pixel_mean.tolist(),
        "pixel_std": model.pixel_std.tolist(),
        "window": config.evaluate.window,
        "overlap": config.evaluate.overlap,
        "tta": config.evaluate.tta,
        "formats": list(FORMATS),
        "limits": {
            "queue": limits.queue,
            "max_mb": limits.max_mb,
            "max_megapixels": limits.max_megapixels,
            "timeout": limits.timeout,
        },
    }


async def _admit(service: Service, body: Body, format: str) -> Future[bytes]:
    """Receive a body and hand it to the service; its place and its folder are kept until the map is done.

    Raises:
      HTTPException: from receiving the body.
      ServerFailedError: the body cannot be stored.
      QueueFullError: no place is free.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(service.slot())
        try:
            image = held.enter_context(scratch_folder()) / "image"
            await body.save(image)
        except OSError as error:
            raise ServerFailedError(
                f"an image cannot be stored in {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        job = service.submit(image, format)
        kept = held.pop_all()
        job.add_done_callback(lambda _: kept.close())
    return job


async def _result(job: Future[bytes], limits: Limits) -> bytes:
    """Wait for an answer, as long as the limit says; what has not begun by then is not made.

    Raises:
      HTTPException: the image is wrong (413, 422), or time is over (504).
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(job), limits.timeout)
    except (TimeoutError, OutOfTimeError):
        raise HTTPException(504, f"the map was not ready after {limits.timeout:g} s") from None
    except ImageTooLargeError as error:
        raise HTTPException(413, str(error)) from None
    except UserError as error:
        raise HTTPException(422, str(error)) from None


def _accepted(request: Request) -> str:
    """Return the format that the header Accept prefers.

    Raises:
      HTTPException: it accepts none (406).
    """
    wanted: list[tuple[float, str]] = []
    for part in request.headers.get("accept", "*/*").split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        stated = [piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")]
        try:
            wanted.append((float(stated[0]) if stated else 1.0, media))
        except ValueError:
            continue
    for quality, media in sorted(wanted, key=lambda pair: -pair[0]):
        if quality > 0 and media in _ACCEPTED:
            return _ACCEPTED[media]
    raise HTTPException(406, f"Accept names none of {', '.join(FORMATS.values())}")


def _check_type(request: Request) -> None:
    """Check that a body is said to be an image, and as it is.

    Raises:
      HTTPException: it is said to be something else (415).
    """
    media = request.headers.get("content-type", IMAGES[0]).partition(";")[0].strip().lower()
    if media not in IMAGES:
        raise HTTPException(
            415, f"Content-Type {media}: post the image itself as the body, as one of {', '.join(IMAGES)}"
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding}: send the file as it is")


def _add_handlers(app: FastAPI, limits: Limits) -> None:
    """Answer every error with one line under the key `detail`."""

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> JSONResponse:
        """Refuse a request that finds no place."""
        said = "the server has as many requests as it takes; try again"
        return JSONResponse({"detail": said}, 429, {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """Name the first value of a query that is not allowed."""
        await Body(request, limits).discard()
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]} = {first.get('input')!r}: {first['msg']}"}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        """End the request of a client that has gone; nobody reads this."""
        return Response(status_code=400)

    @app.exception_handler(ServerFailedError)
    async def failed(request: Request, error: ServerFailedError) -> JSONResponse:
        """Log why a map could not be written; paths of the server are not for its clients."""
        log.error("%s", error)
        return JSONResponse({"detail": "the server could not store the image or write the map"}, 500)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        """Log what nobody expects, in one line; the server of the application logs the traceback."""
        log.error("%s failed (%s: %s)", request.url.path, type(error).__name__, " ".join(str(error).split()))
        return JSONResponse({"detail": "the server failed on this request; its log says why"}, 500)
