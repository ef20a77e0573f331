"""Speech over a WebSocket: text arrives in pieces, and each sentence is spoken once it is complete.

The client sends JSON `{"text": "..."}` as often as it wants and `{"end": true}` at last. The first message
may carry `voice` and `seed`. The server sends a JSON message with the format, binary messages of 16-bit mono
PCM, and `{"type": "done"}` at last.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from valle2.engine.errors import Valle2Error
from valle2.runtime.audio.io import pcm16
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.server.http.reply import Reply
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.text.sentences import SentenceSplitter
from valle2.runtime.types import Prompt, Request, Settings


async def converse(socket: WebSocket, worker: Worker, store: VoiceStore) -> None:
    """Serve one connection."""
    await socket.accept()
    sentences: asyncio.Queue[str | None] = asyncio.Queue(worker.limits.queue)
    reader: asyncio.Task[None] | None = None
    try:
        message = await next_message(socket, worker)
        voice, settings = chosen(message, worker, store)
        reader = asyncio.create_task(listen(socket, worker, message, sentences))
        await speak_all(socket, worker, sentences, reader, voice, settings)
        await socket.send_json({"type": "done"})
        await socket.close()
    except WebSocketDisconnect:
        pass
    except (Valle2Error, RuntimeError, MemoryError, TimeoutError) as error:
        text = str(error) if isinstance(error, Valle2Error) else "the engine failed or the client stalled"
        await give_up(socket, text)
    finally:
        if reader:
            reader.cancel()


async def give_up(socket: WebSocket, text: str) -> None:
    """Say why and close, if the client is still there."""
    try:
        await asyncio.wait_for(socket.send_json({"type": "error", "message": text}), 1.0)
        await socket.close(1011)
    except (RuntimeError, WebSocketDisconnect, TimeoutError):
        pass


async def next_message(socket: WebSocket, worker: Worker) -> dict[str, Any]:
    """One JSON object from the client."""
    text = await asyncio.wait_for(socket.receive_text(), worker.limits.stall_seconds)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("text", ""), str):
        raise HttpError(400, 'expected a JSON object such as {"text": "..."}')
    return value


def chosen(message: dict[str, Any], worker: Worker, store: VoiceStore) -> tuple[Prompt, Settings]:
    """Voice and settings of the first message."""
    tts = worker.need_ready()
    name = message.get("voice") or tts.default_voice()
    return store.find(tts, str(name)), replace(tts.settings(), seed=message.get("seed", 0))


async def listen(
    socket: WebSocket, worker: Worker, message: dict[str, Any], sentences: asyncio.Queue[str | None]
) -> None:
    """Collect text; put each sentence into the queue once it is complete."""
    splitter, total = SentenceSplitter(), 0
    while True:
        total += len(message.get("text", ""))
        if total > worker.limits.text:
            raise HttpError(400, f"more than {worker.limits.text} characters; open another connection")
        for sentence in splitter.feed(message.get("text", "")):
            await sentences.put(sentence)
        if message.get("end"):
            break
        message = await next_message(socket, worker)
    for sentence in splitter.flush():
        await sentences.put(sentence)
    await sentences.put(None)
    await socket.receive()  # returns when the client goes away
    raise WebSocketDisconnect()


async def speak_all(
    socket: WebSocket,
    worker: Worker,
    sentences: asyncio.Queue[str | None],
    reader: asyncio.Task[None],
    voice: Prompt,
    settings: Settings,
) -> None:
    """Speak one sentence after the other until the last."""
    assert worker.tts is not None
    rate = worker.tts.sample_rate
    await socket.send_json({"type": "format", "format": "pcm_s16le", "sample_rate": rate})
    while True:
        sentence = await beside(reader, sentences.get())
        if sentence is None:
            return
        reply = worker.submit(Request(sentence, voice, settings))
        await beside(reader, send_audio(socket, reply, worker.limits.stall_seconds))


async def beside(reader: asyncio.Task[None], work: Any) -> Any:
    """Await work. An error that ends the reader ends it too."""
    task = asyncio.ensure_future(work)
    try:
        watched = {task} if reader.done() and not reader.exception() else {task, reader}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reader.result()
        return await task
    finally:
        task.cancel()


async def send_audio(socket: WebSocket, reply: Reply, stall: float) -> None:
    """One sentence's audio; leaving early cancels it."""
    try:
        async for audio in reply:
            await asyncio.wait_for(socket.send_bytes(pcm16(audio)), stall)
    finally:
        reply.cancel()
