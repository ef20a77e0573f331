"""A stream's first chunk has fewer codebooks; the second chunk's passes compute the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import edit_manifest, toy_checkpoint, write_toy
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export import export_checkpoint
from valle2.runtime import Prompt, Request, Settings, Speech, Stream, Valle2
from valle2.runtime.audio.chunks import chunk_sizes
from valle2.runtime.generation import engine
from valle2.runtime.generation.nar_runner import NARState
from valle2.runtime.generation.utterance import Utterance
from valle2.runtime.types import FIRST_CHUNK_CODEBOOKS, Codes

TEXT = "hello there fox"
SETTINGS = Settings(top_p=0.9, threshold=1.0, max_frames=60, min_frames=50, retries=0)
SECONDS = 0.1
FRAMES = 8
"""Of a first chunk of 0.1 s."""
ALL = 8


def streamed(tts: Valle2, voice: Prompt, settings: Settings, text: str = TEXT, **how: Any) -> Speech:
    with tts.stream(text, voice, settings, first_chunk_seconds=SECONDS, **how) as stream:
        list(stream)
        return stream.speech()


def column(tts: Valle2, text: Codes, codes: Codes, prompt_length: int, codebook: int) -> Codes:
    """(T,) int64, one codebook of the frames after the prompt, straight from the graph."""
    inputs = NARInputs(
        text=text[None],
        text_lengths=np.array([len(text)]),
        codes=codes[None],
        prompt_lengths=np.array([prompt_length]),
        frame_lengths=np.array([len(codes)]),
        stage=np.array(codebook),
    )
    found = np.asarray(tts.model.nar.backend.run(inputs.feeds(), ("codes_out",))["codes_out"])
    return found[0, : len(codes) - prompt_length].astype(np.int64)


def expected(tts: Valle2, voice: Prompt, first: Codes, few: int, books: int = ALL) -> tuple[Codes, Codes]:
    """Codes of a sentence, chunk by chunk, from its codebook 0 (T,) and the definition of a stream.

    Returns:
        (T, Q) as they are given out, and (T, Q) as later chunks hear them.
    """
    encoded = tts.encode(Request(TEXT, voice, SETTINGS))
    text = tts.model.layout.texts(encoded.sentences[0].text)[1]
    prompt = encoded.prompt[len(encoded.prompt) % tts.model.ar.group_size :]
    assert tts.model.neutral is not None
    heard, given, sizes = prompt, [], chunk_sizes(SECONDS, tts.need_codec().frame_rate)
    start = 0
    while start < len(first):
        end = min(len(first), start + next(sizes))
        codes = np.concatenate([heard, np.tile(tts.model.neutral, (end - start, 1))])
        codes[len(heard) :, 0] = first[start:end]
        again = FRAMES if start == FRAMES and few < books else 0
        begin = len(heard) - again
        for codebook in range(1, books if start else few):
            new = column(tts, text, codes, begin, codebook)
            at = again if codebook < few else 0
            codes[begin + at :, codebook] = new[at:]
        given.append(codes[len(heard) :])
        heard, start = codes, end
    return np.concatenate(given), heard[len(prompt) :]


@pytest.fixture
def states(tts: Valle2, monkeypatch: pytest.MonkeyPatch) -> list[NARState]:
    """The state of every pass of the NAR."""
    found, run = list[NARState](), tts.model.nar.run

    def noted(rows: Sequence[NARState], codebook: int) -> None:
        found.extend(rows)
        run(rows, codebook)

    monkeypatch.setattr(tts.model.nar, "run", noted)
    return found


@pytest.mark.parametrize(("few", "books"), [(1, 8), (2, 8), (3, 8), (7, 8), (8, 8), (2, 4), (4, 4), (1, 2)])
def test_the_codes_are_those_of_the_definition(tts: Valle2, voice: Prompt, few: int, books: int) -> None:
    """With all codebooks at first it is the definition of streams before there were fewer."""
    found = streamed(tts, voice, replace(SETTINGS, codebooks=books, first_chunk_codebooks=few)).codes
    given, heard = expected(tts, voice, found[:, 0], few, books)
    assert len(found) > 3 * FRAMES, "too few chunks for this test"
    assert np.array_equal(found, given)
    assert tts.model.neutral is not None
    assert (found[:FRAMES, few:] == tts.model.neutral[few:]).all(), "what was sent has not changed"
    assert np.array_equal(heard[FRAMES:], found[FRAMES:]) and np.array_equal(heard[:, :few], found[:, :few])
    if few < books:
        assert (heard[:FRAMES, few:books] != tts.model.neutral[few:books]).any(axis=0).all()


def test_later_chunks_hear_all_codebooks_and_no_pass_is_added(
    tts: Valle2, voice: Prompt, states: list[NARState]
) -> None:
    streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=ALL))
    whole = len(states)
    states.clear()
    speech = streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=2))
    assert len(states) == whole - (ALL - 2)
    first, second, third = (list({id(state): state for state in states}.values()))[:3]
    prompt = first.prompt_length
    assert second.prompt_length == prompt and second.begun == FRAMES
    assert third.prompt_length == prompt + len(second.target) and third.begun == 0
    assert np.array_equal(third.codes[: third.prompt_length], second.codes)
    assert np.array_equal(second.fresh, speech.codes[FRAMES : FRAMES + len(second.fresh)])


def test_less_than_half_of_the_passes_come_before_the_first_audio(
    tts: Valle2, voice: Prompt, states: list[NARState]
) -> None:
    with tts.stream(TEXT, voice, SETTINGS, first_chunk_seconds=SECONDS) as stream:
        assert len(next(stream))
        assert len(states) == FIRST_CHUNK_CODEBOOKS - 1 < (ALL - 1) / 2


def test_the_default(tts: Valle2, voice: Prompt) -> None:
    usual = streamed(tts, voice, SETTINGS).codes
    given = streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=FIRST_CHUNK_CODEBOOKS)).codes
    assert np.array_equal(usual, given)
    assert not np.array_equal(usual, streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=ALL)).codes)
    fewer = streamed(tts, voice, replace(SETTINGS, codebooks=2)).codes
    assert np.array_equal(
        fewer, streamed(tts, voice, replace(SETTINGS, codebooks=2, first_chunk_codebooks=2)).codes
    )


def test_whole_speech_has_all_codebooks(tts: Valle2, voice: Prompt) -> None:
    whole = tts.synthesize(TEXT, voice, SETTINGS).codes
    assert np.array_equal(
        whole, tts.synthesize(TEXT, voice, replace(SETTINGS, first_chunk_codebooks=1)).codes
    )
    with tts.stream(TEXT, voice, SETTINGS, first_chunk_seconds=0) as stream:
        list(stream)
        assert np.array_equal(stream.speech().codes, whole)


def test_a_bundle_without_neutral_codes_keeps_all(broken: Path, voice: Prompt) -> None:
    def without(values: dict[str, Any]) -> None:
        del values["codec"]["neutral"]

    with Valle2.load(broken) as tts:
        wanted = streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=ALL)).codes
    edit_manifest(broken, without)
    with Valle2.load(broken) as tts:
        assert np.array_equal(streamed(tts, voice, SETTINGS).codes, wanted)


def test_company_changes_no_code(tts: Valle2, voice: Prompt) -> None:
    """Streams that start in each other's midst, with different settings, and one that is cancelled."""
    settings = [replace(SETTINGS, seed=seed, first_chunk_codebooks=few) for seed, few in enumerate((2, 3, 8))]
    alone = [streamed(tts, voice, each) for each in settings]
    started, pending = list[Stream](), list(settings)
    other = tts.stream(TEXT, voice, replace(SETTINGS, seed=9), first_chunk_seconds=SECONDS)
    next(other)
    while pending or not all(stream.done for stream in started):
        if pending:
            each = pending.pop(0)
            started.append(tts.stream(TEXT, voice, each, first_chunk_seconds=SECONDS))
        for _ in range(7):
            tts.step()
        other.close()  # its first chunk is out, and its second is not
    for stream, speech in zip(started, alone, strict=True):
        assert np.array_equal(stream.speech().codes, speech.codes)
        assert np.allclose(stream.speech().audio, speech.audio, atol=1e-5)
    assert not tts.engine.busy and tts.engine.scheduler.active == 0


def test_a_chunk_that_completes_the_first_shares_passes_with_others(tts: Valle2, voice: Prompt) -> None:
    """Rows of one pass are a second chunk, a first chunk and a whole sentence, of other lengths."""
    runner, neutral, random = tts.model.nar, tts.model.neutral, np.random.default_rng(0)
    text, first = random.integers(0, 20, 12), random.integers(0, 1024, 40)

    def rows() -> list[NARState]:
        begun = runner.start(text, voice.codes, first[:8], 3, neutral)
        for codebook in begun.passes:
            runner.run([begun], codebook)
        second = runner.start(text, begun.codes, first[8:25], ALL, neutral, len(begun.fresh), begun.codebooks)
        return [
            second,
            runner.start(text[:9], voice.codes[:20], first[:8], ALL, neutral),
            runner.start(text, voice.codes, first, ALL, neutral),
        ]

    alone, together = rows(), rows()
    for codebook in range(1, ALL):
        runner.run(together, codebook)
        for state in alone:
            runner.run([state], codebook)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.codes, other.codes)


@pytest.mark.parametrize("frames", [1, FRAMES - 1, FRAMES, FRAMES + 1])
def test_speech_that_ends_about_the_first_chunks_end(
    tts: Valle2, voice: Prompt, frames: int, states: list[NARState]
) -> None:
    few = replace(SETTINGS, min_frames=0, max_frames=frames, first_chunk_codebooks=2)
    found = streamed(tts, voice, few)
    given, _ = expected(tts, voice, found.codes[:, 0], 2)
    assert np.array_equal(found.codes, given)
    assert len(states) == (1 if len(found.codes) <= FRAMES else 1 + (ALL - 1)), "nothing is completed in vain"


def test_a_second_attempt_starts_afresh(tts: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence in one chunk that counts as silent is said again, with a first chunk of its own."""
    short = replace(SETTINGS, min_frames=0, max_frames=FRAMES - 2, first_chunk_codebooks=2, retries=1)
    usual = Utterance.reject_silence

    def rejected(sentence: Utterance) -> bool:
        monkeypatch.setattr(engine, "SILENT", 0.0)
        return usual(sentence)

    monkeypatch.setattr(engine, "SILENT", 10.0)
    monkeypatch.setattr(Utterance, "reject_silence", rejected)
    found = streamed(tts, voice, short)
    assert found.timings.retries == 1
    given, _ = expected(tts, voice, found.codes[:, 0], 2)
    assert np.array_equal(found.codes, given)


def test_later_sentences_have_all_codebooks(tts: Valle2, voice: Prompt, states: list[NARState]) -> None:
    streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=2), "hello there. the fox!")
    kinds = {id(state): state for state in states}.values()
    assert [state.codebooks for state in kinds].count(2) == 1


@pytest.fixture(scope="module")
def demo() -> Iterator[Valle2]:
    with Valle2.load("demo", threads=1) as model:
        yield model


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_words_and_speed(demo: Valle2, speed: float) -> None:
    """Word times come from codebook 0, and so does the length."""
    text, voice = "Good day to you all.", demo.voice("elm")
    settings = Settings(max_frames=120)
    few, whole = (
        streamed(
            demo, voice, replace(settings, first_chunk_codebooks=books), text, speed=speed, timestamps=True
        )
        for books in (2, ALL)
    )
    assert few.words == whole.words and few.words and len(few.audio) == len(whole.audio)


def test_no_click_where_the_codebooks_change(demo: Valle2) -> None:
    """The largest jump of the wave about the first joint is no larger than elsewhere in the speech."""
    voice, rate = demo.voice("elm"), demo.sample_rate
    with demo.stream("Has anyone fed the rabbits?", voice, Settings(), first_chunk_seconds=0.4) as stream:
        pieces = list(stream)
    joint, audio = len(pieces[0]), np.concatenate(pieces)
    jumps = np.abs(np.diff(audio))
    near = slice(joint - rate // 50, joint + rate // 50)
    assert jumps[near].max() <= np.quantile(jumps, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 4, 8])
def test_every_group_size(group: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    bundle = export_checkpoint(write_toy(folder, toy_checkpoint(group, 400)), tmp_path / "bundle")
    with Valle2.load(bundle) as tts:
        voice = tts.voice("amber")
        for few in (2, ALL):
            found = streamed(tts, voice, replace(SETTINGS, first_chunk_codebooks=few)).codes
            assert np.array_equal(found, expected(tts, voice, found[:, 0], few)[0])
