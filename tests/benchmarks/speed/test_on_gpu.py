"""The command for a machine with a GPU: its parts, their limits, and a trial on a CPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from valle2.benchmarks.speed.on_gpu import __main__ as command
from valle2.benchmarks.speed.on_gpu import joint
from valle2.benchmarks.speed.on_gpu.parts import PARTS
from valle2.benchmarks.speed.on_gpu.setup import NotHereError, Setup
from valle2.engine.errors import BackendError
from valle2.runtime import Valle2

SETUP = Setup("cpu", "", 1)
WRITE = "import json, sys; json.dump({value}, open(sys.argv[1], 'w'))"
MODEL = WRITE.format(value='{"mb": 1}')
Scripts = dict[str, str]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """Python code in place of the processes of parts, by name. It is given where its result goes."""
    made: Scripts = {}

    def run(name: str, setup: Setup, result: Path) -> list[str]:
        return [sys.executable, "-c", made.get(name, MODEL), str(result)]

    monkeypatch.setattr(command, "part_command", run)
    return made


def read(out: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((out / "on_gpu.json").read_text())["parts"]
    return found


def test_a_part_that_fails_hangs_or_dies_does_not_stop_the_others(
    scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts["environment"] = "import time; print('began', flush=True); time.sleep(600)"
    scripts["numerics"] = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    scripts["tests"] = WRITE.format(value='{"reason": "no pytest"}') + "; sys.exit(3)"
    scripts["tensorrt"] = WRITE.format(value='{"reason": "a | b"}') + "; sys.exit(1)"
    monkeypatch.setattr(command, "LEAST_SECONDS", 0.1)
    monkeypatch.setitem(PARTS, "environment", replace(PARTS["environment"], seconds=0.5))
    names = ["environment", "numerics", "model", "tests", "tensorrt"]
    assert command.run_parts(SETUP, tmp_path, names, 60) == 1
    found = read(tmp_path)
    assert {name: row["status"] for name, row in found.items()} == {
        "environment": "out of time",
        "numerics": "failed",
        "model": "ok",
        "tests": "skipped",
        "tensorrt": "failed",
    }
    assert found["numerics"]["reason"] == "exit status -11; see on_gpu.log"
    assert found["model"]["result"] == {"mb": 1}
    table = (tmp_path / "on_gpu.md").read_text()
    assert "| model | model, MB | 1 |" in table and "| tests | skipped | no pytest |" in table
    assert "| tensorrt | failed | a / b |" in table
    assert "began" in (tmp_path / "on_gpu.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["on_gpu.json", "on_gpu.log", "on_gpu.md"]


def test_results_are_written_after_every_part(scripts: Scripts, tmp_path: Path) -> None:
    """The second part reads what is there of the first."""
    scripts["prefill"] = (
        f"import json, sys; there = json.load(open({str(tmp_path / 'on_gpu.json')!r}))['parts'];"
        "json.dump({'prefill': [], 'there': list(there)}, open(sys.argv[1], 'w'))"
    )
    assert command.run_parts(SETUP, tmp_path, ["model", "prefill"], 60) == 0
    assert read(tmp_path)["prefill"]["result"] == {"prefill": [], "there": ["model"]}


def test_no_part_starts_without_time_or_without_what_it_needs(scripts: Scripts, tmp_path: Path) -> None:
    assert command.run_parts(SETUP, tmp_path, ["model"], 1) == 1
    assert read(tmp_path)["model"]["reason"] == "no time was left for it"
    scripts["model"] = "raise SystemExit(1)"
    assert command.run_parts(SETUP, tmp_path, ["model", "steps", "latency"], 60) == 1
    found = read(tmp_path)
    assert found["steps"]["reason"] == found["latency"]["reason"] == "needs model"


def test_wrong_graphs_fail_their_part_and_are_listed(scripts: Scripts, tmp_path: Path) -> None:
    row = {"graph": "ar", "lowering": "portable", "precision": "fp16", "group_size": 4, "logits": 0.5}
    rows = [row | {"same_codes": 0.1, "right": False}, row | {"same_codes": 1.0, "right": True}]
    rows += [{**row, "logits": None, "same_codes": 0.9, "right": True}]
    rows += [{"graph": "ar", "lowering": "x", "precision": "int8", "group_size": 2, "right": False}]
    rows[-1]["error"] = "a kernel | is absent"
    scripts["numerics"] = f"import json, sys; json.dump({{'graphs': {rows!r}}}, open(sys.argv[1], 'w'))"
    assert command.run_parts(SETUP, tmp_path, ["numerics"], 60) == 1
    assert read(tmp_path)["numerics"]["reason"] == "2 of 4 graphs are wrong"
    table = (tmp_path / "on_gpu.md").read_text()
    assert "| ar portable fp16, group 4 | logits 5.0e-01, codes 10.00% WRONG |" in table
    assert "| ar portable fp16, group 4 | codes 90.00% |" in table
    assert "| ar x int8, group 2 | WRONG: a kernel / is absent |" in table


def test_a_part_in_its_process_says_why_it_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, given = tmp_path / "result", f"prefill {SETUP.to_json()}"

    def raising(error: Exception) -> Callable[[Setup], dict[str, object]]:
        def run(setup: Setup) -> dict[str, object]:
            assert setup == SETUP
            raise error

        return run

    for error, status in ((NotHereError("absent"), 3), (BackendError("too old"), 1)):
        monkeypatch.setitem(PARTS, "prefill", replace(PARTS["prefill"], run=raising(error)))
        assert command.run_inside(given, result) == status
        assert json.loads(result.read_text()) == {"reason": str(error)}
    monkeypatch.setitem(PARTS, "prefill", replace(PARTS["prefill"], run=raising(KeyError("x"))))
    with pytest.raises(KeyError):
        command.run_inside(given, result)
    assert json.loads(result.read_text()) == {"reason": "KeyError: 'x'"}


def test_a_machine_without_a_gpu_is_refused_at_once() -> None:
    setup = Setup("cuda", "", 1)
    with pytest.raises(BackendError, match="no GPU is seen here"):
        PARTS["environment"].run(setup)
    assert setup.sizes == {} and setup.rows == (1, 8, 32, 64) and setup.groups == (1, 2, 4, 8)


@pytest.mark.slow
def test_a_trial_on_a_cpu_runs_every_part_that_can(tmp_path: Path) -> None:
    assert command.main(["--device", "cpu", "--out", str(tmp_path), "--minutes", "20", "--threads", "1"]) == 0
    found = read(tmp_path)
    assert list(found) == list(PARTS)
    skipped = {name for name, row in found.items() if row["status"] == "skipped"}
    assert skipped == {"captures", "tensorrt", "tests"}


def test_joint_calls_are_timed_beside_calls_of_one_row(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "TEXT", "hello there")
    with Valle2.load(bundle, threads=1, slots=3, chunks_per_call=3, steps_per_read=4) as tts:
        rows = joint.time_model(tts, 12, 1, on_gpu=False, numbers=(2, 3))
    found: dict[str, list[dict[str, Any]]]
    found = {name: [{"precision": "fp32"} | row for row in part] for name, part in rows.items()}
    assert {len(found[name]) for name in ("nar", "codec")} == {4} and len(found["requests"]) == 2
    assert list(found["steps"][0]["ms"]) == ["1", "2", "4"]
    assert all(row["same_codes"] == 1 for name in ("nar", "requests") for row in found[name])
    assert not PARTS["joint"].wrong(found) and len(PARTS["joint"].rows(found)) == 12
    found["nar"][0]["same_codes"] = 0.5
    assert PARTS["joint"].wrong(found) == "1 of 6 joint calls in fp32 give other codes"
