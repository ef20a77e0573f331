"""Fewer codebooks: what is computed is the same, and the rest costs no pass of the NAR."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import edit_manifest
from valle2.engine.bundle.schema import QUALITIES
from valle2.runtime import Prompt, Settings, Valle2
from valle2.runtime.errors import SettingsError

SHORT = Settings(top_p=0.5, max_frames=40)
TEXT = "hello there. the fox!"


@pytest.fixture
def passes(tts: Valle2, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codebook of every pass of the NAR."""
    found, run = list[int](), tts.model.nar.run

    def noted(states: Any, codebook: int) -> None:
        found.extend(codebook for _ in states)
        run(states, codebook)

    monkeypatch.setattr(tts.model.nar, "run", noted)
    return found


@pytest.mark.parametrize("codebooks", [1, 2, 4, 7, 8])
def test_the_first_codebooks_are_those_of_all(
    tts: Valle2, voice: Prompt, passes: list[int], codebooks: int
) -> None:
    whole = tts.synthesize(TEXT, voice, SHORT).codes
    assert passes == [*range(1, 8)] * 2
    passes.clear()
    found = tts.synthesize(TEXT, voice, replace(SHORT, codebooks=codebooks)).codes
    assert np.array_equal(found[:, :codebooks], whole[:, :codebooks])
    assert passes == [*range(1, codebooks)] * 2
    neutral = tts.manifest.codec["neutral"]
    assert (found[:, codebooks:] == neutral[codebooks:]).all()


def test_the_first_chunk_of_a_stream_has_the_same_codes_with_fewer_codebooks(
    tts: Valle2, voice: Prompt
) -> None:
    """Later chunks differ: to the NAR the codes of earlier chunks are part of the prompt."""
    few, whole = replace(SHORT, codebooks=3), replace(SHORT, codebooks=0)
    found, wanted = (codes_of_stream(tts, voice, settings) for settings in (few, whole))
    assert np.array_equal(found[:6, :3], wanted[:6, :3])
    assert np.array_equal(found[:, 0], wanted[:, 0]), "the AR does not see the other codebooks"


def codes_of_stream(tts: Valle2, voice: Prompt, settings: Settings) -> np.ndarray[Any, Any]:
    with tts.stream(TEXT, voice, settings, first_chunk_seconds=0.1) as stream:
        assert len(list(stream)) > 3
        return stream.speech().codes


def test_only_the_first_chunk_of_a_stream_has_its_own_number(
    tts: Valle2, voice: Prompt, passes: list[int]
) -> None:
    codes_of_stream(tts, voice, replace(SHORT, codebooks=4, first_chunk_codebooks=2))
    assert passes[0] == 1 and passes[1:4] == [1, 2, 3]
    assert passes[1:] == [1, 2, 3] * (len(passes[1:]) // 3)
    passes.clear()
    tts.synthesize(TEXT, voice, replace(SHORT, first_chunk_codebooks=2))
    assert passes == [*range(1, 8)] * 2, "whole sentences have no first chunk"


def test_requests_side_by_side_may_differ(tts: Valle2, voice: Prompt) -> None:
    from valle2.runtime import Request

    settings = [replace(SHORT, codebooks=number) for number in (0, 2, 5)]
    together = tts.synthesize_batch([Request(TEXT, voice, each) for each in settings])
    for speech, each in zip(together, settings, strict=True):
        assert np.array_equal(speech.codes, tts.synthesize(TEXT, voice, each).codes)


def test_tokens_take_the_setting_too(tts: Valle2, voice: Prompt) -> None:
    assert tts.front is not None
    ids = tts.front.encode("hello fox")
    whole, few = (
        tts.generate_codes(ids, voice.codes, replace(SHORT, codebooks=number)).codes for number in (0, 2)
    )
    assert np.array_equal(few[:, :2], whole[:, :2]) and not np.array_equal(few, whole)


def test_a_bundle_without_neutral_codes_says_so(broken: Path) -> None:
    def without(values: dict[str, Any]) -> None:
        del values["codec"]["neutral"]

    edit_manifest(broken, without)
    with Valle2.load(broken) as tts:
        voice = tts.voice("amber")
        assert len(tts.synthesize("hello", voice, replace(SHORT, codebooks=8)).audio)
        with pytest.raises(SettingsError, match=r"codebooks is 3, but .* export it again"):
            tts.synthesize("hello", voice, replace(SHORT, codebooks=3))


def test_named_qualities(tts: Valle2) -> None:
    own = tts.settings()
    assert tts.settings("full") == own
    assert tts.settings("fast") == replace(own, **QUALITIES["fast"])
    with pytest.raises(SettingsError, match="expected one of fast, balanced, full"):
        tts.settings("best")
