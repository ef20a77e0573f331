"""Two replicas of deploy/ray-serve.yaml on this machine, tested over HTTP. Takes about a minute.

    pytest -m slow tests/runtime/server/test_ray_app.py

Needs the extra `ray`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="needs the extra: ray")
import yaml

from tests.runtime.server.conftest import LONG, wait_until
from valle2.benchmarks.serving.replicas import running
from valle2.runtime import Valle2
from valle2.runtime.audio.io import pcm16

pytestmark = pytest.mark.slow
FILE = Path(__file__).parents[3] / "deploy/ray-serve.yaml"
BODY: dict[str, Any] = {"input": LONG, "voice": "amber", "seed": 3, "response_format": "pcm"}
AUDIO_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def content(bundle: Path, folder: Path, **deployment: Any) -> dict[str, Any]:
    """The content of deploy/ray-serve.yaml, with the toy model and smaller limits."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found["http_options"]["port"] = free_port()
    application = found["applications"][0]
    limits = {"slots": 2, "queue": 2, "audio_seconds": AUDIO_SECONDS}
    application["args"] |= {"model": str(bundle), "voices_dir": str(folder / "voices"), "limits": limits}
    application["deployments"][0] |= deployment
    return found


@pytest.fixture(scope="module")
def two(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with two replicas."""
    folder = tmp_path_factory.mktemp("ray")
    scaling = {"min_replicas": 2, "max_replicas": 2}
    with running(content(bundle, folder, autoscaling_config=scaling), folder / "log") as address:
        wait_until(lambda: len({ask(address).headers["x-replica"] for _ in range(8)}) == 2, 60)
        yield address


def ask(address: str, path: str = "/ready") -> httpx.Response:
    return httpx.get(address + path, timeout=60)


def speak(address: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/audio/speech", json=BODY | fields, timeout=60)


def test_two_replicas_stream_the_same_audio(two: str, bundle: Path) -> None:
    def listen(_: int) -> tuple[str, list[bytes]]:
        with httpx.stream("POST", f"{two}/v1/audio/speech", json=BODY, timeout=60) as response:
            return response.headers["x-replica"], list(response.iter_raw())

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(listen, range(8)))
    assert len({name for name, _ in found}) == 2
    tts = Valle2.load(bundle, threads=1, slots=2)
    settings = replace(tts.settings(), seed=3)
    expected = b"".join(pcm16(piece) for piece in tts.stream(LONG, tts.voice("amber"), settings))
    assert {b"".join(pieces) for _, pieces in found} == {expected}
    assert all(len(pieces) > 2 for _, pieces in found)


def test_errors_keep_their_status(two: str) -> None:
    assert speak(two, voice="nobody").status_code == 404
    assert httpx.get(f"{two}/v1/voices", headers={"Host": "other.example"}).status_code == 403


def test_a_text_that_is_too_long_is_refused_at_once(two: str) -> None:
    found = speak(two, input=LONG * 12)  # more than AUDIO_SECONDS
    assert found.status_code == 413 and found.json()["error"]["code"] == "text_too_long"


def test_more_than_the_replicas_hold_is_refused_and_disconnects_free_their_slots(two: str) -> None:
    fields = BODY | {"input": LONG * 6}
    with ThreadPoolExecutor(24) as pool:

        def leave(_: int) -> int:
            with httpx.stream("POST", f"{two}/v1/audio/speech", json=fields, timeout=60) as response:
                if response.status_code == 200:
                    next(response.iter_raw())
                return response.status_code

        statuses = list(pool.map(leave, range(24)))
    assert set(statuses) == {200, 429}
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:  # as many as one replica holds
        for _ in range(5):
            answers = pool.map(lambda seed: speak(two, input="a fox", seed=seed), range(4))
            assert {answer.status_code for answer in answers} == {200}
    assert time.perf_counter() - began < 10


def test_replicas_are_added_as_requests_pile_up(bundle: Path, tmp_path: Path) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 0,
        "look_back_period_s": 2,
    }
    with running(content(bundle, tmp_path, autoscaling_config=scaling), tmp_path / "log") as address:
        assert len({ask(address).headers["x-replica"] for _ in range(8)}) == 1
        names: set[str] = set()
        end = time.perf_counter() + 60
        with ThreadPoolExecutor(4) as pool:
            while len(names) < 2 and time.perf_counter() < end:
                names |= {
                    r.headers["x-replica"] for r in pool.map(lambda seed: speak(address, seed=seed), range(8))
                }
    assert len(names) == 2
