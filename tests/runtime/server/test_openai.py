"""OpenAI's API as its clients call it: requests of Open WebUI, SillyTavern and Home Assistant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import soundfile
from websockets.sync.client import connect

from tests.runtime.server.conftest import KEYS, serving
from valle2.runtime import Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.guard import PAGE_FILES
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.store import OPENAI_VOICES, VoiceStore, read_aliases
from valle2.runtime.server.worker import Worker

SHORT = {"input": "hello", "max_frames": 20, "response_format": "pcm", "seed": 3}


@pytest.fixture(scope="module")
def base(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), Limits(slots=2, text=500))
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address


def speak(base: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{base}/v1/audio/speech", json=SHORT | fields, timeout=60)


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"].isprintable()
    assert error["param"] is None or not error["param"].isdecimal()
    return error


def is_audio(answer: httpx.Response, kind: str) -> bool:
    assert answer.status_code == 200, answer.text
    return soundfile.info(BytesIO(answer.content)).frames > 0 and answer.headers["content-type"] == kind


# -- the clients ----------------------------------------------------------------------------------------


def test_open_webui(base: str) -> None:
    """`routers/audio.py`: the lists are asked for without a key, and `id` and `name` are read."""
    models = httpx.get(f"{base}/v1/audio/models").json().get("models", [])
    assert "tts-1" in [model["id"] for model in models]
    voices = httpx.get(f"{base}/v1/audio/voices").json().get("voices", [])
    assert {voice["id"]: voice["name"] for voice in voices} == {"amber": "amber", "basalt": "basalt"}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
    for voice in ("alloy", "amber"):
        body = json.dumps({"input": "hello there", "voice": voice, "model": "tts-1"})
        answer = httpx.post(f"{base}/v1/audio/speech", content=body, headers=headers, timeout=60)
        assert is_audio(answer, "audio/mpeg")


def test_sillytavern(base: str) -> None:
    """`endpoints/openai.js`: an empty key, and a whole number for the speed."""
    body = '{"input":"hello there","response_format":"mp3","voice":"shimmer","speed":1,"model":"tts-1"}'
    headers = {"Content-Type": "application/json", "Authorization": "Bearer"}
    answer = httpx.post(f"{base}/v1/audio/speech", content=body, headers=headers, timeout=60)
    assert is_audio(answer, "audio/mpeg")


@pytest.mark.parametrize(("kind", "media_type"), [("mp3", "audio/mpeg"), ("opus", "audio/ogg")])
def test_home_assistant(base: str, kind: str, media_type: str) -> None:
    """The integration `openai_tts`: voices with a limit, and instructions."""
    headers = {"User-Agent": "HomeAssistant-OpenAI-TTS"}
    listed = httpx.get(f"{base}/v1/audio/voices", params={"limit": 100}, headers=headers).json()
    items = listed.get("items") or listed.get("data") or listed.get("voices")
    body = {
        "model": "gpt-4o-mini-tts",
        "input": "The door is open.",
        "voice": items[0]["id"],
        "response_format": kind,
        "speed": 1.0,
        "instructions": "Speak like a butler.",
    }
    assert is_audio(httpx.post(f"{base}/v1/audio/speech", json=body, headers=headers, timeout=60), media_type)


def test_the_openai_client(base: str) -> None:
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "toy" and "tts-1" in listed
    assert client.models.retrieve("tts-1").object == "model"
    with pytest.raises(openai.NotFoundError, match="unknown model 'gpt-4'"):
        client.models.retrieve("gpt-4")
    made = client.audio.speech.create(
        model="tts-1-hd", voice="alloy", input="hello", instructions="Calm.", response_format="wav"
    )
    assert soundfile.info(BytesIO(made.content)).samplerate == 24000


# -- fields ---------------------------------------------------------------------------------------------


def test_openais_voices_stand_for_the_models_own(base: str) -> None:
    expected = {name: speak(base, voice=name).content for name in ("amber", "basalt")}
    assert expected["amber"] != expected["basalt"]
    assert speak(base, voice="alloy").content == speak(base).content == expected["amber"]
    assert speak(base, voice="ash").content == expected["basalt"]
    assert all(speak(base, voice=name).status_code == 200 for name in OPENAI_VOICES)
    assert speak(base, voice={"id": "basalt"}).content == expected["basalt"]
    with connect(base.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps({"text": "hello.", "end": True, "voice": "alloy", "seed": None}))
        assert json.loads(list(socket)[-1])["type"] == "done"


def test_null_is_unset(base: str) -> None:
    nulls = dict.fromkeys(
        ("model", "voice", "speed", "instructions", "stream_format", "top_p", "latency", "candidates")
    )
    assert speak(base, **nulls).content == speak(base).content
    assert speak(base, response_format=None).headers["content-type"] == "audio/mpeg"
    assert speak(base, instructions="").content == speak(base, instructions="Whisper.").content
    assert error_of(speak(base, input=None)) | {"code": None} == {
        "message": "input is missing; it must be given",
        "type": "invalid_request_error",
        "param": "input",
        "code": None,
    }


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "aac"}, "response_format", "is 'aac'; expected 'mp3', 'opus', 'flac', 'wav' or"),
        ({"input": 3}, "input", "input is 3; expected a valid string"),
        ({"voice": {"name": "amber"}}, "voice", "voice is {'name': 'amber'}; expected a valid string"),
        ({"voice": "a" * 65}, "voice", "it should have at most 64 characters"),
        ({"candidates": 9}, "candidates", "candidates is 9; expected less than or equal to 4"),
        ({"speed": "fast"}, "speed", "speed is 'fast'; expected a valid number"),
        ({"speed": 4.5}, "speed", "speed is 4.5; expected less than or equal to 4"),
        ({"speed": 0.2}, "speed", "speed is 0.2; expected greater than or equal to 0.25"),
        ({"timestamps": True}, "timestamps", "timestamps are sent as events; send stream_format: sse"),
        ({"timestamps": "yes", "stream_format": "sse"}, "timestamps", "expected a valid boolean"),
        ({"pitch": 2}, "pitch", "unknown field 'pitch'; expected only model, input, voice, response_format"),
        ({"model": "gpt-4"}, "model", "unknown model 'gpt-4'; expected 'toy'"),
    ],
)
def test_a_wrong_field_is_named(base: str, fields: dict[str, object], param: str, message: str) -> None:
    error = error_of(speak(base, **fields), 404 if param == "model" else 400)
    assert error["param"] == param and message in error["message"]


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (
            '{"input": "hello"}',
            None,
            "there is no content type; send the header Content-Type: application/json",
        ),
        ('{"input": "hello"}', "text/plain", "the content type is 'text/plain'; send the header"),
        ("input=hello", "application/x-www-form-urlencoded", "the content type is 'application/x-www-form-"),
        ('{"input": "hello"', "application/json", "not JSON: Expecting ',' delimiter at character 17"),
        ('{"input": "hello",}', "application/json", "not JSON: "),
        ("", "application/json", "not JSON: Expecting value at character 0; expected a JSON object"),
        ("[1, 2]", "application/json", "the body is [1, 2]; expected a JSON object"),
        (  # an error for each field held up the event loop for 90 ms
            json.dumps({f"k{index}": 0 for index in range(5000)}),
            "application/json",
            "the body has 5000 fields; expected at most 64",
        ),
        ('{"seed": 1, "seed": 2}', "application/json", "the key 'seed' is given twice"),
        ('{"seed": NaN}', "application/json", "NaN is no number"),
        (b"\xff\xfe", "application/json", "not UTF-8 text"),
    ],
)
def test_a_wrong_body_is_explained(
    base: str, body: str | bytes, content_type: str | None, message: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    error = error_of(httpx.post(f"{base}/v1/audio/speech", content=body, headers=headers))
    assert message in error["message"] and error["param"] is None


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
def test_content_types_of_json(base: str, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    body = json.dumps(SHORT)
    assert httpx.post(f"{base}/v1/audio/speech", content=body, headers=headers, timeout=60).status_code == 200


def test_a_form_names_its_wrong_field(base: str) -> None:
    url = f"{base}/v1/voices"
    form = {"name": "mine", "transcript": "hello", "consent": "true"}
    fields = {name: (None, value) for name, value in form.items()}
    assert error_of(httpx.post(url, files=fields))["message"] == "file is missing; it must be a recording"
    error = error_of(httpx.post(url, data=form | {"consent": "perhaps"}, files={"file": b"x"}))
    assert (
        error["param"] == "consent" and "consent is 'perhaps'; expected a valid boolean" in error["message"]
    )
    error = error_of(httpx.post(url, json=form))
    assert "content type is 'application/json'; send multipart/form-data" in error["message"]


# -- paths, methods and keys ----------------------------------------------------------------------------


def test_head_is_get_without_a_body(base: str) -> None:
    for path in ("/health", "/ready", *PAGE_FILES):
        answer = httpx.head(base + path)
        assert answer.status_code == 200 and not answer.content


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/audio/speech", "POST"),
        ("PUT", "/v1/voices", "GET, POST"),
        ("PATCH", "/v1/voices/amber", "DELETE"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_names_the_right_ones(base: str, method: str, path: str, allowed: str) -> None:
    answer = httpx.request(method, base + path)
    assert answer.headers["allow"] == allowed
    assert error_of(answer, 405)["message"] == f"{path} does not take {method}; it takes {allowed}"


def test_an_unknown_path_is_json(base: str) -> None:
    assert (
        "no such path: /v1/chat/completions"
        in error_of(httpx.post(f"{base}/v1/chat/completions"), 404)["message"]
    )
    error = error_of(httpx.get(f"{base}/v1/models/owner/name"), 404)
    assert error["code"] == "model_not_found" and error["param"] == "model"


def test_the_schema_describes_the_body(base: str) -> None:
    schema = httpx.get(f"{base}/openapi.json").json()
    content = schema["paths"]["/v1/audio/speech"]["post"]["requestBody"]["content"]
    assert {"input", "voice", "instructions"} <= set(content["application/json"]["schema"]["properties"])


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {'k' * 16}", 503),
        (f"bearer {'k' * 16}", 503),
        (f"BEARER   {'k' * 16}", 503),
        ("k" * 16, 503),
        (f"Basic {'k' * 16}", 401),
        ("bearer", 401),
        ("Bearer ", 401),
        (f"Bearer{'k' * 16}", 401),
    ],
)
def test_the_key_in_any_case(load: Callable[[int], Valle2], tmp_path: Path, header: str, status: int) -> None:
    """503: the key is right, and no model is loaded."""
    guard = make_app(Worker(load, Limits()), VoiceStore(tmp_path), KEYS)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://public") as client:
            return await client.get("/v1/models", headers={"Authorization": header})

    answer = asyncio.run(ask())
    error_of(answer, status)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


# -- aliases --------------------------------------------------------------------------------------------


def test_aliases_of_a_file(tts: Valle2, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "aliases.json").write_text('{"alloy": "basalt", "narrator": "amber", "amber": "basalt"}')
    store = VoiceStore(tmp_path, read_aliases(tmp_path / "aliases.json"))
    names = {name: store.resolve(tts, name) for name in ("alloy", "narrator", "amber", "ash", "echo", "x")}
    assert names == {
        "alloy": "basalt", "narrator": "amber", "amber": "amber", "ash": "basalt", "echo": "amber", "x": "x",
    }  # fmt: skip
    for text in ("[]", '{"a": 1}', "{", '{"a": "b", "a": "c"}'):
        (tmp_path / "aliases.json").write_text(text)
        with pytest.raises(SettingsError, match="expected a JSON object"):
            read_aliases(tmp_path / "aliases.json")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_aliases(tmp_path / "absent.json")
    assert main(["serve", "--port", "0", "--voice-aliases", str(tmp_path / "absent.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("valle2: ") and "expected a JSON object of aliases" in line
