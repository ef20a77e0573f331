"""Speech over a WebSocket: text arrives in pieces, and each sentence is spoken once it is complete.

The client sends JSON objects. The first one may also have `voice`, `seed`, `min_frames`, `max_frames`,
`loop_frames`, `retries`, `speed`, `timestamps`, `lexicon` and `input_type`. SSML, text that begins with
`<speak`, is spoken once it is flushed or ended. So are phones, with `"input_type": "phones"`.

- `{"text": "..."}` adds text. A piece may be a token of a language model: pieces are joined as they come.
- `{"flush": true}` ends the open sentence. When its audio has been sent, the server says
  `{"type": "flushed", "finish_reason": "...", "warnings": [...]}`, and more text may follow.
- `{"cancel": true}` drops what is not spoken yet, and the server says `{"type": "cancelled"}`.
- `{"end": true}` ends the text. After its audio the server says `{"type": "done"}`, with the same fields as
  `flushed`, and closes (code 1000).

The server sends the audio format as JSON and the audio as binary messages of 16-bit mono PCM. After an error
it sends `{"type": "error", "message": "..."}` and closes (1011). When the server stops, it says
`{"type": "draining"}`, speaks what it has received, answers further text with `{"type": "refused"}`, and
closes after `done` (1012). With `"timestamps": true` it also sends `{"type": "words", "words": [...]}`, once
the times of words are certain: seconds from the beginning of all audio.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from enum import Enum
from typing import Any

import anyio
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from valle2.engine.bundle.untrusted import parse_json, shown
from valle2.engine.errors import Valle2Error
from valle2.runtime.audio.io import pcm16
from valle2.runtime.captions import described
from valle2.runtime.server.http.body import check_timestamps
from valle2.runtime.server.http.errors import HttpError, message_of, retry_after
from valle2.runtime.server.http.guard import CLIENT
from valle2.runtime.server.http.speak import ENCODERS, split
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import RefusedError
from valle2.runtime.server.reply import Reply
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import NotReadyError, Worker, WorkerState
from valle2.runtime.text.annotations.lexicon import check_lexicon
from valle2.runtime.text.annotations.ssml import is_ssml, may_become_ssml
from valle2.runtime.text.sentences import SentenceSplitter
from valle2.runtime.types import Audio, Phones, Request, Word, worst_reason

log = logging.getLogger("valle2.server")
NORMAL, INTERNAL_ERROR, RESTARTING = 1000, 1011, 1012
"""WebSocket close codes: after `done`, after an error, and when the server stops."""
ERROR_SECONDS = 1.0
"""How long the last message may take to reach the client."""
POLL_SECONDS = 0.1
"""How often a session looks at its time limits and at the state of the server."""
REFUSED = "the server is stopping and takes no more text; connect again"
MAX_WARNINGS = 100
"""Warnings that are kept for one message."""
SETTINGS = ("seed", "min_frames", "max_frames", "loop_frames", "retries")
"""Settings that the first message may carry."""


class Mark(Enum):
    """What stands between sentences: the name of the message that is sent there."""

    FLUSHED = "flushed"
    CANCELLED = "cancelled"
    DONE = "done"


async def serve_websocket(socket: WebSocket, worker: Worker, store: VoiceStore) -> None:
    """Serve one connection to its end."""
    await socket.accept()
    await Session(socket, worker, store).run()


class Session:
    """One connection: a task reads messages, and `run` speaks the sentences.

    The client must bring text within `stall_seconds` and complete a sentence within `request_seconds`. Both
    count while nothing is to be spoken. A message without text is no progress.
    """

    def __init__(self, socket: WebSocket, worker: Worker, store: VoiceStore) -> None:
        self.socket, self.worker, self.store, self.limits = socket, worker, store, worker.limits
        self.client: Client = socket.scope[CLIENT]
        self.splitter = SentenceSplitter()
        self.held, self.plain = "", False  # text that may yet be SSML, or is phones; is the text neither?
        self.phones = False
        self.items: deque[str | Mark] = deque()
        self.changed = asyncio.Event()
        self.reply: Reply | None = None
        self.warnings: dict[str, None] = {}
        self.reasons = set[str]()
        self.samples = 0
        self.receiving: asyncio.Task[Any] | None = None
        self.error: Exception | None = None
        self.began = self.speaking = self.ended = self.draining = False
        self.text_at = self.spoken_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Speak until the text or the connection ends."""
        reader: asyncio.Task[None] | None = None
        try:
            message = await self.next_message()
            voiced = voiced_request(message, self.worker, self.store)
            self.began, self.phones = True, isinstance(voiced.text, Phones)
            reader = asyncio.create_task(self.read(message))
            await self.speak(voiced)
            await self.close(RESTARTING if self.draining else NORMAL)
        except WebSocketDisconnect:
            pass
        except asyncio.CancelledError:  # the server's time to stop is over
            await self.close(RESTARTING)
        except Exception as error:
            if not isinstance(error, Valle2Error | TimeoutError):
                log.error("a WebSocket failed: %r", error)
            code = RESTARTING if self.draining else INTERNAL_ERROR
            await self.close(code, {"type": "error", "message": message_of(error)} | refusal(error))
        finally:
            await stop_tasks(reader, self.receiving)

    async def close(self, code: int, last: dict[str, Any] | None = None) -> None:
        """Close the connection, after a last message. Does nothing if the client has gone."""
        try:
            with anyio.fail_after(ERROR_SECONDS):
                if last:
                    await self.socket.send_json(last)
                await self.socket.close(code)
        except (RuntimeError, WebSocketDisconnect, TimeoutError):
            pass

    async def send(self, data: bytes | dict[str, Any]) -> None:
        """Send audio or a message.

        Raises:
            TimeoutError: the client takes nothing for `stall_seconds`.
        """
        with anyio.fail_after(self.limits.stall_seconds):
            if isinstance(data, bytes):
                await self.socket.send_bytes(data)
            else:
                await self.socket.send_json(data)

    async def send_audio(self, audio: Audio) -> None:
        """Send a piece of audio; a long one in several messages, converted off the event loop."""
        data = await asyncio.get_running_loop().run_in_executor(ENCODERS, pcm16, audio)
        for piece in split(data):
            await self.send(piece)

    # -- the reader ------------------------------------------------------------------------------

    async def read(self, message: dict[str, Any]) -> None:
        """Obey messages until the connection ends; the error that ended it goes to `speak`.

        Args:
            message: the first message.
        """
        try:
            while True:
                await self.obey(message)
                message = await self.next_message()
        except Exception as error:
            self.error = error
            self.drop()

    async def next_message(self) -> dict[str, Any]:
        """The next JSON object from the client.

        Raises:
            HttpError: 408 if no text comes in time, 400 if it is not JSON of the right form.
            WebSocketDisconnect: the client has gone.
        """
        self.receiving = self.receiving or asyncio.create_task(self.socket.receive())
        while not (await asyncio.wait({self.receiving}, timeout=POLL_SECONDS))[0]:
            await self.drain()
            self.check_progress()
        self.check_progress()
        event, self.receiving = self.receiving.result(), None
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", NORMAL))
        try:
            value = parse_json((event.get("text") or "").encode())
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("text", ""), str):
            raise HttpError(400, 'expected a message with a JSON object such as {"text": "..."}')
        return value

    async def obey(self, message: dict[str, Any]) -> None:
        """Do what a message asks for.

        Raises:
            HttpError: text after the end, or more than may wait.
        """
        text = message.get("text", "")
        if message.get("cancel"):
            self.drop()
            self.add(Mark.CANCELLED, *([Mark.DONE] if self.ended else []))
        if text and self.draining:
            await self.send({"type": "refused", "message": REFUSED})
        elif text and self.ended:
            raise HttpError(400, 'text after {"end": true}; expected no more messages with text')
        elif text:
            self.add_text(text)
        if self.ended:
            return
        if message.get("flush"):
            self.add(*self.rest(), Mark.FLUSHED)
        if message.get("end"):
            self.end()

    def add_text(self, text: str) -> None:
        """Add text to the open sentence.

        Raises:
            HttpError: too much text waits to be spoken.
        """
        waiting = sum(len(item) for item in self.items if isinstance(item, str))
        if waiting + self.splitter.held + len(self.held) + len(text) > self.limits.text:
            raise HttpError(
                400, f"more than {self.limits.text} characters wait to be spoken; send them more slowly"
            )
        if text.strip():
            self.text_at = asyncio.get_running_loop().time()
        self.held += text
        self.plain = self.plain or not (self.phones or may_become_ssml(self.held))
        if self.plain:
            held, self.held = self.held, ""
            self.add(*self.splitter.feed(held))

    def rest(self) -> list[str]:
        """End the utterance; returns its SSML, or its sentences that are left."""
        held, whole = self.held, not self.plain and (self.phones or is_ssml(self.held))
        self.held, self.plain = "", False
        if whole:
            return [held] if held.strip() else []
        return [*self.splitter.feed(held), *self.splitter.flush()]

    def end(self) -> None:
        """End the text."""
        self.ended = True
        self.add(*self.rest(), Mark.DONE)

    def add(self, *items: str | Mark) -> None:
        """Queue sentences and marks."""
        self.items.extend(items)
        self.changed.set()

    def drop(self) -> None:
        """Forget all text that is not spoken yet."""
        self.items.clear()
        self.splitter.flush()
        self.held, self.plain = "", False
        self.warnings, self.reasons = {}, set()
        if self.reply:
            self.reply.cancel()
        self.changed.set()

    async def drain(self) -> None:
        """End the text if the server is stopping.

        Raises:
            NotReadyError: no text has come yet.
        """
        stopping = self.worker.state in (WorkerState.DRAINING, WorkerState.STOPPED)
        if stopping and not self.draining:
            self.draining = True
            if not self.began:
                raise NotReadyError(REFUSED)
            await self.send({"type": "draining"})
            if not self.ended:
                self.end()

    def check_progress(self) -> None:
        """Look at the time limits.

        Raises:
            HttpError: 408.
        """
        now, limits = asyncio.get_running_loop().time(), self.limits
        if self.speaking or self.items or self.ended:
            self.text_at = self.spoken_at = now
        elif now - self.text_at > limits.stall_seconds:
            raise HttpError(
                408,
                f"no message came for {limits.stall_seconds:g} s that brings text; "
                'send {"text": "..."} or {"end": true}',
            )
        elif now - self.spoken_at > limits.request_seconds:
            raise HttpError(
                408, f"no sentence was completed for {limits.request_seconds:g} s; send text faster"
            )

    # -- the speaker -----------------------------------------------------------------------------

    async def speak(self, voiced: Request) -> None:
        """Speak the queued sentences one after the other, until the end. voiced: a request without text.

        Raises:
            Exception: the error of a sentence, or of the reader.
        """
        rate = self.worker.need_ready(draining=True).sample_rate
        await self.send({"type": "format", "format": "pcm_s16le", "sample_rate": rate})
        while True:
            item = await self.next_item()
            if isinstance(item, Mark):
                await self.send({"type": item.value} | ({} if item is Mark.CANCELLED else self.outcome()))
                if item is Mark.DONE:
                    return
            else:
                await self.speak_sentence(replace(voiced, text=Phones(item) if self.phones else item), rate)

    def outcome(self) -> dict[str, Any]:
        """The finish reason over the sentences since the last such message, and their warnings, each once."""
        warnings, reason = list(self.warnings), worst_reason(self.reasons)
        self.warnings, self.reasons = {}, set()
        return {"finish_reason": reason, "warnings": warnings}

    async def next_item(self) -> str | Mark:
        """The next sentence or mark.

        Raises:
            Exception: the error that ended the reader.
        """
        self.speaking = False
        while not self.items and not self.error:
            self.changed.clear()
            await self.changed.wait()
        if self.error:
            raise self.error
        self.speaking = True
        return self.items.popleft()

    async def speak_sentence(self, request: Request, rate: int) -> None:
        """Send the audio of one sentence and its words.

        A `cancel`, an error of the reader or leaving early cancel the sentence.
        """
        began = self.samples / rate
        self.reply = reply = self.worker.submit(request, draining=True, client=self.client)
        try:
            async for audio in reply:
                if reply.cancelled:
                    break
                await self.send_audio(audio)
                self.samples += len(audio)
                if words := reply.take_words():
                    listed = [described(Word(one.text, began + one.start, began + one.end)) for one in words]
                    await self.send({"type": "words", "words": listed})
            self.reasons.add(reply.finish_reason)
            for warning in reply.warnings:
                if len(self.warnings) < MAX_WARNINGS:
                    self.warnings[warning] = None
        finally:
            reply.cancel()
            self.reply = None


def refusal(error: Exception) -> dict[str, Any]:
    """For an error message: the code of a refusal, and the seconds after which it would be no more."""
    return {"code": error.code, "retry_after": retry_after(error)} if isinstance(error, RefusedError) else {}


async def stop_tasks(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and take their results, which nobody needs."""
    running = [task for task in tasks if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def voiced_request(message: dict[str, Any], worker: Worker, store: VoiceStore) -> Request:
    """What the first message asks for, a request without its text.

    Raises:
        HttpError: `timestamps` is neither true nor false, or the model has no word times; or `input_type` is
            neither "text" nor "phones".
        NotReadyError, UnknownVoiceError, SettingsError, LexiconError: as they say.
    """
    tts = worker.need_ready()
    name = message.get("voice") or tts.default_voice()
    speed, timestamps = message.get("speed"), message.get("timestamps") or False
    if not isinstance(timestamps, bool):
        raise HttpError(400, f"timestamps is {shown(timestamps)}; expected true or false")
    check_timestamps(timestamps, tts)
    kind = message.get("input_type") or "text"
    if kind not in ("text", "phones"):
        raise HttpError(400, f"input_type is {shown(kind)}; expected text or phones")
    settings = tts.settings().with_given({name: message.get(name) for name in SETTINGS})
    voice, pace = store.find(tts, str(name)), 1.0 if speed is None else speed
    text = Phones() if kind == "phones" else ""
    return Request(text, voice, settings, pace, timestamps, check_lexicon(message.get("lexicon") or {}))
