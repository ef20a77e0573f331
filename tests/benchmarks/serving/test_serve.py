"""`bench serve` on the toy bundle: every figure is there, and the server survives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.benchmarks.serving.client import Answer
from valle2.benchmarks.serving.load import serve, summary, table


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
