"""`min_frames`: speech does not end before it; the rule in numpy, the settings, and what a user gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from valle2.engine.bundle.contract import CODEBOOK_SIZE, EOS_CODE
from valle2.runtime import Prompt, Request, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import SettingsError
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.sampling import sample_group
from valle2.runtime.types import EOS, MAX_FRAMES, Codes, Settings

TEXT = "hello there"
RULE = {"top_p": 1.0, "window": 10, "threshold": 1.0}
NONE = np.zeros(0, np.int64)
PLAIN = Settings(top_p=1.0, threshold=1.0, retries=0, codebooks=1)


def certain(*codes: int) -> NDArray[np.float32]:
    """Logits (G, 1025) of a group of which each slot has one class that is nearly certain."""
    logits = np.zeros((len(codes), CODEBOOK_SIZE + 1), np.float32)
    logits[range(len(codes)), codes] = 30.0
    return logits


def drawn(
    logits: NDArray[np.float32], least: int, history: Codes = NONE, draws: float = 0.5, **rule: float
) -> tuple[list[int], bool]:
    pairs = np.full((len(logits), 2), draws, np.float32)
    codes, grown, ended = sample_group(logits, history, pairs, **{**RULE, **rule}, least=least)  # type: ignore[arg-type]
    assert grown.tolist() == [*history, *codes]
    return codes.tolist(), ended


@pytest.mark.parametrize("top_p", [0.0, 0.5, 1.0])
def test_the_end_is_rejected_among_the_first_slots(top_p: float) -> None:
    logits = certain(EOS_CODE, 7, EOS_CODE, 9)
    assert drawn(logits, 0, top_p=top_p) == ([], True)
    codes, ended = drawn(logits, 1, top_p=top_p)
    assert len(codes) == 2 and ended and codes[1] == 7
    codes, ended = drawn(logits, 3, top_p=top_p)
    assert len(codes) == 4 and not ended and codes[1] == 7 and codes[3] == 9
    assert drawn(certain(7, 8), 2, top_p=top_p) == ([7, 8], False)
    assert drawn(certain(7, EOS_CODE), -5, top_p=top_p) == ([7], True)


def test_without_the_end_the_second_likeliest_is_taken() -> None:
    logits = certain(EOS_CODE)
    logits[0, [3, 4]] = 20.0, 21.0
    assert drawn(logits, 1, top_p=0.0) == ([4], False)
    assert drawn(logits, 1, history=np.array([4]), top_p=0.0, threshold=0.1, draws=0.999) == ([3], False)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_no_random_number_ends_it(draw: float, threshold: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = rng.normal(0, 3, (2, CODEBOOK_SIZE + 1)).astype(np.float32)
        logits[:, EOS_CODE] = 40.0
        codes, ended = drawn(logits, 2, draws=draw, threshold=threshold)
        assert len(codes) == 2 and not ended


def test_the_codes_have_the_distribution_of_a_masked_end() -> None:
    rng, counts = np.random.default_rng(1), np.zeros(3)
    logits = np.full((1, CODEBOOK_SIZE + 1), -60.0, np.float32)
    logits[0, [5, 6, EOS_CODE, 7]] = np.log([0.4, 0.1, 0.3, 0.2])
    for pair in rng.random((4000, 1, 2), dtype=np.float32):
        codes, _, ended = sample_group(logits, NONE, pair, **RULE, least=1)  # type: ignore[arg-type]
        assert not ended
        counts[codes[0] - 5] += 1
    assert np.abs(counts / counts.sum() - np.array([4, 1, 2]) / 7).max() < 0.03


def test_speech_is_as_long_as_asked(tts: Valle2, voice: Prompt) -> None:
    settings = replace(PLAIN, loop_frames=0)
    tried = ((seed, tts.synthesize(TEXT, voice, replace(settings, seed=seed))) for seed in range(200))
    seed, short = next((seed, len(made.codes)) for seed, made in tried if made.finish_reason == EOS)
    for wanted in (short + 1, short + 20):
        settings = replace(settings, seed=seed, min_frames=wanted)
        found = tts.synthesize(TEXT, voice, settings)
        assert len(found.codes) >= wanted
        alone = tts.synthesize(TEXT, voice, replace(settings, min_frames=1))
        assert np.array_equal(found.codes[:short, 0], alone.codes[:, 0]), "up to there the codes are the same"
        other = Request(TEXT, voice, replace(settings, seed=seed + 1, max_frames=0))
        together = tts.synthesize_batch([other, Request(TEXT, voice, settings), other])
        assert np.array_equal(together[1].codes, found.codes)


def test_a_text_has_at_least_what_it_needs(
    tts: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    redraws = list[int]()
    usual = ARRunner.redraw

    def counted(self: ARRunner, *args: object, **more: object) -> object:
        redraws.append(1)
        return usual(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ARRunner, "redraw", counted)
    ids = tts.encode(Request(TEXT, voice)).sentences[0].text
    needed = 2 * (len(ids.ids) - (ids.prompt_length or 0))
    for seed in range(200):
        settings = replace(PLAIN, seed=seed)
        free = tts.generate_codes(ids.ids, voice.codes, settings)
        if len(free.codes) < needed:
            break
    assert len(free.codes) < needed, "codes without audio end where the model ends them"
    assert not redraws
    heard = tts.synthesize(TEXT, voice, settings)
    assert redraws and len(heard.codes) >= needed
    assert np.array_equal(heard.codes[: len(free.codes), 0], free.codes[:, 0])


def test_more_than_the_usual_limit(tts: Valle2, voice: Prompt) -> None:
    usual = tts.synthesize(TEXT, voice, Settings(top_p=1.0, threshold=1.0, loop_frames=0, seed=1))
    settings = Settings(top_p=1.0, threshold=1.0, loop_frames=0, seed=1, min_frames=len(usual.codes) + 100)
    found = tts.synthesize(TEXT, voice, settings)
    assert len(found.codes) >= settings.min_frames


def test_fewest_above_most_is_refused() -> None:
    with pytest.raises(SettingsError, match="min_frames is 9; expected at most max_frames, which is 8"):
        Settings(min_frames=9, max_frames=8)
    assert Settings(min_frames=8, max_frames=8).min_frames == 8
    with pytest.raises(SettingsError, match="min_frames"):
        Settings(min_frames=-1)


def test_say_takes_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "o.wav"), "--model", str(bundle), "--threads", "1", "--json"]
    assert main(["say", TEXT, *out, "--min-frames", "40", "--max-frames", "40"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finish_reason"] in (EOS, MAX_FRAMES) and result["seconds"] == round(40 * 320 / 24000, 3)
    assert main(["say", TEXT, *out, "--min-frames", "41", "--max-frames", "40"]) == 1
