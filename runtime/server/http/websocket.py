"""Speech over a WebSocket: text arrives in pieces, and each sentence is spoken once it is complete.

The client sends JSON `{"text": "..."}` any number of times, then `{"end": true}`. The first message may also
have `voice`, `seed`, `speed`, `timestamps` and `lexicon`. SSML, text that begins with `<speak`, is spoken
once it is complete. The server sends the audio format as JSON, the audio as binary messages of 16-bit mono
PCM, then `{"type": "done", "finish_reason": "...", "warnings": [...]}`. With `"timestamps": true` it sends
`{"type": "words", "words": [...]}`, too, once the times of words are certain: seconds from the beginning of
all audio. After an error it sends `{"type": "error", "message": "..."}` and closes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import Valle2Error
from valle2.runtime.audio.io import pcm16
from valle2.runtime.captions import described
from valle2.runtime.server.http.body import check_timestamps
from valle2.runtime.server.http.errors import HttpError, message_of
from valle2.runtime.server.reply import Reply
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.text.annotations.lexicon import check_lexicon
from valle2.runtime.text.annotations.ssml import is_ssml, may_become_ssml
from valle2.runtime.text.sentences import SentenceSplitter
from valle2.runtime.types import EOS, MAX_FRAMES, Request, Word

log = logging.getLogger("valle2.server")
INTERNAL_ERROR = 1011
"""The WebSocket close code for an error of the server."""
ERROR_SECONDS = 1.0
"""How long an error message may take to reach the client."""
T = TypeVar("T")


async def serve_websocket(socket: WebSocket, worker: Worker, store: VoiceStore) -> None:
    """Serve one connection to its end."""
    await socket.accept()
    sentences: asyncio.Queue[str | None] = asyncio.Queue(worker.limits.queue)
    reader: asyncio.Task[None] | None = None
    try:
        message = await next_message(socket, worker.limits.stall_seconds)
        voiced = voiced_request(message, worker, store)
        reader = asyncio.create_task(read_sentences(socket, worker, message, sentences))
        replies = await speak_sentences(socket, worker, sentences, reader, voiced)
        await socket.send_json({"type": "done", **outcome(replies)})
        await socket.close()
    except WebSocketDisconnect:
        pass
    except Exception as error:
        if not isinstance(error, Valle2Error):
            log.error("a WebSocket failed: %r", error)
        await send_error(socket, message_of(error))
    finally:
        if reader:
            reader.cancel()


def outcome(replies: Sequence[Reply]) -> dict[str, Any]:
    """The finish reason over all sentences, and their warnings, each once."""
    cut = any(reply.finish_reason == MAX_FRAMES for reply in replies)
    warnings = dict.fromkeys(warning for reply in replies for warning in reply.warnings)
    return {"finish_reason": MAX_FRAMES if cut else EOS, "warnings": list(warnings)}


async def send_error(socket: WebSocket, text: str) -> None:
    """Send an error message and close, if the client is still connected."""
    try:
        await asyncio.wait_for(socket.send_json({"type": "error", "message": text}), ERROR_SECONDS)
        await socket.close(INTERNAL_ERROR)
    except (RuntimeError, WebSocketDisconnect, TimeoutError):
        pass


async def next_message(socket: WebSocket, seconds: float) -> dict[str, Any]:
    """The next JSON object from the client.

    Raises:
        HttpError: 408 if none comes within `seconds`, 400 if it is not JSON of the right form.
        WebSocketDisconnect: the client has gone.
    """
    try:
        text = await asyncio.wait_for(socket.receive_text(), seconds)
    except TimeoutError:
        raise HttpError(
            408, f'no message came for {seconds:g} s; send {{"text": "..."}} or {{"end": true}}'
        ) from None
    except KeyError:  # a binary message
        text = ""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("text", ""), str):
        raise HttpError(400, 'expected a message with a JSON object such as {"text": "..."}')
    return value


def voiced_request(message: dict[str, Any], worker: Worker, store: VoiceStore) -> Request:
    """What the first message asks for, a request without its text.

    Raises:
        HttpError: `timestamps` is neither true nor false, or the model has no word times.
        NotReadyError, UnknownVoiceError, SettingsError, LexiconError: as they say.
    """
    tts = worker.need_ready()
    name, seed = message.get("voice") or tts.default_voice(), message.get("seed")
    speed, timestamps = message.get("speed"), message.get("timestamps") or False
    if not isinstance(timestamps, bool):
        raise HttpError(400, f"timestamps is {shown(timestamps)}; expected true or false")
    check_timestamps(timestamps, tts)
    settings = replace(tts.settings(), seed=0 if seed is None else seed)
    voice, pace = store.find(tts, str(name)), 1.0 if speed is None else speed
    return Request("", voice, settings, pace, timestamps, check_lexicon(message.get("lexicon") or {}))


async def read_sentences(
    socket: WebSocket, worker: Worker, message: dict[str, Any], sentences: asyncio.Queue[str | None]
) -> None:
    """Read the client's text and queue each sentence once it is complete, then None.

    Args:
        message: the first message.

    Raises:
        HttpError: a message is malformed, late, or makes the text too long.
        WebSocketDisconnect: the client has gone, before or after the end of its text.
    """
    splitter, total, held, plain = SentenceSplitter(), 0, "", False
    while True:
        total += len(message.get("text", ""))
        if total > worker.limits.text:
            raise HttpError(
                400, f"more than {worker.limits.text} characters; send the rest in another connection"
            )
        held += message.get("text", "")
        plain = plain or not may_become_ssml(held)
        if plain:
            for sentence in splitter.feed(held):
                await sentences.put(sentence)
            held = ""
        if message.get("end"):
            break
        message = await next_message(socket, worker.limits.stall_seconds)
    rest = [held] if not plain and is_ssml(held) else [*splitter.feed(held), *splitter.flush()]
    for sentence in rest:
        await sentences.put(sentence)
    await sentences.put(None)
    await socket.receive()  # returns when the client disconnects
    raise WebSocketDisconnect()


async def speak_sentences(
    socket: WebSocket,
    worker: Worker,
    sentences: asyncio.Queue[str | None],
    reader: asyncio.Task[None],
    voiced: Request,
) -> list[Reply]:
    """Speak the queued sentences one after the other; returns their replies, which have ended.

    Args:
        voiced: a request without its text.

    Raises:
        Exception: the error of a sentence, or of `reader`.
    """
    rate = worker.need_ready().sample_rate
    await socket.send_json({"type": "format", "format": "pcm_s16le", "sample_rate": rate})
    replies, samples = list[Reply](), 0
    while True:
        sentence = await unless_failed(reader, sentences.get())
        if sentence is None:
            return replies
        reply = worker.submit(replace(voiced, text=sentence))
        replies.append(reply)
        began = samples / rate
        await unless_failed(reader, send_audio(socket, reply, began, worker.limits.stall_seconds))
        samples += reply.samples


async def unless_failed(reader: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T:
    """Await `work`. If `reader` fails before that, cancel the work and raise the reader's error."""
    task = asyncio.ensure_future(work)
    try:
        watched = {task} if reader.done() and not reader.exception() else {task, reader}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reader.result()
        return await task
    finally:
        task.cancel()


async def send_audio(socket: WebSocket, reply: Reply, began: float, stall_seconds: float) -> None:
    """Send the audio of one sentence and its words. Leaving early cancels the sentence.

    Args:
        began: seconds of the audio before the sentence.

    Raises:
        TimeoutError: the client takes nothing for `stall_seconds`.
    """
    try:
        async for audio in reply:
            await asyncio.wait_for(socket.send_bytes(pcm16(audio)), stall_seconds)
            words = reply.take_words()
            if words:
                listed = [described(Word(one.text, began + one.start, began + one.end)) for one in words]
                await asyncio.wait_for(socket.send_json({"type": "words", "words": listed}), stall_seconds)
    finally:
        reply.cancel()
