"""`nar_prompt_seconds`: the NAR hears the end of the prompt, with its text; the AR hears all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.errors import SettingsError
from valle2.runtime.generation.alignment import AlignmentTable, spoken_id
from valle2.runtime.generation.nar_runner import NARState

SHORT = Settings(top_p=0.5, max_frames=40)
TEXT = "hello there. the fox!"


@pytest.fixture(scope="module")
def demo() -> Valle2:
    return Valle2.load("demo")


def first_passes(tts: Valle2, monkeypatch: pytest.MonkeyPatch) -> list[NARState]:
    """The states of all first passes of the NAR, from now on."""
    found, run = list[NARState](), tts.model.nar.run

    def noted(states: Sequence[NARState], codebook: int) -> None:
        if codebook == 1:
            found.extend(replace(state, codes=state.codes.copy()) for state in states)
        run(states, codebook)

    monkeypatch.setattr(tts.model.nar, "run", noted)
    return found


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.2, 60])
def test_the_nar_hears_the_end_of_the_prompt_and_the_ar_all_of_it(
    tts: Valle2, voice: Prompt, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an alignment table the NAR reads the whole text."""
    passes = first_passes(tts, monkeypatch)
    whole = tts.synthesize(TEXT, voice, SHORT).codes
    few = tts.synthesize(TEXT, voice, replace(SHORT, nar_prompt_seconds=seconds)).codes
    assert np.array_equal(few[:, 0], whole[:, 0]), "the AR must hear the whole prompt"
    full, short = passes[0], passes[len(passes) // 2]
    frames = min(full.prompt_length, max(1, round(seconds * tts.need_codec().frame_rate)))
    assert short.prompt_length == frames
    assert np.array_equal(short.codes, full.codes[len(full.codes) - len(short.codes) :])
    assert np.array_equal(short.text, full.text)
    assert np.array_equal(few, whole) == (frames == full.prompt_length)


def test_the_text_begins_where_the_prompt_does(demo: Valle2, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, voice = first_passes(demo, monkeypatch), demo.voice("amber")
    sentences = "Good day. How are you?"
    demo.synthesize(sentences, voice, Settings(max_frames=20))
    demo.synthesize(sentences, voice, Settings(max_frames=20, nar_prompt_seconds=1.5))
    lost = [len(full.text) - len(short.text) for full, short in zip(passes[:2], passes[2:], strict=True)]
    assert lost[0] == lost[1], "the transcript before every sentence is the same"
    for full, short in zip(passes[:2], passes[2:], strict=True):
        assert short.prompt_length == 112
        assert np.array_equal(short.text, full.text[lost[0] :])
    transcript = len(demo.need_front().encode(voice.transcript))
    said = lost[0] / transcript
    assert abs(said - (1 - 1.5 / 3.44)) < 0.15, "the text that is left out lasts as long as the codes"


def test_tokens_and_streams_take_it_too(demo: Valle2, monkeypatch: pytest.MonkeyPatch) -> None:
    voice, settings = demo.voice("amber"), Settings(max_frames=60, nar_prompt_seconds=1.0)
    passes = first_passes(demo, monkeypatch)
    with demo.stream("Good day.", voice, settings, first_chunk_seconds=0.2) as stream:
        list(stream)
    lengths = [state.prompt_length + state.begun for state in passes]
    assert lengths[0] == 75 and lengths == sorted(set(lengths)), "the speech before a chunk is heard whole"
    ids = next(demo.need_front().encode_request(voice.transcript, "Good day.", 600))
    arguments: dict[str, Any] = {"prompt_text_length": ids.prompt_length}
    passes.clear()
    demo.generate_codes(ids.ids, voice.codes, settings, **arguments)
    demo.generate_codes(ids.ids, voice.codes, settings)
    known, unknown = passes
    assert known.prompt_length == unknown.prompt_length == 75
    assert len(known.text) < len(unknown.text) == len(ids.ids) + 1


def test_requests_side_by_side_may_differ(tts: Valle2, voice: Prompt) -> None:
    settings = [replace(SHORT, nar_prompt_seconds=seconds) for seconds in (0, 0.05, 0.1)]
    together = tts.synthesize_batch([Request(TEXT, voice, each) for each in settings])
    for speech, each in zip(together, settings, strict=True):
        assert np.array_equal(speech.codes, tts.synthesize(TEXT, voice, each).codes)


@pytest.mark.parametrize("value", [-1, 61, float("nan"), True, "3"])
def test_a_value_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"nar_prompt_seconds is .*; expected a number from 0.0 to 60.0"):
        Settings(nar_prompt_seconds=value)


def test_the_id_that_is_spoken_in_a_frame() -> None:
    ids = np.array([3, 1, 2])
    costs = np.full((4, 1024), 160, np.uint8)
    costs[np.arange(4), np.arange(4)] = 0
    table = AlignmentTable(np.arange(4), costs, np.full(4, 3.0, np.float32))
    codes = np.array([3, 3, 1, 1, 1, 2])
    assert [spoken_id(table, ids, codes, frame) for frame in range(6)] == [0, 0, 1, 1, 1, 2]
    assert spoken_id(table, ids, codes[:1], 0) == 0, "fewer frames than ids"
