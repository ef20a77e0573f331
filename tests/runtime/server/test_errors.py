"""The status and the message of every class of error; request ids; what the log says."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from tests.runtime.server.conftest import LONG, serving, wait_until
from valle2.engine import errors as engine_errors
from valle2.engine.errors import Valle2Error
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime import errors as runtime_errors
from valle2.runtime.errors import SettingsError
from valle2.runtime.server import limits as limits_module
from valle2.runtime.server import store as store_module
from valle2.runtime.server import worker as worker_module
from valle2.runtime.server.http import errors as http_errors
from valle2.runtime.server.http.errors import UNEXPECTED, HttpError, message_of, status_of
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.request_log import BURST, LineFormatter, RequestLog, RequestRecord
from valle2.runtime.server.worker import Worker

SECRET = "/home/someone/model"
SHOWN = {
    "QueueFullError": 429,
    "RefusedError": 429,
    "TooLongError": 413,
    "NotReadyError": 503,
    "TimeLimitError": 503,
    "WorkerError": 503,
    "SlowReaderError": 408,
    "SynthesisError": 500,
    "UnknownVoiceError": 404,
    "VoiceTakenError": 409,
    "StoreFullError": 409,
    "ModelVoiceError": 403,
    "VoiceFileError": 500,
    "StorageError": 500,
    "DiskFullError": 507,
    "TextError": 400,
    "LexiconError": 400,
    "PromptError": 400,
    "SettingsError": 400,
}
HIDDEN = {
    "Valle2Error": 500,
    "ManifestError": 500,
    "BackendError": 500,
    "AuditError": 500,
    "HubError": 500,
    "AudioError": 500,
    "ModelError": 500,
}


def classes() -> dict[str, type[Valle2Error]]:
    """Every class of error that the engine, the runtime and the server define, but `HttpError`."""
    found = dict[str, type[Valle2Error]]()
    for module in (engine_errors, runtime_errors, store_module, limits_module, worker_module, http_errors):
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Valle2Error) and value is not HttpError:
                found[name] = value
    return found


def test_every_class_has_a_status_and_only_some_a_message() -> None:
    found = classes()
    assert set(found) == {*SHOWN, *HIDDEN}
    for name, kind in found.items():
        error = kind(SECRET)
        assert status_of(error) == {**SHOWN, **HIDDEN}[name], name
        assert message_of(error) == (SECRET if name in SHOWN else UNEXPECTED), name


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError(SECRET), 503),
        (MemoryError(SECRET), 503),
        (OSError(errno.ENOSPC, SECRET), 507),
        (OSError(errno.EACCES, SECRET), 500),
        (KeyError(SECRET), 500),
        (TypeError(SECRET), 500),
        (OverflowError(SECRET), 500),
    ],
)
def test_errors_of_others_are_the_servers_and_hidden(error: Exception, status: int) -> None:
    assert status_of(error) == status and message_of(error) == UNEXPECTED


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30, 10**400, 1.5, True, "7", [1]])
def test_a_seed_out_of_range_is_the_clients_error(seed: object) -> None:
    with pytest.raises(SettingsError, match="seed is"):
        Settings(seed=seed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), Limits(slots=2))
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


def speak(base: str, **headers: str) -> httpx.Response:
    body = {"input": "hello there", "voice": "amber", "response_format": "pcm"}
    return httpx.post(f"{base}/v1/audio/speech", json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("kind", [LookupError, OSError, TypeError, ZeroDivisionError, AssertionError])
def test_an_error_nobody_expects_is_json_with_an_id_and_one_line(
    server: tuple[str, Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    base, worker = server

    def fails(request: Request, first_chunk_seconds: float) -> None:
        raise kind(SECRET)

    monkeypatch.setattr(worker.tts, "encode", fails)
    with caplog.at_level(logging.WARNING):
        found = speak(base, **{"X-Request-Id": "mine-1"})
    assert found.status_code == 500 and found.json()["error"]["message"] == UNEXPECTED
    assert found.headers["x-request-id"] == "mine-1"
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1 and "mine-1" in lines[0].getMessage() and not lines[0].exc_info


def test_each_request_has_an_id_and_a_line_without_its_text(
    server: tuple[str, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    base, _ = server

    def lines(name: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "fields", {}).get("id") == name]

    with caplog.at_level(logging.INFO, "valle2.requests"):
        found = speak(base, **{"X-Request-Id": "abc.1", "Authorization": "Bearer secret-key"})
        health = httpx.get(f"{base}/health")
        other = httpx.get(f"{base}/v1/models", headers={"X-Request-Id": "two words"})
        assert found.headers["x-request-id"] == "abc.1"
        made = other.headers["x-request-id"]
        assert len(made) == 16
        wait_until(lambda: lines("abc.1") and lines(made))
    assert health.status_code == 200 and not lines(health.headers.get("x-request-id", ""))
    (written,), (second,) = lines("abc.1"), lines(made)
    first = written.fields  # type: ignore[attr-defined]
    assert first["id"] == "abc.1" and first["route"] == "/v1/audio/speech" and first["status"] == 200
    assert first["characters"] == len("hello there") and first["audio"] > 0 and first["finish_reason"]
    assert 0 < first["first_audio"] <= first["total"] and first["queue"] >= 0
    assert second.fields["route"] == "/v1/models"  # type: ignore[attr-defined]
    line = LineFormatter("json").format(written)
    assert json.loads(line)["id"] == "abc.1" and "hello" not in line and "secret-key" not in line
    assert "\n" not in line and "id=abc.1" in LineFormatter("text").format(written)


def test_lines_of_refused_requests_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    lines = RequestLog()
    with caplog.at_level(logging.INFO, "valle2.requests"):
        for index in range(1000):
            lines.write(RequestRecord(str(index), "GET", f"/v1/models/{index}", 401))
    assert len(caplog.records) == BURST and len(lines.bursts.kinds) == 1


def test_a_path_cannot_forge_a_line(server: tuple[str, Worker], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "valle2.requests"):
        httpx.get(f"{server[0]}/a%0Ainfo: request id=forged", headers={"X-Request-Id": "x" * 65})
        wait_until(lambda: caplog.records)
    for form in ("text", "json"):
        assert "\n" not in LineFormatter(form).format(caplog.records[0])


def test_a_cut_stream_is_one_line(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base, worker = server
    monkeypatch.setattr(worker, "limits", Limits(slots=2, audio_seconds=0.2))
    body = {"input": LONG, "voice": "amber", "response_format": "pcm", "first_chunk_seconds": 0.1}
    with caplog.at_level(logging.WARNING):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{base}/v1/audio/speech", json=body, timeout=30)
        wait_until(lambda: caplog.records)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("valle2")]
    assert len(lines) == 1 and "TimeLimitError: more than" in lines[0]


def test_the_limits_are_the_servers_and_the_models(server: tuple[str, Worker]) -> None:
    base, worker = server
    assert worker.tts
    found = httpx.get(f"{base}/v1/limits").json()
    assert found["text_characters"] == worker.limits.text
    assert found["recording_seconds"]["most"] == pytest.approx(worker.tts.longest_prompt_seconds, abs=0.01)
