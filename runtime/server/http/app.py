"""The FastAPI app: its routes translate between HTTP requests and the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from valle2.engine.errors import Valle2Error
from valle2.runtime.server.http.body import SpeechBody
from valle2.runtime.server.http.errors import HttpError, error_response
from valle2.runtime.server.http.guard import PAGE_FILES, Guard
from valle2.runtime.server.http.speak import respond
from valle2.runtime.server.http.websocket import serve_websocket
from valle2.runtime.server.store import NAME_CHARACTERS, VoiceStore
from valle2.runtime.server.worker import Worker, WorkerState
from valle2.runtime.types import Request as SpeechRequest

log = logging.getLogger("valle2.server")
PAGE = Path(__file__).with_name("page")
CONTENT_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "media-src": "blob:",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in CONTENT_POLICY.items()),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
CONSENT = "recorded: the speaker agreed to the use of this recording for synthetic speech"
"""What a voice file says about consent after an upload."""


def make_app(worker: Worker, store: VoiceStore, key: str = "") -> Guard:
    """The whole ASGI app. The worker starts and stops with it.

    Args:
        store: uploaded voices. key: the API key, or an empty string.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(title="valle2", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, routing_error)
    app.add_exception_handler(Valle2Error, failed_request)
    app.add_exception_handler(RuntimeError, failed_request)
    app.add_exception_handler(MemoryError, failed_request)
    add_state(app, worker)
    add_speech(app, worker, store)
    add_voices(app, worker, store)
    add_page(app)
    return Guard(app, key, worker.limits)


async def failed_request(request: Request, error: Exception) -> Response:
    """The response to an error of the worker or the store."""
    if not isinstance(error, Valle2Error):
        log.error("a request failed: %r", error)
    return error_response(error)


async def invalid_request(request: Request, error: Exception) -> Response:
    """The response to a body or form that FastAPI does not accept: 400 with the first problem."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"][1:])
    return error_response(HttpError(400, f"{place or 'body'}: {found['msg']}", place or None))


async def routing_error(request: Request, error: Exception) -> Response:
    """The response to an unknown path or method, or to an error of `Guard.limited`."""
    assert isinstance(error, HTTPException)
    return error_response(HttpError(error.status_code, str(error.detail)))


def add_state(app: FastAPI, worker: Worker) -> None:
    """Add the routes for health, readiness and metrics."""

    @app.get("/health")
    async def health() -> Response:
        healthy = worker.healthy
        state = {"status": "ok" if healthy else "failed", "restarts": worker.restarts}
        return JSONResponse(state, 200 if healthy else 503)

    @app.get("/ready")
    async def ready() -> Response:
        return JSONResponse({"state": worker.state.value}, 200 if worker.state is WorkerState.READY else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4")


def add_speech(app: FastAPI, worker: Worker, store: VoiceStore) -> None:
    """Add the routes for speech over HTTP and over a WebSocket."""

    @app.post("/v1/audio/speech")
    async def speech(body: SpeechBody, request: Request) -> Response:
        tts = worker.need_ready()
        body.check(worker.limits.text, tts.manifest.name)
        voice = store.find(tts, body.voice or tts.default_voice())
        wanted = SpeechRequest(body.input, voice, body.settings(tts.settings()))
        reply = worker.submit(wanted, body.first_chunk_seconds)
        return await respond(
            request,
            reply,
            body.response_format,
            body.stream_format == "sse",
            tts.sample_rate,
            worker.limits.stall_seconds,
        )

    @app.websocket("/v1/audio/speech/stream")
    async def socket(socket: WebSocket) -> None:
        await serve_websocket(socket, worker, store)


def add_voices(app: FastAPI, worker: Worker, store: VoiceStore) -> None:
    """Add the routes that list, upload and delete voices."""

    @app.get("/v1/voices")
    def voices() -> dict[str, Any]:
        return {"voices": store.listing(worker.need_ready())}

    @app.post("/v1/voices", status_code=201)
    async def add(
        name: str = Form(max_length=NAME_CHARACTERS),
        transcript: str = Form(max_length=1000),
        consent: bool = Form(),
        file: UploadFile = File(),  # noqa: B008
    ) -> dict[str, Any]:
        tts = worker.need_ready()
        store.check_new(tts, name)
        if not consent:
            raise HttpError(400, "consent is false; upload a voice only if its speaker agreed", "consent")
        data = await file.read()
        made = await asyncio.wrap_future(worker.call(lambda tts: tts.prompt(data, transcript, name)))
        store.add(replace(made, source="upload", consent=CONSENT))
        return {"name": name, "seconds": round(len(made.codes) / tts.need_codec().frame_rate, 2)}

    @app.delete("/v1/voices/{name}")
    def remove(name: str) -> dict[str, Any]:
        store.remove(worker.need_ready(), name)
        return {"deleted": name}


def add_page(app: FastAPI) -> None:
    """Add the page and its files."""
    for path, name in PAGE_FILES.items():
        app.add_api_route(path, page_file(PAGE / name), include_in_schema=False)


def page_file(path: Path) -> Callable[[], Awaitable[Response]]:
    """A route that sends one file of the page."""

    async def send_file() -> Response:
        return FileResponse(path, headers=PAGE_HEADERS)

    return send_file
