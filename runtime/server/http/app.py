"""The FastAPI app: its routes translate between HTTP requests and the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from valle2.engine.errors import Valle2Error
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.server.http.batch import SCHEMA, Batches
from valle2.runtime.server.http.body import (
    JSON_TYPE,
    SpeechBody,
    check_events,
    check_timestamps,
    model_names,
    read_object,
    unknown_model,
)
from valle2.runtime.server.http.errors import HttpError, error_response, invalid_value, may_be_shown
from valle2.runtime.server.http.form import FORM_BODY, read_form
from valle2.runtime.server.http.formats import SENT_WHOLE
from valle2.runtime.server.http.guard import CLIENT, PAGE_FILES, Guard
from valle2.runtime.server.http.request_ids import RequestIds
from valle2.runtime.server.http.speak import CLIENT_CLOSED_REQUEST, respond
from valle2.runtime.server.http.websocket import serve_websocket
from valle2.runtime.server.keys import Client, Keys
from valle2.runtime.server.request_log import log_failure
from valle2.runtime.server.store import NAME_CHARACTERS, VoiceStore
from valle2.runtime.server.worker import WARM_UP_TEXT, Worker, WorkerState
from valle2.runtime.tts import MIN_PROMPT_SECONDS, Valle2
from valle2.runtime.types import Prompt
from valle2.runtime.types import Request as SpeechRequest

VOICE_FILES = ThreadPoolExecutor(1, "valle2-voices")
"""Lists of voices are read here, one after the other. In the framework's forty threads they would keep the
interpreter from the engine."""
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
TRANSCRIPT_CHARACTERS = 1000
"""Most characters of the transcript of an uploaded recording."""
CONSENT = "recorded: the speaker agreed to the use of this recording for synthetic speech"
"""What a voice file says about consent after an upload."""


def make_app(worker: Worker, store: VoiceStore, keys: Keys | None = None) -> RequestIds:
    """The whole ASGI app. The worker starts and stops with it.

    Args:
        store: uploaded voices. keys: the API keys; without any, everybody on this machine may ask.
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
    app.add_exception_handler(Exception, failed_request)  # raised again for `RequestIds`
    add_state(app, worker)
    add_models(app, worker)
    add_speech(app, worker, store)
    add_voices(app, worker, store)
    add_limits(app, worker)
    add_page(app)
    return RequestIds(Guard(app, keys or Keys(), worker.limits))


async def failed_request(request: Request, error: Exception) -> Response:
    """The response to an error of the worker or the store."""
    if not may_be_shown(error):
        log_failure(error)
    return error_response(error)


async def invalid_request(request: Request, error: Exception) -> Response:
    """The response to a form that FastAPI does not accept: 400 with the first problem."""
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_value(error.errors()[0]))


async def routing_error(request: Request, error: Exception) -> Response:
    """The response to an unknown path or method, or to an error of `Guard.limited`."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        return error_response(HttpError(404, f"no such path: {path}; see /openapi.json for those there are"))
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(request))
        message = f"{path} does not take {method}; it takes {allowed}"
        return error_response(HttpError(405, message), {"Allow": allowed})
    if isinstance(error.__cause__, OSError):  # the form could not be kept on the disk
        return await failed_request(request, error.__cause__)
    return error_response(HttpError(error.status_code, str(error.detail)), error.headers)


def allowed_methods(request: Request) -> list[str]:
    """The methods of a path, over all routes for it."""
    found = set[str]()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def add_state(app: FastAPI, worker: Worker) -> None:
    """Add the routes for health, readiness and metrics."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        healthy = worker.healthy
        state = {"status": "ok" if healthy else "failed", "restarts": worker.restarts}
        return JSONResponse(state, 200 if healthy else 503)

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> Response:
        return JSONResponse({"state": worker.state.value}, 200 if worker.state is WorkerState.READY else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type="text/plain; version=0.0.4")


def add_models(app: FastAPI, worker: Worker) -> None:
    """Add the routes that list the model under every name that it answers to."""
    created = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "valle2"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = model_names(worker.need_ready().manifest.name)
        return {"object": "list", "data": [described(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        own = worker.need_ready().manifest.name
        if name not in model_names(own):
            raise unknown_model(name, own)
        return described(name)

    @app.get("/v1/audio/models")
    async def audio_models() -> dict[str, Any]:
        """The list as Open WebUI reads it."""
        return {"models": [{"id": name} for name in model_names(worker.need_ready().manifest.name)]}


def add_speech(app: FastAPI, worker: Worker, store: VoiceStore) -> None:
    """Add the routes for speech over HTTP and over a WebSocket."""

    content = {JSON_TYPE: {"schema": SpeechBody.model_json_schema()}}

    @app.post("/v1/audio/speech", openapi_extra={"requestBody": {"required": True, "content": content}})
    async def speech(request: Request) -> Response:
        try:
            data = await request.body()
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        body = SpeechBody.read(read_object(data, request.headers.get("content-type", "")))
        check_events(body)
        tts = worker.need_ready()
        check_timestamps(body.timestamps, tts)
        wanted = body.request(tts, store, worker.limits.text)
        whole = body.response_format in SENT_WHOLE
        reply = worker.submit(wanted, body.first_chunk_seconds, whole=whole, client=request.scope[CLIENT])
        return await respond(
            request,
            reply,
            body.response_format,
            body.stream_format == "sse",
            tts.sample_rate,
            worker.limits.stall_seconds,
        )

    batches = Batches(worker, store)
    items = {JSON_TYPE: {"schema": SCHEMA}}

    @app.post("/v1/audio/speech/batch", openapi_extra={"requestBody": {"required": True, "content": items}})
    async def batch(request: Request) -> Response:
        try:
            data = await request.body()
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return await batches.respond(request, data)

    @app.websocket("/v1/audio/speech/stream")
    async def socket(socket: WebSocket) -> None:
        await serve_websocket(socket, worker, store)


def add_voices(app: FastAPI, worker: Worker, store: VoiceStore) -> None:
    """Add the routes that list, upload and delete voices."""

    async def listing() -> list[dict[str, Any]]:
        tts = worker.need_ready()
        return await asyncio.get_running_loop().run_in_executor(VOICE_FILES, store.listing, tts)

    @app.get("/v1/voices")
    async def voices() -> dict[str, Any]:
        return {"voices": await listing()}

    @app.get("/v1/audio/voices")
    async def audio_voices() -> dict[str, Any]:
        """The list with an `id` for each voice, as Open WebUI reads it."""
        voices = await listing()
        return {"voices": [{"id": voice["name"], **voice} for voice in voices]}

    @app.post("/v1/voices", status_code=201, openapi_extra=FORM_BODY)
    async def add(request: Request) -> dict[str, Any]:
        form, data = await read_form(request)
        name, tts = form.name, worker.need_ready()
        store.check_new(tts, name)
        if not form.consent:
            raise HttpError(400, "consent is false; upload a voice only if its speaker agreed", "consent")
        made = await asyncio.wrap_future(worker.prepare_voice(data, form.transcript, name))
        await asyncio.to_thread(check_speakable, tts, made)
        await asyncio.to_thread(store.add, replace(made, source="upload", consent=CONSENT))
        seconds = round(len(made.codes) / tts.need_codec().frame_rate, 2)
        return {"name": name, "seconds": seconds, "warnings": list(made.warnings)}

    @app.delete("/v1/voices/{name}")
    async def remove(name: str) -> dict[str, Any]:
        tts = worker.need_ready()
        await asyncio.get_running_loop().run_in_executor(VOICE_FILES, store.remove, tts, name)
        return {"deleted": name}


def check_speakable(tts: Valle2, prompt: Prompt) -> None:
    """Refuse a voice whose transcript or length leaves the model no place for a text.

    Raises:
        HttpError: 400.
    """
    try:
        tts.encode(SpeechRequest(WARM_UP_TEXT, prompt))
    except (TextError, PromptError) as error:
        raise HttpError(400, f"the transcript cannot be spoken: {error}", "transcript") from None


def add_limits(app: FastAPI, worker: Worker) -> None:
    """Add the routes that tell clients what the server takes, and what they have used."""

    @app.get("/v1/usage")
    async def usage(request: Request) -> dict[str, Any]:
        """What the key of the caller has used; without keys, what all have used."""
        client: Client = request.scope[CLIENT]
        return client.key.usage() if client.key else {}

    @app.get("/v1/limits")
    async def limits() -> dict[str, Any]:
        tts, bounds = worker.need_ready(), worker.limits
        return {
            "text_characters": bounds.text,
            "audio_seconds": bounds.audio_seconds,
            "recording_seconds": {"least": MIN_PROMPT_SECONDS, "most": round(tts.longest_prompt_seconds, 2)},
            "transcript_characters": TRANSCRIPT_CHARACTERS,
            "voice_name_characters": NAME_CHARACTERS,
            "upload_bytes": bounds.upload_bytes,
        }


def add_page(app: FastAPI) -> None:
    """Add the page and its files."""
    for path, name in PAGE_FILES.items():
        app.add_api_route(path, page_file(PAGE / name), methods=["GET", "HEAD"], include_in_schema=False)


def page_file(path: Path) -> Callable[[], Awaitable[Response]]:
    """A route that sends one file of the page."""

    async def send_file() -> Response:
        return FileResponse(path, headers=PAGE_HEADERS)

    return send_file
