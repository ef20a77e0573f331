"""Speech for many texts in one request: `POST /v1/audio/speech/batch`.

    {"items": [{"input": "One.", "voice": "amber"}, {"input": "Two.", "response_format": "flac"}]}

Each item is a body of `POST /v1/audio/speech`, and counts as a request of its own. The answer has a result
for each item, in their order: `{"results": [{"audio": "...", "format": "mp3", ...}, {"error": {...}}]}`. An
error of an item is its own. The answer is sent when all items have ended, and audio is kept until then. So
`audio_seconds` bounds the audio of one batch, and a multiple of it that of all batches under way.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from valle2.engine.bundle.untrusted import shown
from valle2.runtime.captions import described
from valle2.runtime.server.http.body import SpeechBody, check_timestamps, read_object
from valle2.runtime.server.http.errors import HttpError, error_body, may_be_shown, retry_after, status_of
from valle2.runtime.server.http.formats import Encoder
from valle2.runtime.server.http.guard import CLIENT
from valle2.runtime.server.http.speak import (
    CLIENT_CLOSED_REQUEST,
    ENCODERS,
    SpeechResponse,
    disconnected,
    split,
)
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import RefusedError, TooLongError
from valle2.runtime.server.request_log import log_failure
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.types import Request as SpeechRequest

MAX_ITEMS = 32
MAX_BATCHES = 4
"""All batches under way may have the audio of so many of the longest ones."""
SCHEMA = {
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,
    "properties": {
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_ITEMS,
            "items": SpeechBody.model_json_schema(),
        }
    },
}


class Batches:
    """The batches that are under way.

    Args:
        worker: makes the speech. store: uploaded voices.
    """

    def __init__(self, worker: Worker, store: VoiceStore) -> None:
        self.worker, self.store = worker, store
        self.under_way = set[BatchRequest]()

    async def respond(self, request: Request, data: bytes) -> Response:
        """Speak the items of a batch; when they have ended, return the response.

        Raises:
            HttpError: 400; the body is no list of items. TooLongError: their speech is too long in sum.
            RefusedError: the speech of all batches is.
        """
        items = read_items(data, request.headers.get("content-type", ""))
        batch = BatchRequest(self.worker, self.store, request.scope[CLIENT], items)
        longest = self.worker.limits.audio_seconds
        if batch.expected > longest:
            raise TooLongError(
                f"the items are about {batch.expected:.0f} s of speech; this server makes at most "
                f"{longest:g} s for one batch: send fewer items, or shorter ones"
            )
        held = sum(max(other.expected, other.seconds) for other in self.under_way)
        if held + batch.expected > MAX_BATCHES * longest:
            wait = self.worker.admission.turnover()
            raise RefusedError("other batches are under way; try again later", "batches_full", max(1.0, wait))
        self.under_way.add(batch)
        try:
            return await batch.respond(request)
        finally:
            self.under_way.discard(batch)


class BatchRequest:
    """One batch.

    Args:
        client: who sends it. items: not checked yet.
    """

    def __init__(self, worker: Worker, store: VoiceStore, client: Client, items: list[Any]) -> None:
        self.worker, self.store, self.client, self.items = worker, store, client, items
        texts = [item.get("input") for item in items if isinstance(item, dict)]
        characters = sum(len(text) for text in texts if isinstance(text, str))
        self.expected = characters * worker.admission.per_character.value
        self.results: list[dict[str, Any]] = [{} for _ in items]
        self.seconds = 0.0
        self.left = iter(range(len(items)))

    async def respond(self, request: Request) -> Response:
        """Speak all items, unless the client disconnects. Then no item is spoken any longer."""
        count = min(self.worker.limits.slots, len(self.items))
        work = asyncio.gather(*(self.speak_items() for _ in range(count)))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            either: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            work.result()
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        response = SpeechResponse(written(self.results), media_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Synthetic-Speech"] = "valle2"
        response.stall_seconds = self.worker.limits.stall_seconds
        return response

    async def speak_items(self) -> None:
        """Speak one item after the other, until none is left."""
        for index in self.left:
            try:
                self.results[index] = await self.speak_patiently(self.items[index])
            except Exception as error:
                if not may_be_shown(error):
                    log_failure(error)
                self.results[index] = {"status": status_of(error), "error": error_body(error)}

    async def speak_patiently(self, item: Any) -> dict[str, Any]:
        """Speak an item. If the server is too busy for it, try again for `wait_seconds`."""
        tts, limits = self.worker.need_ready(), self.worker.limits
        body = SpeechBody.read(item)
        if body.stream_format == "sse":
            raise HttpError(400, "stream_format is sse; a batch has no events: leave it out", "stream_format")
        check_timestamps(body.timestamps, tts)
        wanted = body.request(tts, self.store, limits.text)
        clock = asyncio.get_running_loop().time
        end = clock() + limits.wait_seconds
        while True:
            try:
                return await self.speak(body, wanted, tts.sample_rate)
            except RefusedError as error:
                if clock() + retry_after(error) > end:
                    raise
                await asyncio.sleep(retry_after(error))

    async def speak(self, body: SpeechBody, wanted: SpeechRequest, rate: int) -> dict[str, Any]:
        """The result of an item. rate: Hz.

        Raises:
            TooLongError: the batch has become too long.
        """
        self.check_length()
        encoder, loop = Encoder(body.response_format, rate), asyncio.get_running_loop()
        reply = self.worker.submit(wanted, body.first_chunk_seconds, whole=True, client=self.client)
        parts = [encoder.head()]
        try:
            async for audio in reply:
                self.seconds += len(audio) / rate
                self.check_length()
                parts.append(await loop.run_in_executor(ENCODERS, encoder.add, audio))
            parts.append(await loop.run_in_executor(ENCODERS, encoder.end))
        finally:
            reply.cancel()
        words = {"words": [described(word) for word in reply.take_words()]} if body.timestamps else {}
        return {
            "format": body.response_format,
            "sample_rate": rate,
            "finish_reason": reply.finish_reason,
            "warnings": list(reply.warnings),
            **words,
            "audio": b"".join(parts),
        }

    def check_length(self) -> None:
        """Check that the audio which was made is within the limit, whatever was estimated.

        Raises:
            TooLongError: it is not.
        """
        longest = self.worker.limits.audio_seconds
        if self.seconds > longest:
            raise TooLongError(f"the batch has become more than {longest:g} s of speech; send fewer items")


def read_items(data: bytes, content_type: str) -> list[Any]:
    """The items of a batch, which are not checked yet.

    Raises:
        HttpError: 400; the body is no object with 1 to 32 items.
    """
    found = read_object(data, content_type)
    if list(found) != ["items"] or not isinstance(found["items"], list):
        raise HttpError(
            400, f'the body has {shown(list(found))}; expected {{"items": [...]}} and no other field', "items"
        )
    count = len(found["items"])
    if not 1 <= count <= MAX_ITEMS:
        raise HttpError(400, f"items has {count} items; expected 1 to {MAX_ITEMS}", "items")
    return list(found["items"])


async def written(results: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    """The JSON of the answer, in small pieces, so that no long one holds up the event loop."""
    yield b'{"results": ['
    for index, result in enumerate(results):
        yield b", " if index else b""
        for piece in written_result(result):
            yield piece
    yield b"]}"


def written_result(result: Mapping[str, Any]) -> Iterator[bytes]:
    """The JSON of one result. Its audio is in base64."""
    fields = {name: value for name, value in result.items() if name != "audio"}
    if "audio" not in result:
        yield json.dumps(fields).encode()
        return
    yield json.dumps(fields)[:-1].encode() + b', "audio": "'
    for piece in split(result["audio"]):
        yield base64.b64encode(piece)
    yield b'"}'
