"""`bench serve` on the toy bundle: every figure is there, and the server survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import soundfile

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.benchmarks.cli import check_criteria
from valle2.benchmarks.report.statistics import silences
from valle2.benchmarks.serving.attacks import LENGTH
from valle2.benchmarks.serving.chaos import HealthPolls, Watch, criteria, failed, settled
from valle2.benchmarks.serving.chaos import table as chaos_table
from valle2.benchmarks.serving.client import Answer, ServerProcess, address
from valle2.benchmarks.serving.hostile import recordings, texts
from valle2.benchmarks.serving.in_turns import InTurns
from valle2.benchmarks.serving.load import serve, summary, table
from valle2.benchmarks.serving.open_load import FIRST_CHUNKS, IN_TURNS, load_at_shares, medians, outcome
from valle2.benchmarks.serving.open_load import table as load_table
from valle2.engine.errors import Valle2Error
from valle2.runtime.audio.io import read_recording
from valle2.runtime.cli.main import main
from valle2.runtime.errors import PromptError


@pytest.mark.serial
def test_a_short_run(bundle: Path) -> None:
    result = serve(str(bundle), "hello there", 3, 2, 5.0, 3, 1, 2, chaos_seconds=3.0, soak_requests=4)
    assert json.loads(json.dumps(result)) == result
    assert result["open_loop"]["statuses"] == {"200": 3} and not result["open_loop"]["cut"]
    chaos, soak = result["chaos"], result["soak"]
    wrong = [row for row in chaos["criteria"] if not row["passed"] and "slowest" not in row["criterion"]]
    assert not [row for row in wrong if "silence" not in row["criterion"]], chaos
    assert chaos["health_polls"] and chaos["health_slowest_ms"] < 2000 and chaos["longest_silence_s"] < 10
    assert chaos["streams"] and chaos["descriptors_most"] > chaos["descriptors_before"]
    assert chaos["memory_growth_mib"] is None and len(chaos["criteria"]) == 12
    assert all(attack["acts"] for attack in chaos["attacks"].values())
    assert soak["whole"] == 4 and soak["last_mib"] > 10
    assert "slowest health check" in table(result) and result["first_audio"]["http_part_ms"] > 0


def test_only_whole_streams_count() -> None:
    heard = [
        Answer(200, False, b"", [(1.0, 1.0), (2.5, 1.0)]),
        Answer(200, True, b"", [(9.0, 1.0)]),
        Answer(429),
        Answer(0),
    ]
    found = summary(heard, 2.0, 4.0)
    assert found["statuses"] == {"200": 2, "429": 1, "0": 1} and found["cut"] == 1
    assert found["first_audio_ms"]["p50"] == 1000.0 and found["rtf"]["p50"] == 1.25
    assert found["underruns"] == 1 and found["audio_s_per_s"] == 0.5


@pytest.mark.serial
def test_both_orders_are_measured_at_each_share(bundle: Path) -> None:
    result = load_at_shares(str(bundle), "hello there", [2.0, 4.0], 4, 2, 3, 1, 2)
    assert json.loads(json.dumps(result)) == result
    assert [(row["share"], row["order"]) for row in result["rows"]] == [
        (share, order) for share in (2.0, 4.0) for order in (IN_TURNS, FIRST_CHUNKS)
    ]
    assert result["capacity"]["requests_per_s"] > 0 and result["capacity"]["audio_s_per_s"] > 0
    for row in result["rows"]:
        assert row["total"] == 4 and not row["failed"] and not row["rejected"]
        assert row["requests_per_s"] == pytest.approx(
            row["share"] * result["capacity"]["requests_per_s"], abs=0.001
        )
        assert 0 < row["first_audio_ms"]["p50"] <= row["first_audio_ms"]["p95"]
    assert load_table(result).count("first chunks first") == 2


def test_a_player_is_silent_from_the_time_at_which_audio_is_due() -> None:
    late_twice = Answer(200, False, b"", [(1.0, 1.0), (2.5, 1.0), (3.0, 1.0), (6.0, 1.0)])
    gapless = Answer(200, False, b"", [(0.5, 0.5), (0.6, 0.5), (1.5, 0.5)])
    assert silences(late_twice.pieces) == pytest.approx([0.5, 1.5]) and not silences(gapless.pieces)
    found = outcome([late_twice, gapless, Answer(429), Answer(503), Answer(0), Answer(500)])
    assert (found["underruns"], found["silent_s"]) == (2, 2.0)
    assert (found["rejected"], found["failed"], found["total"]) == (2, 2, 6)
    assert found["first_audio_ms"] == {"p50": 750.0, "p95": 975.0}


def test_medians_are_of_the_runs_that_have_the_figure() -> None:
    runs = [{"underruns": 3, "first_audio_ms": {"p50": 7.0}}, {"underruns": 4, "first_audio_ms": {}}]
    assert medians(runs) == {"underruns": 3.5, "first_audio_ms": {"p50": 7.0}}


def test_requests_take_turns_without_precedence() -> None:
    """The engine whose first chunks have precedence is compared with one that serves who waits longest."""
    late, early = InTurns.of(2.0, whole=True), InTurns.of(1.0, whole=False)
    early.add(5.0, 1.5)
    assert early.due < late.due
    early.take_turn(3.0)
    assert late.due < early.due


def test_a_capacity_needs_more_requests_than_rows() -> None:
    with pytest.raises(Valle2Error, match="--requests is 2; expected more than --slots"):
        load_at_shares("demo", "hello", [0.5], 2, 2, 0, 1, 1)


def test_clients_have_addresses_of_their_own() -> None:
    found = {address(index) for index in range(1000)}
    assert len(found) == (1000 if sys.platform == "linux" else 1)


def test_a_load_is_measured_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--load", "0.5", "--chaos", "3"]) == 1
    assert "--load is a measurement of its own" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--load", "0.5,-1"])


def test_memory_is_compared_after_the_warm_up() -> None:
    grows = [(float(second), (100 + second) * 2**20) for second in range(61)]
    assert Watch(memory=grows).grown_mib() == pytest.approx(55 - 24.5, abs=0.1)
    assert Watch(memory=grows[:39]).grown_mib() is None and Watch().grown_mib() is None


FINE: dict[str, Any] = {
    "health_polls": 9,
    "health_other_than_200": 0,
    "health_slowest_ms": 99.0,
    "listeners": 2,
    "listeners_heard": 2,
    "streams": 3,
    "longest_silence_s": 1.0,
    "streams_cut": 0,
    "streams_different": 0,
    "other_5xx": 0,
    "memory_growth_mib": -1.0,
    "tracebacks": 0,
    **{
        f"{when}{name}": value
        for when in ("", "restarted_")
        for name, value in (
            ("descriptors_left", 0),
            ("leaked_slots", 0),
            ("worker_restarts", 0),
            ("next_request_identical", True),
        )
    },
}


def test_a_server_that_holds_its_promises_fails_nothing() -> None:
    assert not failed({"criteria": criteria(FINE)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("health_other_than_200", 1),
        ("health_slowest_ms", 100.1),
        ("listeners_heard", 1),
        ("longest_silence_s", 1.01),
        ("streams_cut", 1),
        ("streams_different", 1),
        ("other_5xx", 1),
        ("memory_growth_mib", 33.0),
        ("restarted_descriptors_left", 1),
        ("leaked_slots", 1),
        ("restarted_worker_restarts", 1),
        ("restarted_next_request_identical", False),
        ("tracebacks", 1),
    ],
)
def test_each_broken_promise_fails(name: str, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"criteria": criteria(FINE | {name: value}), "attacks": {"x": {"acts": 1, "statuses": {}}}}
    assert len(failed(found)) == 1 and chaos_table(found).count("FAIL") == 1
    with pytest.raises(Valle2Error, match="the server failed under attack"):
        check_criteria({"chaos": found}, as_json=True)
    assert json.loads(capsys.readouterr().out)["chaos"] == json.loads(json.dumps(found))


def test_what_the_attackers_send() -> None:
    """Texts and files are what they are called; libsndfile reads the Opus as one of 255 channels."""
    sent = texts(LENGTH)
    assert len(sent) > 50 and all(3000 < len(text) <= LENGTH for text in sent if "DOCTYPE" not in text)
    files = recordings()
    with soundfile.SoundFile(BytesIO(files["opus.ogg"])) as file:
        assert file.channels == 255
    assert len(files) > 10 and sum(map(len, files.values())) < 10_000_000
    with pytest.raises(PromptError, match="255 channels"):
        read_recording(files["opus.ogg"], 1, 60)


def test_a_server_that_ended_is_an_error_with_its_log() -> None:
    server = ServerProcess("demo", 1, 1)
    server.log.append("what it said")
    server.process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)
    server.process.wait()
    assert not server.running
    server.folder.cleanup()
    with pytest.raises(Valle2Error, match="ended with status 3; its log: what it said"):
        settled(server, b"", {}, 24000, 0)


def test_a_process_of_health_checks_that_dies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    process = "valle2.benchmarks.serving.chaos.poll_health"
    monkeypatch.setattr(process, os.getpid)  # takes no arguments, so the process fails
    with pytest.raises(Valle2Error, match="health checks has ended"):
        HealthPolls(1)
