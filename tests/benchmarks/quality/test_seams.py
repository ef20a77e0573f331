"""Joints of streams: which are flagged and which are not, where they are, and their tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.benchmarks.conftest import a_score
from valle2.benchmarks.quality import sweep as sweeping
from valle2.benchmarks.quality.conditions import Condition
from valle2.benchmarks.quality.evaluate import run_streams, streams
from valle2.benchmarks.quality.scores import COLUMNS, summarise
from valle2.benchmarks.quality.seams import clicks, joint_scores, joints_of, seam_ranks
from valle2.benchmarks.quality.sweep import measured, resumed, upgraded
from valle2.benchmarks.quality.tables import tables
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS

RATE = 24000
AT = np.array([9012, 18015, 30011])
"""Where the sine of 120 samples neither crosses zero nor turns."""
Wave = NDArray[np.float32]


def sine(noise: float = 0.0) -> Wave:
    """Two seconds of 200 Hz."""
    wave: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * 200 / RATE * np.arange(2 * RATE))
    return np.asarray(wave + np.random.default_rng(0).normal(0, noise, len(wave)), np.float32)


def pieces(wave: Wave) -> list[Wave]:
    return np.split(wave, AT)


def speech_like(seed: int) -> Wave:
    """Two seconds of noise whose spectrum and loudness change as in speech."""
    rng = np.random.default_rng(seed)
    knots = np.linspace(0, 2 * RATE, 21)
    places = np.arange(2 * RATE)
    loud, colour = (np.interp(places, knots, rng.uniform(0.1, 0.9, 21)) for _ in range(2))
    noise = rng.normal(0, 0.1, 2 * RATE + 1)
    return (loud * (noise[1:] - colour * noise[:-1])).astype(np.float32)


def skipped(wave: Wave) -> Wave:
    """One sample is missing at every joint."""
    return np.concatenate([piece[i > 0 :] for i, piece in enumerate(pieces(wave))])


def stepped(wave: Wave) -> Wave:
    """Every other piece is offset by a fiftieth of full scale."""
    return np.concatenate([piece + np.float32(0.02 * (i % 2)) for i, piece in enumerate(pieces(wave))])


def quieter(wave: Wave) -> Wave:
    return np.concatenate([piece * np.float32(1 - 0.2 * (i % 2)) for i, piece in enumerate(pieces(wave))])


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("spoil", [skipped, stepped, quieter])
def test_a_cut_is_flagged(spoil: Callable[[Wave], Wave], noise: float) -> None:
    wave = spoil(sine(noise))
    joints = AT - np.arange(3) if spoil is skipped else AT
    assert clicks(wave, joints, RATE).all()
    assert seam_ranks(wave, joints, RATE).mean() > 0.9


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_an_untouched_wave_is_not(noise: float) -> None:
    at = np.arange(5000, 40000, 2501)
    assert not clicks(sine(noise), at, RATE).any()
    assert 0.2 < seam_ranks(sine(noise), at, RATE).mean() < 0.8


def test_a_change_behind_a_cross_fade_is_heard_by_its_spectrum_alone() -> None:
    """A cross-fade to another sound does not click, but its flux stands out. One sound does neither."""
    found = []
    for seed in range(4):
        wave, other = speech_like(seed), speech_like(seed + 100)
        other[1:] = np.diff(other)  # brighter
        ramp = np.interp(np.arange(len(wave)), [*AT[[1, 1]] + [0, 640], *AT[[2, 2]] + [0, 640]], [0, 1, 1, 0])
        joined = (wave * (1 - ramp) + 3 * other * ramp).astype(np.float32)
        found.append([(seam_ranks(w, AT[1:], RATE).mean(), clicks(w, AT[1:], RATE)) for w in (wave, joined)])
    plain, spoilt = (np.mean([pair[i][0] for pair in found]) for i in (0, 1))
    assert 0.3 < plain < 0.7 and spoilt > 0.9, (plain, spoilt)
    assert np.mean([pair[1][1] for pair in found]) < 0.1


def test_scores_are_sums_over_joints_beside_the_whole() -> None:
    wave = sine(1e-3)
    scores = joint_scores(pieces(stepped(wave)), [wave], RATE)
    assert scores["joints"] == 3 and scores["click"] == 3 and scores["click_whole"] == 0
    assert scores["seam"] > scores["seam_whole"]
    same = joint_scores(pieces(wave), [wave], RATE)
    assert (same["seam"], same["click"]) == (same["seam_whole"], same["click_whole"])
    assert joint_scores([wave], [wave], RATE) == {}  # no joint
    assert joint_scores(pieces(wave), [wave[1:]], RATE) == {}  # not the same utterance
    assert joint_scores(np.split(wave[:900], [400]), [wave[:900]], RATE) == {}  # no other place


def test_sentences_and_empty_pieces_are_no_joints() -> None:
    lengths = ([0, 30, 20, 10, 40, 0, 60], [50, 10, 100])
    streamed, whole = ([np.zeros(n, np.float32) for n in side] for side in lengths)
    assert joints_of(streamed, whole).tolist() == [30, 100]


def test_streams_are_measured_where_they_were_cut(tts: Valle2, voice: Prompt) -> None:
    """Two sentences of random codes: the whole has two ends, the stream has more."""
    settings = Settings(top_p=1.0, seed=3, max_frames=60)
    requests = [Request("hello there. the fox.", voice, settings)]
    (speech,), (joints,) = streams(tts, requests)
    (whole,) = run_streams(tts, requests, 0.0)
    assert len(speech.audio) == len(whole.speech().audio)
    assert len(whole.pieces) == 3  # two sentences and a pause
    assert joints["joints"] >= 2
    (again,) = run_streams(tts, requests, FIRST_CHUNK_SECONDS)
    ends = np.cumsum([len(piece) for piece in again.pieces])
    sentences = np.cumsum([len(piece) for piece in whole.pieces])
    places = np.array(sorted({*ends.tolist()} - {0, *sentences.tolist()}))
    assert joints["joints"] == len(places)
    assert joints["seam"] == seam_ranks(speech.audio, places, speech.sample_rate).sum()
    assert joints["seam_whole"] == seam_ranks(whole.speech().audio, places, speech.sample_rate).sum()


def a_sweep() -> dict[str, object]:
    """Two conditions of six sentences: streams click at one of two joints, the whole never does."""
    whole = [a_score(i) for i in range(6)]
    streamed = [replace(s, joints=2, seam=1.4, click=1, seam_whole=1.1, errors=1) for s in whole]
    conditions = {"whole": (False, whole), "streamed": (True, streamed)}
    return {
        "axes": {"streaming": list(conditions)},
        "inputs": {"models": {}, "hard": []},
        "columns": COLUMNS,
        "unmeasured": {},
        "conditions": {
            name: {
                "condition": {"streamed": flag},
                "summary": summarise(scores),
                "rows": [s.row() for s in scores],
            }
            for name, (flag, scores) in conditions.items()
        },
    }


def older(result: dict[str, object]) -> dict[str, object]:
    """As a version without joints wrote it, which called a condition a cell."""
    before = COLUMNS[: COLUMNS.index("joints")]
    made: dict[str, Any] = copy.deepcopy(result) | {"columns": before}
    for one in made["conditions"].values():
        one["rows"] = [row[: len(before)] for row in one["rows"]]
        for name in ("seam", "click", "seam_whole", "click_whole"):
            one["summary"].pop(name, None)
        one["cell"] = one.pop("condition")
    made["cells"] = made.pop("conditions")
    return made


def test_the_table_has_both_and_their_difference() -> None:
    head, _, whole, streamed, cost = tables(a_sweep())["streaming"].splitlines()
    assert head.endswith("| seam rank % | clicks % |")
    assert whole.endswith("| 55.0 (55.0 to 55.0) | 0.0 (0.0 to 0.0) |")
    assert streamed.endswith("| 70.0 (70.0 to 70.0) | 50.0 (50.0 to 50.0) |")
    assert cost.startswith("| streamed - whole | 10.0 (10.0 to 10.0) |")
    assert cost.endswith("| 15.0 (15.0 to 15.0) | 50.0 (50.0 to 50.0) |")


def test_a_file_of_an_earlier_version(tmp_path: Path) -> None:
    """Its tables lack joints. A sweep continues from it and measures only the streams again."""
    old = older(a_sweep())
    (tmp_path / "q.json").write_text(json.dumps(old))
    text = tables(upgraded(copy.deepcopy(old)))["streaming"]
    assert "seam" not in text and "click" not in text and "streamed - whole" in text
    kept = resumed(tmp_path / "q.json", {"inputs": old["inputs"]})
    assert kept["columns"] == COLUMNS
    base = Condition("G2", 0.2, 1.0)
    whole, streamed = kept["conditions"]["whole"], kept["conditions"]["streamed"]
    kept["conditions"] = {base.name: whole, replace(base, streamed=True).name: streamed}
    assert measured(base, kept) and not measured(replace(base, streamed=True), kept)
    assert not measured(replace(base, top_p=0.5), kept)
    assert len(sweeping.scores_of(kept, base.name)) == 6
