"""`valle2 serve` as a process: starts that cannot succeed, and ends that its supervisor notices."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from tests.runtime.server.conftest import wait_until
from valle2.benchmarks.serving.client import ServerProcess
from valle2.runtime.cli.main import main
from valle2.runtime.server import run
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.keys import Keys
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.tts import Valle2

FREEZE = run.freeze_objects
BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "no model": (["--model", "/nonexistent"], "unknown model"),
    "no bundle": (["--model", "{folder}"], "manifest"),
    "no device": (["--device", "cuda"], "cuda"),
    "unknown device": (["--device", "toaster"], "toaster"),
    "no such precision": (["--precision", "int4"], "int4"),
    "engine not installed": (["--engine", "tensorrt", "--device", "cuda"], ""),
    "high port": (["--port", "70000"], "--port is 70000"),
    "negative port": (["--port", "-1"], "--port is -1"),
    "no slots": (["--slots", "0"], "slots is 0"),
    "nan": (["--audio-seconds", "nan"], "audio_seconds is nan"),
    "inf": (["--stall-seconds", "inf"], "stall_seconds is inf"),
    "huge": (["--stall-seconds", "1e300"], "stall_seconds is 1e+300"),
    "negative": (["--request-seconds", "-3"], "request_seconds is -3"),
    "negative threads": (["--threads", "-1"], "threads"),
    "no key file": (["--api-key-file", "/nonexistent"], "cannot be read"),
    "key is a folder": (["--api-key-file", "{folder}"], "cannot be read"),
    "voices under a file": (["--voices-dir", "/dev/null/voices"], "--voices-dir"),
    "no aliases": (["--voice-aliases", "/nonexistent"], "cannot be read"),
    "no host": (["--host", "no.host.invalid", "--api-key-file", "{key}"], "cannot be bound"),
    "strange host": (["--host", "a" * 100, "--api-key-file", "{key}"], "cannot be bound"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_a_start_that_cannot_succeed_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "set_up_logging", lambda form: None)
    words, message = BAD_ARGUMENTS[name]
    (tmp_path / "key").write_text("k" * 16)
    (tmp_path / "empty").mkdir()
    given = [word.format(folder=tmp_path / "empty", key=tmp_path / "key") for word in words]
    began = time.perf_counter()
    status = main(["serve", "--port", "0", "--voices-dir", str(tmp_path / "voices"), *given])
    said = capfd.readouterr().err
    assert status == 1 and message in said, said
    assert said.count("\n") == 1 and "serving" not in said and "Traceback" not in said
    assert time.perf_counter() - began < 20


def test_a_damaged_bundle_ends_the_process(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    command = [sys.executable, "-m", "valle2.runtime.cli", "serve", "--port", "0", "--model", str(broken)]
    done = subprocess.run(
        [*command, "--voices-dir", str(tmp_path / "v")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "serving" not in done.stderr


def test_a_native_crash_ends_the_process_and_a_supervisor_starts_it_again(bundle: Path) -> None:
    with ServerProcess(str(bundle), 1, 1) as served:
        for _ in range(2):
            assert served.process
            os.kill(served.process.pid, signal.SIGSEGV)
            assert served.process.wait(20) == -signal.SIGSEGV
            assert served.reader and served.process.stderr
            served.reader.join(5)
            served.process.stderr.close()
            served.start()  # as `Restart=on-failure` does


def test_the_garbage_collector_leaves_out_each_model_that_is_loaded(
    worker: Worker, load: Callable[[int], Valle2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection of all objects holds up every thread of the server."""
    listening = run.open_listener("127.0.0.1", 0, 1.0)
    server = run.Server(make_app(worker, VoiceStore(tmp_path)), worker, listening, lifespan="off")
    server.address, frozen, thresholds = "http://here", list[int](), gc.get_threshold()

    def freeze() -> None:
        FREEZE()
        frozen.append(len(gc.get_objects()))

    monkeypatch.setattr(run, "freeze_objects", freeze)
    before = len(gc.get_objects())
    try:
        for _ in range(2):
            asyncio.run(server.on_tick(1))
        assert len(frozen) == 1 and frozen[0] < before / 10
        worker.tts = load(2)  # as after a restart of the engine
        asyncio.run(server.on_tick(1))
        assert len(frozen) == 2 and gc.get_threshold() == run.COLLECTIONS
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        listening.close()
        os.close(server.port.spare)


def test_a_hung_engine_ends_the_process(
    load: Callable[[int], Valle2], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = list[int]()

    class Exit(Exception):
        pass

    def leave(status: int) -> None:
        ends.append(status)
        raise Exit

    class Hung(Worker):
        def serve(self) -> None:
            wait_until(lambda: self.ended, 30)
            time.sleep(3 * run.FAILED_SECONDS)

    monkeypatch.setattr(run, "Worker", Hung)
    monkeypatch.setattr(run, "set_up_logging", lambda form: None)
    monkeypatch.setattr(os, "_exit", leave)
    limits, store = Limits(slots=1, step_seconds=1.0), VoiceStore(Path("/nonexistent"))
    with pytest.raises(Exit):
        run.serve(load, limits, "127.0.0.1", 0, store, Keys())
    said = capfd.readouterr().err
    gc.unfreeze()
    assert sys.getswitchinterval() == pytest.approx(run.SWITCH_SECONDS)
    assert ends == [run.STUCK_STATUS] and "serving on" in said and "hangs" in said
