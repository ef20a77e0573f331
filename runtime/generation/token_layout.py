"""How a model's input sequence is laid out: marks around the text, languages, the NAR's text, length limits.

The defaults are VALL-E 2. The bundle of a related model lists its differences under `rules` in the manifest.
This module knows ids, never text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from valle2.engine import Manifest, ManifestError, whole_text
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.engine.bundle.schema import check_rules
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.types import Codes, check_span

PHONEMES = "phonemes"
"""The front end whose ids are phonemes, spaces and marks. Its speech has a highest speed."""
FEWEST_PER_PHONEME = 2
"""Frames, at 75 a second. The demo's own voices take 4.1 to 14.5, and nobody speaks twice as fast."""
FASTEST_SHARE = 0.25
"""Of the time that a text takes at the prompt's pace. The demo's voices take 0.7 or more."""
PACE_FACTOR, PACE_EXTRA = 3, 75
"""Speech runs on if it is longer than so many times what its text takes at the prompt's pace, and so many
frames."""
LEAST_PACE = 4
"""Frames per id. A prompt that is faster has a transcript with words that are not spoken in it."""


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The input layout of one model.

    Args:
        vocab_size, max_text, codebooks: the manifest's sizes.
        text_begin, text_end: marks, which are ids before and after the text. They are added unless the ids
            already have them.
        nar_text: what the NAR reads. "same": the AR's text; "bare": that without marks; "target": the text to
            speak with marks, without the prompt's transcript.
        languages: number of languages, 0 for a model without. Each has its own rows in the text embedding.
        code_bos: the codes begin with a start position. A model without one needs a prompt.
        whole_text: text positions attend to each other in both directions, so the text is prefilled in one
            call.
        frames_per_token, frames_extra, frames_least: the default length limit; see `frame_limit`.
        fewest_per_token: frames per id of the text to speak below which speech is not complete; see
            `fewest_frames`.
        limit_counts_prompt: ids of the prompt's transcript count towards that limit.
        max_positions: most positions of text, start, prompt and speech together; 0 for no limit.
        family: the code base that the weights come from.
    """

    vocab_size: int
    max_text: int
    codebooks: int = CODEBOOKS
    text_begin: tuple[int, ...] = ()
    text_end: tuple[int, ...] = ()
    nar_text: str = "same"
    languages: int = 0
    code_bos: bool = True
    whole_text: bool = False
    frames_per_token: int = 16
    frames_extra: int = 0
    frames_least: int = 150
    fewest_per_token: int = 0
    limit_counts_prompt: bool = False
    max_positions: int = 0
    family: str = "valle2"

    @classmethod
    def of(cls, manifest: Manifest) -> TokenLayout:
        """The layout of a bundle.

        Raises:
            ManifestError: the manifest's rules are unknown or malformed.
        """
        sizes = {name: manifest.sizes[name] for name in ("vocab_size", "max_text")}
        sizes["codebooks"] = manifest.sizes.get("codebooks", CODEBOOKS)
        defaults: dict[str, Any] = {"text_end": [sizes["vocab_size"]]}
        if manifest.text.get("kind") == PHONEMES:
            defaults["fewest_per_token"] = FEWEST_PER_PHONEME
        try:
            values = defaults | check_rules(manifest.rules) | {"whole_text": whole_text(manifest)} | sizes
        except ValueError as error:
            raise ManifestError(
                f"the manifest's rules are damaged ({error}); export the bundle again"
            ) from None
        marks = {name: tuple(values.get(name, ())) for name in ("text_begin", "text_end")}
        return cls(**values | marks)

    def texts(self, text: Text) -> tuple[Codes, Codes]:
        """The ids (L,) int64 for the AR and for the NAR, with marks.

        A model with languages has one copy of the vocabulary for each. Ids point into their language's copy.
        """
        bare, prompt = self.bare(text.ids), text.prompt_length
        marks = self.marks(text.ids)
        if text.languages is not None:
            bare = bare + self.vocab_size * text.languages[marks : len(text.languages) - marks]
        begin, end = (np.array(ids, np.int64) for ids in (self.text_begin, self.text_end))
        whole = np.concatenate([begin, bare, end])
        skipped = text.unheard
        if self.nar_text == "target" and prompt is not None:
            skipped = max(0, prompt - marks - marks)
        if self.nar_text == "bare":
            return whole, bare[skipped:]
        return whole, np.concatenate([begin, bare[skipped:], end])

    def marks(self, ids: Codes) -> int:
        """How many marks the ids have at each end: 0 or 1."""
        begin, end = self.text_begin, self.text_end
        return int(len(ids) > 1 and (int(ids[0]),) == begin and (int(ids[-1]),) == end)

    def bare(self, ids: Codes) -> Codes:
        """The ids without the marks at their ends."""
        return ids[1:-1] if self.marks(ids) else ids

    def frame_limit(self, text_length: int, prompt_frames: int, prompt_length: int | None = None) -> int:
        """Most frames of speech for a request that sets no limit; at least 1.

        The limit is max(frames_least, frames_per_token * n + frames_extra) for n ids of the text to speak.
        A model with frames_per_token 0 has no such limit. `max_positions` may lower it. So may the pace of
        the prompt: a text that its speaker would say in N frames has no more than
        max(frames_least, PACE_FACTOR * N + PACE_EXTRA).

        Args:
            text_length: ids that the AR reads. prompt_frames: P of the prompt's codes.
            prompt_length: how many of the ids are the transcript's; None if unknown, so that all count.
        """
        limit = np.iinfo(np.int32).max
        if self.frames_per_token:
            spoken = text_length - (0 if self.limit_counts_prompt else prompt_length or 0)
            limit = max(self.frames_least, self.frames_per_token * spoken + self.frames_extra)
        if prompt_length and prompt_frames:
            pace = max(LEAST_PACE, prompt_frames / prompt_length)
            expected = pace * (text_length - prompt_length)
            limit = min(limit, max(self.frames_least, int(PACE_FACTOR * expected) + PACE_EXTRA))
        if self.max_positions:
            limit = min(limit, self.max_positions - text_length - self.code_bos - prompt_frames)
        return int(max(1, limit))

    def fewest_frames(self, text_length: int, prompt_length: int | None, prompt_frames: int = 0) -> int:
        """Fewest frames of speech that the text can be said in; at least 1.

        Without `fewest_per_token` it is a share of what the text takes at the prompt's pace.

        Args:
            text_length: ids of transcript and text. prompt_length: those of the transcript, None if unknown.
            prompt_frames: P of the prompt's codes.
        """
        if prompt_length is None:
            return 1
        pace = FASTEST_SHARE * prompt_frames / prompt_length if prompt_length else 0.0
        per_token = self.fewest_per_token or min(FEWEST_PER_PHONEME, pace)
        return max(1, int(per_token * (text_length - prompt_length)))


@dataclass(frozen=True, slots=True)
class Text:
    """Ids of a prompt's transcript and of the text to speak after it.

    Args:
        ids: (S,) int64. languages: (S,) int64, one per id, or None.
        prompt_length: how many ids are the transcript's, marks at its ends included if `ids` has marks; None
            if unknown.
        unheard: how many of the transcript's ids, without marks, the NAR does not read, because its prompt
            begins after their sounds.
    """

    ids: Codes
    languages: Codes | None = None
    prompt_length: int | None = None
    unheard: int = 0


def check_text(
    layout: TokenLayout,
    text_ids: Codes,
    language_ids: Codes | None,
    prompt_length: int | None,
    prompt_frames: int,
) -> Text:
    """Check ids from outside and convert them to int64.

    Args:
        text_ids: (S,) integers. language_ids: (S,) integers, or None for a model without languages.
        prompt_length: how many ids are the transcript's, None if unknown.
        prompt_frames: P of the prompt's codes.

    Raises:
        TextError: a shape or value is wrong, or something that this model needs is missing.
    """
    ids = np.asarray(text_ids)
    longest = layout.max_text - len(layout.text_begin) - len(layout.text_end)
    bare = layout.bare(ids) if ids.ndim == 1 else ids
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(bare) <= longest:
        raise TextError(f"text ids are {ids.dtype} {ids.shape}; expected integers of 1 to {longest} ids")
    if bare.min() < 0 or bare.max() >= layout.vocab_size:
        raise TextError(f"text ids span {ids.min()}..{ids.max()}; expected 0..{layout.vocab_size - 1}")
    if prompt_length is not None and not 0 <= prompt_length <= len(ids):
        raise TextError(
            f"prompt_text_length is {prompt_length}; expected 0 to {len(ids)}, the number of text ids"
        )
    if layout.nar_text == "target" and prompt_length is None and prompt_frames:
        raise TextError(
            "this model's NAR reads only the text to speak; pass prompt_text_length, the number of ids of "
            "the prompt's transcript"
        )
    return Text(ids.astype(np.int64), check_languages(layout, language_ids, len(ids)), prompt_length)


def check_languages(layout: TokenLayout, language_ids: Codes | None, count: int) -> Codes | None:
    """Check language ids from outside and convert them to (S,) int64; None for a model without languages.

    Args:
        count: S, the number of text ids.

    Raises:
        TextError: a shape or value is wrong, or they are missing.
    """
    if not layout.languages:
        if language_ids is not None:
            raise TextError(f"a {layout.family} model has no languages; leave language_ids out")
        return None
    if language_ids is None:
        raise TextError(
            f"this model needs language_ids; pass one of 0..{layout.languages - 1} per text id "
            "(en 0, zh 1, ja 2)"
        )
    languages = np.asarray(language_ids)
    if languages.shape != (count,) or languages.dtype.kind not in "iu":
        raise TextError(f"language_ids are {languages.dtype} {languages.shape}; expected integers ({count},)")
    if languages.min() < 0 or languages.max() >= layout.languages:
        raise TextError(
            f"language_ids span {languages.min()}..{languages.max()}; expected 0..{layout.languages - 1}"
        )
    return languages.astype(np.int64)


def check_prompt(layout: TokenLayout, prompt_codes: Codes) -> Codes:
    """Check prompt codes from outside and convert them to (P, Q) int64.

    Raises:
        PromptError: a shape or value is wrong, or P is 0 and the model needs a prompt.
    """
    prompt = np.asarray(prompt_codes)
    if prompt.ndim != 2 or prompt.shape[1] != layout.codebooks or prompt.dtype.kind not in "iu":
        raise PromptError(
            f"prompt codes are {prompt.dtype} {prompt.shape}; expected integers (P, {layout.codebooks})"
        )
    if not len(prompt) and not layout.code_bos:
        raise PromptError(
            "the prompt is empty and this model has no start position; pass a prompt of at least one frame"
        )
    check_span(prompt)
    return prompt.astype(np.int64)
