"""Marks, languages and length limits of the model families, on ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valle2.engine import ManifestError, read_manifest
from valle2.runtime.errors import TextError
from valle2.runtime.generation.token_layout import Text, TokenLayout, check_text

IDS = np.array([5, 6, 7, 8])
MARKED = np.array([1, 5, 6, 7, 8, 2])
LIFEITENG = TokenLayout(40, 100, text_begin=(1,), text_end=(2,), nar_text="target", code_bos=False)
VALLEX = TokenLayout(40, 100, languages=3)
AMPHION = TokenLayout(40, 100, text_begin=(40,), text_end=(41,), nar_text="bare", max_positions=60)


def test_a_bundle_without_rules_is_valle2(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    layout = TokenLayout.of(manifest)
    assert layout.text_end == (manifest.sizes["vocab_size"],) and layout.codebooks == 8
    assert not layout.whole_text and TokenLayout.of(replace(manifest, rules={"family": "vallex"})).whole_text
    whole, same = layout.texts(Text(IDS))
    assert whole.tolist() == same.tolist() == [*IDS, manifest.sizes["vocab_size"]]
    assert layout.frame_limit(4, 0) == 150 and layout.frame_limit(20, 0) == 320
    assert layout.frame_limit(60, 0, 45) == 240 and layout.frame_limit(60, 0, 59) == 150
    assert replace(layout, limit_counts_prompt=True).frame_limit(60, 0, 45) == 960


def test_the_pace_of_the_prompt_bounds_the_speech() -> None:
    layout = replace(VALLEX, frames_per_token=0)
    assert layout.frame_limit(60, 0, 20) == layout.frame_limit(60, 200) == np.iinfo(np.int32).max
    assert layout.frame_limit(60, 200, 20) == 3 * 10 * 40 + 75
    assert layout.frame_limit(60, 10, 20) == 3 * 4 * 40 + 75, "nobody speaks so fast: the transcript is wrong"
    assert layout.frame_limit(21, 200, 20) == layout.frames_least
    assert VALLEX.frame_limit(60, 200, 20) == 16 * 40 and VALLEX.frame_limit(60, 80, 20) == 3 * 4 * 40 + 75


@pytest.mark.parametrize(("ids", "length"), [(IDS, 1), (MARKED, 3)])
def test_marks_are_added_once_and_the_target_is_found(ids: np.ndarray, length: int) -> None:
    whole, target = LIFEITENG.texts(check_text(LIFEITENG, ids, None, length, 9))
    assert whole.tolist() == MARKED.tolist() and target.tolist() == [1, 6, 7, 8, 2]


def test_the_nar_may_read_the_text_without_marks() -> None:
    whole, bare = AMPHION.texts(Text(IDS))
    assert whole.tolist() == [40, 5, 6, 7, 8, 41] and bare.tolist() == IDS.tolist()
    assert replace(AMPHION, frames_per_token=0).frame_limit(6, 10) == 60 - 6 - 1 - 10


def test_each_language_has_its_own_copy_of_the_vocabulary() -> None:
    text = check_text(VALLEX, IDS, np.array([2, 2, 0, 1]), None, 0)
    assert VALLEX.texts(text)[0].tolist() == [85, 86, 7, 48]


@pytest.mark.parametrize(
    ("layout", "languages", "length", "message"),
    [
        (VALLEX, None, None, "needs language_ids"),
        (VALLEX, np.array([0, 1]), None, "expected integers"),
        (VALLEX, np.array([0, 1, 2, 3]), None, r"span 0\.\.3"),
        (AMPHION, np.array([0, 0, 0, 0]), None, "no languages"),
        (LIFEITENG, None, None, "pass prompt_text_length"),
        (LIFEITENG, None, 5, "prompt_text_length is 5"),
    ],
)
def test_missing_and_wrong_ids_are_refused(
    layout: TokenLayout, languages: np.ndarray | None, length: int | None, message: str
) -> None:
    with pytest.raises(TextError, match=message):
        check_text(layout, IDS, languages, length, 9)


@pytest.mark.parametrize(
    "bad", [{"surplus": 1}, {"nar_text": "x"}, {"text_end": 3}, {"text_begin": ["a"]}, {"code_bos": 1}]
)
def test_bad_rules_are_refused(bundle: Path, bad: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match="rules"):
        TokenLayout.of(replace(read_manifest(bundle), rules=bad))
