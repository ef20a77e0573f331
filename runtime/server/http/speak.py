"""A reply of the engine as an HTTP response: pieces encoded as they are made, or server-sent events.

Errors before the first byte have a status; later ones abort the connection, so that a cut stream is never
taken for a whole one.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from valle2.runtime.server.http.formats import MEDIA, Encoder
from valle2.runtime.server.http.reply import Reply
from valle2.runtime.types import Audio


class SpeechResponse(StreamingResponse):
    """A stream whose reader is cut off when it stalls."""

    stall_seconds = 30.0

    async def stream_response(self, send: Any) -> None:
        async def patient_send(message: Any) -> None:
            async with asyncio.timeout(self.stall_seconds):
                await send(message)

        await super().stream_response(patient_send)


async def disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def first_piece(request: Request, pieces: AsyncIterator[Audio]) -> Audio | None:
    """The first audio, or None if the client went away before it."""
    piece = asyncio.ensure_future(anext(pieces))
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({piece, gone}, return_when=asyncio.FIRST_COMPLETED)
        return piece.result() if piece.done() else None
    finally:
        piece.cancel()
        gone.cancel()


async def respond(request: Request, reply: Reply, kind: str, sse: bool, rate: int, stall: float) -> Response:
    """Wait for the first audio, then stream."""
    pieces = aiter(reply)
    try:
        first = await first_piece(request, pieces)
    except BaseException:
        reply.cancel()
        raise
    if first is None:
        reply.cancel()
        return Response(status_code=499)
    chunks = encoded(reply, first, pieces, Encoder(kind, rate))
    body = events(chunks, reply) if sse else chunks
    headers = {"Cache-Control": "no-store", "X-Sample-Rate": str(rate), "X-Synthetic-Speech": "valle2"}
    response = SpeechResponse(body, media_type="text/event-stream" if sse else MEDIA[kind], headers=headers)
    response.stall_seconds = stall
    return response


async def encoded(
    reply: Reply, first: Audio, pieces: AsyncIterator[Audio], encoder: Encoder
) -> AsyncIterator[bytes]:
    """Bytes as they are made; leaving early cancels the request."""
    try:
        yield encoder.head() + encoder.add(first)
        async for piece in pieces:
            data = encoder.add(piece)
            if data:
                yield data
        rest = encoder.end()
        if rest:
            yield rest
    finally:
        reply.cancel()


async def events(chunks: AsyncIterator[bytes], reply: Reply) -> AsyncIterator[bytes]:
    """OpenAI's events: `speech.audio.delta` with base64 audio, then `speech.audio.done`."""
    try:
        async for data in chunks:
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        words, steps = len(reply.request.text), reply.timings.steps
        usage = {"input_tokens": words, "output_tokens": steps, "total_tokens": words + steps}
        yield event({"type": "speech.audio.done", "usage": usage})
    finally:
        reply.cancel()


def event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
