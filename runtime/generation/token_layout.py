"""What a model wants around its tokens: marks in the text, languages, the NAR's text, limits of length.

The defaults are VALL-E 2; a bundle of a relative lists what differs under `rules` in its manifest. It knows
ids, never text.
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


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Rules of one model.

    Args:
        vocab_size, max_text, codebooks: of the manifest's sizes.
        text_begin, text_end: ids put before and after a text, unless they are there already.
        nar_text: the NAR reads the "same" text, the text without its marks ("bare"), or the target's alone
            in its marks ("target").
        languages: languages of the text; each has its own rows in the text table. 0: none.
        code_bos: the codes begin with a start position; without one, a prompt is needed.
        whole_text: the AR's text sees itself both ways, so that it is prefilled in one call.
        frames_per_token, frames_extra, frames_least: the limit of length when none is asked for, per text id
            of the AR; 0 per token: no such limit. limit_counts_prompt: ids of the prompt's transcript count
            too, else those of the text to be spoken alone, where it is known which they are.
        max_positions: of text, start, prompt and speech; 0: none.
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
    limit_counts_prompt: bool = False
    max_positions: int = 0
    family: str = "valle2"

    @classmethod
    def of(cls, manifest: Manifest) -> TokenLayout:
        """The rules of a bundle.

        Raises:
            ManifestError: unknown or malformed rules.
        """
        sizes = {name: manifest.sizes[name] for name in ("vocab_size", "max_text")}
        sizes["codebooks"] = manifest.sizes.get("codebooks", CODEBOOKS)
        usual: dict[str, Any] = {"text_end": [sizes["vocab_size"]]}
        try:
            values = usual | check_rules(manifest.rules) | {"whole_text": whole_text(manifest)} | sizes
        except ValueError as error:
            raise ManifestError(f"the manifest's rules are damaged ({error})") from None
        marks = {name: tuple(values.get(name, ())) for name in ("text_begin", "text_end")}
        return cls(**values | marks)

    def texts(self, text: Text) -> tuple[Codes, Codes]:
        """Ids (L,) as the AR and as the NAR read them, marks and languages included."""
        bare, prompt = self.bare(text.ids), text.prompt_length
        marks = self.marks(text.ids)
        if text.languages is not None:
            bare = bare + self.vocab_size * text.languages[marks : len(text.languages) - marks]
        begin, end = (np.array(ids, np.int64) for ids in (self.text_begin, self.text_end))
        whole = np.concatenate([begin, bare, end])
        if self.nar_text == "bare":
            return whole, bare
        if self.nar_text == "same" or prompt is None:
            return whole, whole
        skipped = max(0, prompt - marks - marks)
        return whole, np.concatenate([begin, bare[skipped:], end])

    def marks(self, ids: Codes) -> int:
        """1 if the ids came with a mark at each end, else 0."""
        begin, end = self.text_begin, self.text_end
        return int(len(ids) > 1 and (int(ids[0]),) == begin and (int(ids[-1]),) == end)

    def bare(self, ids: Codes) -> Codes:
        """The ids without the marks at their ends."""
        return ids[1:-1] if self.marks(ids) else ids

    def frame_limit(self, text_length: int, prompt_frames: int, prompt_length: int | None = None) -> int:
        """Frames of speech when no other limit is asked for; a large number where the model has no rule.

        text_length: ids the AR reads; prompt_length: how many of them are the transcript's, if known.
        """
        limit = np.iinfo(np.int32).max
        if self.frames_per_token:
            spoken = text_length - (0 if self.limit_counts_prompt else prompt_length or 0)
            limit = max(self.frames_least, self.frames_per_token * spoken + self.frames_extra)
        if self.max_positions:
            limit = min(limit, self.max_positions - text_length - self.code_bos - prompt_frames)
        return int(max(1, limit))


@dataclass(frozen=True, slots=True)
class Text:
    """Ids of a prompt's transcript and the target text.

    ids: (S,) int64. languages: (S,) int64, one per id, or None. prompt_length: how many ids are the
    transcript's, counted with a mark at each end if the ids have them; None where it was not said.
    """

    ids: Codes
    languages: Codes | None = None
    prompt_length: int | None = None


def check_text(
    layout: TokenLayout,
    text_ids: Codes,
    language_ids: Codes | None,
    prompt_length: int | None,
    prompt_frames: int,
) -> Text:
    """Ids, languages and the transcript's length as the model takes them.

    Raises:
        TextError: wrong shapes, values out of range, or something missing that this model needs.
    """
    ids = np.asarray(text_ids)
    longest = layout.max_text - len(layout.text_begin) - len(layout.text_end)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not 1 <= len(layout.bare(ids)) <= longest:
        raise TextError(f"text ids are {ids.dtype} {ids.shape}; expected whole numbers (1..{longest},)")
    if layout.bare(ids).min() < 0 or layout.bare(ids).max() >= layout.vocab_size:
        raise TextError(f"text ids span {ids.min()}..{ids.max()}; expected 0..{layout.vocab_size - 1}")
    if prompt_length is not None and not 0 <= prompt_length <= len(ids):
        raise TextError(f"prompt_text_length is {prompt_length}; expected 0 to the {len(ids)} text ids")
    if layout.nar_text == "target" and prompt_length is None and prompt_frames:
        raise TextError(
            "this model's NAR reads the target text alone; pass prompt_text_length, the ids of the transcript"
        )
    return Text(ids.astype(np.int64), check_languages(layout, language_ids, len(ids)), prompt_length)


def check_languages(layout: TokenLayout, language_ids: Codes | None, count: int) -> Codes | None:
    """One language per id, or None for a model without languages."""
    if not layout.languages:
        if language_ids is not None:
            raise TextError(f"a {layout.family} model has no languages; leave language_ids out")
        return None
    if language_ids is None:
        raise TextError(
            f"this model needs language_ids, one of 0..{layout.languages - 1} per text id (en 0, zh 1, ja 2)"
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
    """Prompt codes (P, Q) as int64.

    Raises:
        PromptError: another shape, codes out of range, or none where the model needs some.
    """
    prompt = np.asarray(prompt_codes)
    if prompt.ndim != 2 or prompt.shape[1] != layout.codebooks or prompt.dtype.kind not in "iu":
        raise PromptError(
            f"prompt codes are {prompt.dtype} {prompt.shape}; expected integers (P, {layout.codebooks})"
        )
    if not len(prompt) and not layout.code_bos:
        raise PromptError("this model has no start mark, so its speech needs a prompt of at least one frame")
    check_span(prompt)
    return prompt.astype(np.int64)
