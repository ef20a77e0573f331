"""Sends the audio of a `Reply` as an HTTP response: encoded pieces or server-sent events, as they are made.

An error before the first byte has a status. A later error aborts the connection, so that a client never takes
an incomplete stream for a complete one.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Message, Send

from valle2.runtime.captions import described
from valle2.runtime.server.http.formats import MEDIA_TYPES, Encoder, Format
from valle2.runtime.server.reply import Reply
from valle2.runtime.types import Audio

ENCODERS = ThreadPoolExecutor(2, "valle2-encode")
"""Audio is encoded here, so that a long MP3 or FLAC does not block the event loop."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client has disconnected. Nobody receives it."""

MAX_WARNINGS = 2048
"""Characters of the header X-Warnings at the most. Proxies refuse long headers."""
LONGEST_ESCAPE = 12
"""Characters that JSON needs in ASCII for one character outside the basic plane."""

PIECE_BYTES = 49_152
"""Most bytes that are sent, or encoded in base64, at once; a multiple of 3."""


class SpeechResponse(StreamingResponse):
    """A streaming response that fails if the client takes nothing for `stall_seconds`."""

    stall_seconds: float

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(self.stall_seconds):
                await send(message)

        await super().stream_response(send_in_time)


async def respond(
    request: Request, reply: Reply, audio_format: Format, sse: bool, rate: int, stall_seconds: float
) -> Response:
    """Wait for the first audio, then return a response that streams the rest.

    Args:
        sse: send server-sent events instead of the bytes themselves. rate: Hz.
        stall_seconds: how long the client may take nothing.

    Raises:
        Exception: the error that ended the request before its first audio.
    """
    pieces = aiter(reply)
    try:
        first = await first_piece(request, pieces)
    except BaseException:
        reply.cancel()
        raise
    if first is None:
        reply.cancel()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    chunks = encoded(reply, first, pieces, Encoder(audio_format, rate))
    response = SpeechResponse(
        events(chunks, reply) if sse else chunks,
        media_type="text/event-stream" if sse else MEDIA_TYPES[audio_format],
        headers={
            "Cache-Control": "no-store",
            "X-Sample-Rate": str(rate),
            "X-Synthetic-Speech": "valle2",
            **headers_about(reply),
        },
    )
    response.stall_seconds = stall_seconds
    return response


def headers_about(reply: Reply) -> dict[str, str]:
    """`X-Warnings`, a JSON list in ASCII, if there are any; `X-Finish-Reason`, if the speech is complete."""
    headers = {"X-Warnings": warnings_header(reply.warnings)} if reply.warnings else {}
    if reply.ended and not reply.error:
        headers["X-Finish-Reason"] = reply.finish_reason
    return headers


def warnings_header(warnings: Sequence[str]) -> str:
    """Warnings as a JSON list in ASCII of at most MAX_WARNINGS characters; the last ones are left out."""
    kept = list(warnings)
    while kept and len(json.dumps(kept)) > MAX_WARNINGS:
        kept.pop()
    if not kept:
        kept = [warnings[0][: MAX_WARNINGS // LONGEST_ESCAPE - 1]]
    return json.dumps(kept)


async def first_piece(request: Request, pieces: AsyncIterator[Audio]) -> Audio | None:
    """The first audio, or None if the client disconnects before it."""
    piece = asyncio.ensure_future(anext(pieces))
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({piece, gone}, return_when=asyncio.FIRST_COMPLETED)
        return piece.result() if piece.done() else None
    finally:
        piece.cancel()
        gone.cancel()


async def disconnected(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def encoded(
    reply: Reply, first: Audio, pieces: AsyncIterator[Audio], encoder: Encoder
) -> AsyncIterator[bytes]:
    """The encoded audio. Closing the iterator early cancels the request."""
    try:
        loop = asyncio.get_running_loop()
        begin = encoder.head() + await loop.run_in_executor(ENCODERS, encoder.add, first)
        for part in split(begin) or [b""]:
            yield part
        async for piece in pieces:
            for part in split(await loop.run_in_executor(ENCODERS, encoder.add, piece)):
                yield part
        for part in split(await loop.run_in_executor(ENCODERS, encoder.end)):
            yield part
    finally:
        reply.cancel()


def split(data: bytes) -> list[bytes]:
    """The pieces in which bytes are sent: none is so long that encoding it holds up the event loop."""
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


async def events(chunks: AsyncIterator[bytes], reply: Reply) -> AsyncIterator[bytes]:
    """OpenAI's events: `speech.audio.delta` with base64 audio, then `speech.audio.done`.

    A request with timestamps gets `speech.audio.words`, too, with the words whose times are certain: seconds
    from the beginning of the audio. `usage` counts characters as input tokens and AR steps as output tokens.
    The last event also has `finish_reason` and `warnings`.
    """
    try:
        async for data in chunks:
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            words = reply.take_words()
            if words:
                yield event({"type": "speech.audio.words", "words": [described(word) for word in words]})
        characters, steps = len(reply.request.text), reply.timings.steps
        usage = {"input_tokens": characters, "output_tokens": steps, "total_tokens": characters + steps}
        yield event(
            {
                "type": "speech.audio.done",
                "usage": usage,
                "finish_reason": reply.finish_reason,
                "warnings": list(reply.warnings),
            }
        )
    finally:
        reply.cancel()


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()
