"""`valle2 serve` in its own process against clients that misbehave and a fuzzer driven by its OpenAPI schema.

500 requests: `pytest -m slow tests/runtime/server/test_hostile.py`.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from tests.runtime.server.conftest import LONG, wait_until
from valle2.benchmarks.serving.client import ServerProcess, get, listen, speech_body

STALL_SECONDS = 2.0
RATE = 24000
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(str(bundle), 2, 1)
    made.options += ["--stall-seconds", str(STALL_SECONDS), "--max-text", "300"]
    with made:
        yield made


def closed_after(port: int, data: bytes) -> tuple[float, bytes]:
    """Send only this. Returns the seconds until the server closed the connection, and its answer."""
    began, said = time.perf_counter(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        while piece := client.recv(4096):
            said += piece
    return time.perf_counter() - began, said


def test_headers_have_a_time_limit(served: ServerProcess) -> None:
    for sent in (b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
        took, said = closed_after(served.port, sent)
        assert not said and STALL_SECONDS - 0.5 < took < STALL_SECONDS + 5


def test_a_body_has_a_time_limit(served: ServerProcess) -> None:
    head = "POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    took, said = closed_after(
        served.port, f"{head}Content-Length: 100\r\nConnection: close\r\n\r\n{{".encode()
    )
    assert b" 408 " in said.split(b"\r\n")[0] and STALL_SECONDS - 0.5 < took < STALL_SECONDS + 5


def test_the_socket_speaks_as_started_by_the_command(served: ServerProcess) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{served.port}/v1/audio/speech/stream") as client:
        client.send(json.dumps({"text": "hello there.", "end": True}))
        found = list(client)
    assert json.loads(found[-1])["type"] == "done"
    assert any(isinstance(piece, bytes) for piece in found)


def test_leaving_frees_the_slot(served: ServerProcess) -> None:
    before = served.metrics()["cancelled_total"]
    listen(served.port, speech_body(LONG * 2, 3, latency=0.0), time.perf_counter(), RATE, leave=0.0)
    wait_until(lambda: served.idle() and served.metrics()["cancelled_total"] > before)


def test_sigterm_lets_streams_end(bundle: Path) -> None:
    with ServerProcess(str(bundle), 2, 1) as own, ThreadPoolExecutor(2) as pool:
        body = speech_body(LONG * 4, 3, latency=0.0)
        wanted = listen(own.port, body, time.perf_counter(), RATE)
        stream = pool.submit(listen, own.port, body, time.perf_counter(), RATE)
        wait_until(lambda: own.metrics()["active_slots"])
        assert own.process
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(40) in (0, -signal.SIGTERM)
        assert wanted.whole and stream.result().whole and stream.result().data == wanted.data


def test_the_examples_of_the_documentation(served: ServerProcess, tmp_path: Path) -> None:
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    found = re.findall(r"```\n(curl .*?)```", text, re.DOTALL)
    assert found
    for example in found:
        command = example.replace(":8000/", f":{served.port}/")
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "morning.wav").read_bytes()[:4] == b"RIFF"


def fuzz(port: int, count: int) -> None:
    """Send `count` valid and invalid requests made from the server's schema; no status may be 5xx but 503."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs the extra: dev")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    base = f"http://127.0.0.1:{port}"
    schema = schemathesis.openapi.from_dict(json.loads(get(port, "/openapi.json")[1]))
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    operations = [found.ok() for found in schema.get_all_operations()]
    strategies = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes]
    statuses: list[int] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(strategies))
    def ask(case: Any) -> None:
        answer = case.call(base_url=base, timeout=60)
        statuses.append(answer.status_code)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text

    ask()
    assert len(statuses) >= count // 2 and len(set(statuses)) > 1
    assert get(port, "/health")[0] == 200 and served_again(port)


def served_again(port: int) -> bool:
    return listen(port, speech_body("hello there", 3), time.perf_counter(), RATE).whole


def test_requests_made_from_the_schema(served: ServerProcess) -> None:
    fuzz(served.port, 60)


@pytest.mark.slow
def test_500_requests_made_from_the_schema(served: ServerProcess) -> None:
    fuzz(served.port, 500)
