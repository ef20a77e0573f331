"""API keys: the file, the limits of each key, and what is counted for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.runtime.server.conftest import LONG, idle, serving, wait_until
from valle2.runtime import Valle2
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.keys import MINUTE, Key, KeyLimits, Keys, Window, digest_of, read_keys
from valle2.runtime.server.limits import Limits, RefusedError, TooLongError
from valle2.runtime.server.worker import Worker

ANN, BOB = "ann-" + "a" * 20, "bob-" + "b" * 20


def written(folder: Path, text: str | bytes | dict[str, Any]) -> Path:
    path = folder / "keys"
    data = text if isinstance(text, bytes | str) else json.dumps(text)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"{ANN}\n", ["default"]),
        (f"# who\n\nann {ANN}\n  bob\t{BOB}  \n", ["ann", "bob"]),
        (
            {"ann": {"key": ANN, "requests": 2}, "bob": {"key": BOB, "requests_per_minute": None}},
            ["ann", "bob"],
        ),
    ],
)
def test_the_forms_of_a_file(tmp_path: Path, text: str | dict[str, Any], names: list[str]) -> None:
    keys = read_keys(written(tmp_path, text))
    assert [key.name for key in keys.keys] == names
    found = keys.find(ANN)
    assert found and found.name == names[0] and keys.find(ANN[:-1]) is None and keys.find("") is None
    assert all(ANN not in repr(key) for key in keys.keys)


BAD_FILES: dict[str, tuple[str | bytes | dict[str, Any], str]] = {
    "empty": ("", "holds 0 keys"),
    "comments": ("# a\n", "holds 0 keys"),
    "short": ("ann SECRET", "line 1 holds a key of 6"),
    "swapped": (f"SECRET{'x' * 60} ann\n", "line 1 holds a key of 3"),
    "bad name": (f"SEC/RET {ANN}", "line 1 has a name"),
    "three words": (f"ann {ANN} SECRET", "line 1 has 3 words"),
    "one of two": (f"ann {ANN}\nSECRET{'x' * 20}", "line 2 has 1 words"),
    "same name": (f"ann {ANN}\nann {BOB}", "line 2 has the name or the key"),
    "same key": (f"ann {ANN}\nbob {ANN}", "line 2 has the name or the key"),
    "not ASCII": (f"ann SECRET{'ö' * 20}", "line 1 holds a key of 26"),
    "not UTF-8": (b"ann \xff\xff", "cannot be read"),
    "not JSON": ('{"SECRET', "not JSON"),
    "twice in JSON": ('{"SECRET": {}, "SECRET": {}}', "given twice"),
    "no key": ({"SECRET": {"requests": 2}}, "entry 1 has no text"),
    "key is a number": ({"ann": {"key": 12345678901234567890}}, "entry 1 has no text"),
    "unknown field": ({"ann": {"key": ANN, "SECRET": 2}}, "entry 1 has an unknown field"),
    "zero": ({"ann": {"key": ANN, "requests": 0}}, "entry 1: requests must be"),
    "text": ({"ann": {"key": ANN, "requests": "SECRET"}}, "entry 1: requests must be"),
    "true": ({"ann": {"key": ANN, "requests": True}}, "entry 1: requests must be"),
    "huge": ({"ann": {"key": ANN, "requests": 1e300}}, "entry 1: requests must be"),
    "too large": ("a" * 1_000_001, "more than 1000000 bytes"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_without_its_keys(tmp_path: Path, name: str) -> None:
    text, message = BAD_FILES[name]
    with pytest.raises(SettingsError, match=message) as error:
        read_keys(written(tmp_path, text))
    said = str(error.value)
    assert "\n" not in said and "SECRET" not in said and ANN not in said and BOB not in said


def test_a_window_forgets() -> None:
    window = Window(60.0)
    window.add(5, 100.0)
    window.add(3, 130.0)
    assert window.total(131.0) == 8
    assert 29 <= window.wait(5, 131.0) <= 31 and 58 <= window.wait(6, 131.0) <= 61
    assert window.total(162.0) == 3 and window.total(200.0) == 0
    for index in range(100_000):
        window.add(1, 300 + index / 100)
    assert len(window.amounts) <= 61 or window.total(1300.0) <= 6200


@pytest.mark.parametrize(
    ("limits", "code", "seconds"),
    [
        (KeyLimits(requests=2), "requests", (7, 7)),
        (KeyLimits(requests_per_minute=2), "requests_per_minute", (59, 61)),
        (KeyLimits(characters_per_hour=25), "characters_per_hour", (3599, 3661)),
        (KeyLimits(audio_seconds_per_hour=10), "audio_seconds_per_hour", (3599, 3661)),
    ],
)
def test_each_limit_has_a_code_and_a_time(limits: KeyLimits, code: str, seconds: tuple[float, float]) -> None:
    key = Key("ann", limits=limits)
    for _ in range(2):
        key.check(10, 4.0, 7.0)
        key.begin(10, 4.0)
    with pytest.raises(RefusedError) as refused:
        key.check(10, 4.0, 7.0)
    assert refused.value.code == code
    assert seconds[0] <= refused.value.retry_after <= seconds[1]


def test_expected_audio_is_replaced_by_what_was_made() -> None:
    key = Key("ann", limits=KeyLimits(audio_seconds_per_hour=10))
    key.begin(10, 8.0)
    with pytest.raises(RefusedError):
        key.check(10, 4.0, 1.0)
    key.end(8.0, 2.0)
    key.check(10, 8.0, 1.0)
    with pytest.raises(TooLongError):
        key.check(10, 11.0, 1.0)
    assert key.usage()["used"]["audio_seconds_per_hour"] == 2.0 and key.usage()["audio_seconds"] == 2.0


@pytest.fixture
def keys() -> Keys:
    return Keys(Key("ann", digest_of(ANN), KeyLimits(requests_per_minute=3)), Key("bob", digest_of(BOB)))


@pytest.fixture
def server(bundle: Path, tmp_path: Path, keys: Keys) -> Iterator[tuple[str, Worker]]:
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), Limits(slots=2, queue=4))
    with serving(worker, tmp_path, keys) as address:
        yield address, worker


def speak(base: str, key: str, text: str = "a fox") -> httpx.Response:
    body = {"input": text, "voice": "amber", "response_format": "pcm"}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{base}/v1/audio/speech", json=body, headers=headers, timeout=60)


def test_limits_and_counts_of_each_key(server: tuple[str, Worker]) -> None:
    base, worker = server
    assert speak(base, "x" * 20).status_code == 401
    assert [speak(base, ANN).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = speak(base, ANN)
    assert answer.json()["error"]["code"] == "requests_per_minute"
    assert MINUTE / 2 < int(answer.headers["retry-after"]) <= MINUTE + 1
    assert speak(base, BOB).status_code == 200
    wait_until(lambda: idle(worker))
    with connect(
        base.replace("http", "ws") + "/v1/audio/speech/stream",
        additional_headers={"Authorization": f"Bearer {ANN}"},
    ) as socket:
        socket.send(json.dumps({"text": "a fox.", "end": True}))
        found = []
        with pytest.raises(ConnectionClosed, match="1011"):
            while True:
                found.append(socket.recv(20))
    last = json.loads(found[-1])
    assert last["code"] == "requests_per_minute" and 1 <= last["retry_after"] <= MINUTE + 1
    usage = httpx.get(f"{base}/v1/usage", headers={"Authorization": f"Bearer {ANN}"}).json()
    assert usage["key"] == "ann" and usage["requests"] == 3 and usage["characters"] == 15
    assert usage["audio_seconds"] > 0 and usage["rejected"] == 3 and usage["used"]["requests"] == 0
    assert usage["limits"]["requests_per_minute"] == 3
    assert httpx.get(f"{base}/v1/usage").status_code == 401
    text = httpx.get(f"{base}/metrics", headers={"Authorization": f"Bearer {BOB}"}).text
    assert 'valle2_key_requests_total{key="ann"} 3.0' in text
    assert 'valle2_key_rejected_total{key="ann"} 3.0' in text
    assert 'valle2_key_requests_total{key="bob"} 1.0' in text and ANN not in text and BOB not in text


def test_a_key_is_one_client(server: tuple[str, Worker]) -> None:
    """Its long texts leave the other key its turn."""
    base, worker = server
    body = {"input": LONG * 4, "voice": "amber", "response_format": "pcm"}
    url = f"{base}/v1/audio/speech"
    with (
        httpx.Client(headers={"Authorization": f"Bearer {ANN}"}, timeout=60) as client,
        client.stream("POST", url, json=body) as one,
        client.stream("POST", url, json=body) as two,
    ):
        assert one.status_code == two.status_code == 200
        began = time.perf_counter()
        assert speak(base, BOB).status_code == 200
        assert time.perf_counter() - began < 20
    wait_until(lambda: idle(worker))


def test_without_keys_the_usage_is_of_all(worker: Worker, tmp_path: Path) -> None:
    with serving(worker, tmp_path) as base:
        assert speak(base, "none").status_code == 200
        found = httpx.get(f"{base}/v1/usage").json()
    assert found["key"] is None and found["requests"] == 1 and found["limits"]["requests"] is None
