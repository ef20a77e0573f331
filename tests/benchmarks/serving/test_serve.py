"""`bench serve` on the toy bundle: every figure is there, and the server survives."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.benchmarks.report.statistics import silences
from valle2.benchmarks.serving.client import Answer, address
from valle2.benchmarks.serving.in_turns import InTurns
from valle2.benchmarks.serving.load import serve, summary, table
from valle2.benchmarks.serving.open_load import FIRST_CHUNKS, IN_TURNS, load_at_shares, medians, outcome
from valle2.benchmarks.serving.open_load import table as load_table
from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.main import main


@pytest.mark.serial
def test_a_short_run(bundle: Path) -> None:
    result = serve(str(bundle), "hello there", 3, 2, 5.0, 3, 1, 2, chaos_seconds=3.0, soak_requests=4)
    assert json.loads(json.dumps(result)) == result
    assert result["open_loop"]["statuses"] == {"200": 3} and not result["open_loop"]["cut"]
    chaos, soak = result["chaos"], result["soak"]
    assert chaos["next_request_identical"] and not chaos["other_5xx"] and not chaos["leaked_slots"]
    assert chaos["health_polls"] and not chaos["health_other_than_200"]
    assert chaos["half_open"] and not chaos["connections_left"]
    assert soak["whole"] == 4 and soak["last_mib"] > 10
    assert "next_request_identical" in table(result) and result["first_audio"]["http_part_ms"] > 0


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
    result = load_at_shares(str(bundle), "hello there", [0.5, 2.0], 4, 2, 3, 1, 2)
    assert json.loads(json.dumps(result)) == result
    assert [(row["share"], row["order"]) for row in result["rows"]] == [
        (share, order) for share in (0.5, 2.0) for order in (IN_TURNS, FIRST_CHUNKS)
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
