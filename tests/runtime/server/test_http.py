"""A server over real sockets: formats, the openai client, errors, limits, voices, disconnects."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile
from websockets import Data
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.runtime.server.conftest import KEYS, LONG, idle, serving, wait_until
from valle2.engine import BackendError
from valle2.engine.errors import QueueFullError
from valle2.runtime import Request, Valle2
from valle2.runtime.errors import TextError
from valle2.runtime.generation.engine import EncodedRequest
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.errors import UNEXPECTED
from valle2.runtime.server.http.guard import PAGE_FILES
from valle2.runtime.server.http.speak import PIECE_BYTES
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.reply import Reply
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import TimeLimitError, Worker, WorkerError


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    limits = Limits(slots=2, queue=2, text=500)
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), limits)
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


def stream_url(base: str) -> str:
    return base.replace("http", "ws") + "/v1/audio/speech/stream"


def refusal(socket: ClientConnection) -> Any:
    """The last message before the server closes a WebSocket because of an error."""
    found = list[Data]()
    with pytest.raises(ConnectionClosedError, match="1011"):
        while True:
            found.append(socket.recv())
    return json.loads(found[-1])


def speak(base: str, **fields: object) -> httpx.Response:
    body = {"input": "hello there", "voice": "amber", "seed": 3, "response_format": "wav"} | fields
    return httpx.post(f"{base}/v1/audio/speech", json=body, timeout=60)


@pytest.mark.parametrize(
    ("kind", "media_type", "padding", "tolerance"),
    [
        ("wav", "audio/wav", 0, 2 / 32768),
        ("flac", "audio/flac", 0, 2 / 32768),
        ("mp3", "audio/mpeg", 0.1, None),
        ("opus", "audio/ogg", 0.1, None),
    ],
)
def test_formats_hold_the_same_speech_and_say_that_it_is_synthetic(
    server: tuple[str, Worker], kind: str, media_type: str, padding: float, tolerance: float | None
) -> None:
    """padding: seconds that a lossy codec may add. tolerance: of a sample; None of a lossy codec."""
    pcm = np.frombuffer(speak(server[0], response_format="pcm").content, "<i2") / 32768
    found = speak(server[0], response_format=kind)
    assert found.status_code == 200 and found.headers["content-type"] == media_type
    with soundfile.SoundFile(BytesIO(found.content)) as file:
        assert "Synthetic speech" in file.comment
    audio, rate = soundfile.read(BytesIO(found.content))
    expected = len(pcm) / int(found.headers["x-sample-rate"])
    assert expected <= len(audio) / rate <= expected + padding
    if tolerance is None:
        loudness = np.sqrt((audio**2).mean() / (pcm**2).mean() * len(audio) / rate / expected)
        assert loudness == pytest.approx(1, abs=0.25)
    else:
        assert np.abs(audio - pcm).max() < tolerance


def test_the_openai_client(server: tuple[str, Worker]) -> None:
    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)
    with client.audio.speech.with_streaming_response.create(
        model="valle2", voice="amber", input="hello there", response_format="pcm", extra_body={"seed": 3}
    ) as response:
        data = b"".join(response.iter_bytes())
    assert data == speak(server[0], response_format="pcm").content
    with pytest.raises(openai.NotFoundError, match="unknown voice"):
        client.audio.speech.create(model="valle2", voice="nobody", input="hello")


def test_events(server: tuple[str, Worker]) -> None:
    lines = speak(server[0], stream_format="sse", response_format="pcm").text.split("\n\n")
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert audio == speak(server[0], response_format="pcm").content
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["input_tokens"] == len("hello there") and done["usage"]["output_tokens"] > 0
    assert done["finish_reason"] in ("eos", "max_frames") and done["warnings"] == []


def test_phones_are_what_the_text_is_read_as(server: tuple[str, Worker]) -> None:
    base, worker = server
    assert worker.tts
    (sentence,) = worker.tts.spoken("hello there").sentences
    fields = {"input": sentence.phonemes, "input_type": "phones", "response_format": "pcm"}
    assert speak(base, **fields).content == speak(base, response_format="pcm").content
    assert speak(base, input="12345", input_type="phones").status_code == 400
    with connect(stream_url(base)) as socket:
        for piece in (sentence.phonemes[:3], sentence.phonemes[3:]):
            socket.send(json.dumps({"voice": "amber", "seed": 3, "input_type": "phones", "text": piece}))
        socket.send(json.dumps({"end": True}))
        audio = b"".join(piece for piece in socket if isinstance(piece, bytes))
    assert audio == speak(base, response_format="pcm").content
    with connect(stream_url(base)) as socket:
        socket.send(json.dumps({"text": "a", "input_type": "letters"}))
        assert "input_type is 'letters'" in refusal(socket)["message"]


def test_long_pieces_are_sent_in_short_events(server: tuple[str, Worker]) -> None:
    """One chunk of a whole sentence is longer than one event."""
    fields = {"input": LONG, "response_format": "pcm", "first_chunk_seconds": 0}
    lines = speak(server[0], stream_format="sse", **fields).text.split("\n\n")
    deltas = [json.loads(line.removeprefix("data: ")) for line in lines if "audio.delta" in line]
    pieces = [base64.b64decode(event["audio"]) for event in deltas]
    assert max(map(len, pieces)) == PIECE_BYTES and b"".join(pieces) == speak(server[0], **fields).content


def test_quality_names_a_number_of_codebooks(server: tuple[str, Worker]) -> None:
    """A field that is given goes before the named quality."""
    pcm = {"response_format": "pcm", "first_chunk_seconds": 0}
    fast, two, full, all_ = (
        speak(server[0], **pcm, **fields).content
        for fields in (
            {"quality": "fast"},
            {"codebooks": 2},
            {"quality": "full"},
            {"quality": "fast", "codebooks": 0},
        )
    )
    assert fast == two != full == all_


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"input": ""}, 400),
        ({"input": "a" * 501}, 400),
        ({"input": "a" * 70_000}, 413),
        ({"input": "???"}, 400),
        ({"input": 3}, 400),
        ({"voice": "../../etc/passwd"}, 404),
        ({"model": "gpt"}, 404),
        ({"speed": 5.0}, 400),
        ({"speed": 0.0}, 400),
        ({"timestamps": True, "stream_format": "sse"}, 400),  # the toy has no table for them
        ({"top_p": 7.0}, 400),
        ({"seed": 2**70}, 400),
        ({"codebooks": 9}, 400),
        ({"codebooks": 2.5}, 400),
        ({"nar_prompt_seconds": 61}, 400),
        ({"quality": "best"}, 400),
        ({"other": 1}, 400),
    ],
)
def test_bad_requests(server: tuple[str, Worker], fields: dict[str, object], status: int) -> None:
    found = speak(server[0], **fields)
    error = found.json()["error"]
    assert found.status_code == status and error["type"] == "invalid_request_error"
    assert error["message"] and error["message"].isprintable()


def test_an_error_of_the_text_thread_is_400_before_the_first_byte(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, worker = server
    assert worker.tts
    encode, threads, wanted = worker.tts.encode, list[str](), list[Exception]()

    def noted(request: Request, first_chunk_seconds: float) -> EncodedRequest:
        threads.append(threading.current_thread().name)
        try:
            return encode(request, first_chunk_seconds)
        except TextError as error:
            wanted.append(error)
            raise

    monkeypatch.setattr(worker.tts, "encode", noted)
    found = speak(base, input="???")
    assert found.status_code == 400 and found.headers["content-type"] == "application/json"
    assert found.json()["error"]["message"] == str(wanted[0])
    assert threads == ["valle2-text_0"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (TextError("the text\nis too long"), 400, "the text is too long"),
        (QueueFullError("too many"), 429, "too many"),
        (TimeLimitError("too late"), 503, "too late"),
        (WorkerError("being restarted"), 503, "being restarted"),
        (RuntimeError("/secret/path"), 503, UNEXPECTED),
        (MemoryError("/secret/path"), 503, UNEXPECTED),
    ],
)
def test_clients_read_the_errors_of_valle2_as_one_line_and_no_others(
    server: tuple[str, Worker],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    message: str,
) -> None:
    base, worker = server

    def fails(request: Request, first_chunk_seconds: float) -> EncodedRequest:
        raise error

    monkeypatch.setattr(worker.tts, "encode", fails)
    found = speak(base)
    assert found.status_code == status and found.json()["error"]["message"] == message
    assert ("retry-after" in found.headers) == (status in (429, 503))
    with connect(stream_url(base)) as socket:
        socket.send(json.dumps({"text": "hello there.", "end": True}))
        assert refusal(socket) == {"type": "error", "message": message}


def test_an_error_that_nobody_expects_is_not_shown(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, worker = server

    def fails(request: Request, first_chunk_seconds: float) -> EncodedRequest:
        raise LookupError("/secret/path")

    monkeypatch.setattr(worker.tts, "encode", fails)
    found = speak(base)
    assert found.status_code == 500 and "secret" not in found.text
    with connect(stream_url(base)) as socket:
        socket.send(json.dumps({"text": "hello there.", "end": True}))
        assert refusal(socket) == {"type": "error", "message": UNEXPECTED}


@pytest.mark.parametrize("message", ["no JSON", "[]", '{"text": 3}', b'{"text": "hello"}'])
def test_a_socket_refuses_other_messages(server: tuple[str, Worker], message: str | bytes) -> None:
    with connect(stream_url(server[0])) as socket:
        socket.send(message)
        answer = refusal(socket)
    assert answer["type"] == "error" and "a JSON object" in answer["message"]


def test_another_sites_page_is_refused(server: tuple[str, Worker]) -> None:
    for headers in ({"Origin": "http://other.example"}, {"Host": "other.example"}):
        assert httpx.get(f"{server[0]}/v1/voices", headers=headers).status_code == 403


def test_disconnect_frees_the_slot(server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    base, worker = server
    assert worker.tts and worker.tts.codec
    decode: Callable[[np.ndarray], np.ndarray] = worker.tts.codec.decode_rows
    left, calls = threading.Event(), 0

    def first_at_once(codes: np.ndarray) -> np.ndarray:
        """Let the second piece wait for the client's disconnect, so that the test depends on no speeds."""
        nonlocal calls
        calls += 1
        assert calls == 1 or left.wait(30)
        return decode(codes)

    text = LONG * 4
    monkeypatch.setattr(worker.tts.codec, "decode_rows", first_at_once)
    body = {"input": text, "voice": "amber", "response_format": "pcm"}
    with httpx.stream("POST", f"{base}/v1/audio/speech", json=body, timeout=60) as response:
        pieces = response.iter_raw()  # kept, because dropping it closes the connection
        next(pieces)
        assert worker.outstanding == 1
    left.set()
    wait_until(lambda: not worker.outstanding)
    assert idle(worker)
    taken, calls = calls, 0
    assert speak(base, input=text).status_code == 200
    assert 1 <= taken < calls  # the rest of the text was not spoken


def test_an_error_after_the_first_byte_aborts(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = server[1]
    assert worker.tts and worker.tts.codec
    decode: Callable[[np.ndarray], np.ndarray] = worker.tts.codec.decode_rows
    calls: list[int] = []

    def second_fails(codes: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 1:
            raise BackendError("the device is gone")
        return decode(codes)

    monkeypatch.setattr(worker.tts.codec, "decode_rows", second_fails)
    with pytest.raises(httpx.RemoteProtocolError):
        speak(server[0], input=LONG, response_format="pcm")


def test_voices_are_uploaded_used_and_deleted(server: tuple[str, Worker]) -> None:
    base, memory = server[0], BytesIO()
    soundfile.write(memory, 0.3 * np.sin(np.arange(48000) / 30), 24000, format="WAV")
    form = {"name": "mine", "transcript": "hello there", "consent": "true"}

    def upload(data: bytes, **fields: str) -> int:
        files = {"file": ("a.wav", data)}
        return httpx.post(f"{base}/v1/voices", data=form | fields, files=files, timeout=60).status_code

    assert upload(memory.getvalue(), consent="false") == 400
    assert upload(memory.getvalue(), name="../mine") == 400
    assert upload(b"no audio") == 400
    assert upload(memory.getvalue()) == 201 and upload(memory.getvalue()) == 409
    assert speak(base, voice="mine").status_code == 200
    assert "mine" in [v["name"] for v in httpx.get(f"{base}/v1/voices").json()["voices"]]
    assert httpx.delete(f"{base}/v1/voices/mine").status_code == 200
    assert httpx.delete(f"{base}/v1/voices/amber").status_code == 403


def test_text_in_and_audio_out_over_a_socket(server: tuple[str, Worker]) -> None:
    with connect(stream_url(server[0])) as socket:
        for message in ({"voice": "amber", "text": "hello there. a "}, {"text": "fox."}, {"end": True}):
            socket.send(json.dumps(message))
        found = list(socket)
    assert json.loads(found[0])["format"] == "pcm_s16le" and json.loads(found[-1])["type"] == "done"
    assert len(b"".join(piece for piece in found if isinstance(piece, bytes))) > 1000


@pytest.mark.parametrize(
    ("pieces", "sentences"),
    [
        (["Dr. Smith lives here. He", " is in."], ["Dr. Smith lives here.", "He is in."]),
        (["Dr", ".", " Smith lives", " here"], ["Dr. Smith lives here"]),
        (["It is 3 p.m. now. So", "!"], ["It is 3 p.m. now.", "So!"]),
        (["She, e.g., is in St. ", "Ives.\nHello"], ["She, e.g., is in St. Ives.", "Hello"]),
    ],
)
def test_a_socket_speaks_the_sentences_of_the_whole_text(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch, pieces: list[str], sentences: list[str]
) -> None:
    """The sentences do not depend on where the text is cut, and an abbreviation ends none."""
    base, worker = server
    submit, asked = worker.submit, list[str]()

    def noted(request: Request, **more: Any) -> Reply:
        asked.append(request.text)
        return submit(replace(request, text="hello"), **more)

    monkeypatch.setattr(worker, "submit", noted)
    with connect(stream_url(base)) as socket:
        for piece in pieces:
            socket.send(json.dumps({"text": piece}))
        socket.send(json.dumps({"end": True}))
        assert json.loads(list(socket)[-1])["type"] == "done"
    assert asked == sentences


def test_state_and_page(server: tuple[str, Worker]) -> None:
    base = server[0]
    assert httpx.get(f"{base}/health").json()["status"] == "ok"
    assert httpx.get(f"{base}/ready").status_code == 200
    assert "valle2_first_audio_seconds_count" in httpx.get(f"{base}/metrics").text
    for path in PAGE_FILES:
        found = httpx.get(base + path)
        assert found.status_code == 200 and "http://" not in found.text and "https://" not in found.text


def test_a_key_is_asked_for(load: Callable[[int], Valle2], tmp_path: Path) -> None:
    guard = make_app(Worker(load, Limits()), VoiceStore(tmp_path), KEYS)
    transport = httpx.ASGITransport(app=guard)

    async def ask(headers: dict[str, str]) -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://public") as client:
            return (await client.get("/v1/voices", headers=headers)).status_code

    assert asyncio.run(ask({})) == 401
    assert asyncio.run(ask({"Authorization": "Bearer wrong"})) == 401
    assert asyncio.run(ask({"Authorization": f"Bearer {'k' * 16}"})) == 503  # a right key, no model yet
