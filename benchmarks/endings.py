"""`bench endings`: how requests of random text and voice end, and how far speech stays from the guards.

The guards of the runtime are `min_frames`, `loop_frames` and the limit of length. For each request this
module keeps the finish reason, the retries, the level, the longest time without a new code and the pace. A
file of results can be continued.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from valle2.benchmarks.quality.sentences import read_sentences
from valle2.benchmarks.quality.speakers import recordings
from valle2.benchmarks.quality.sweep import hashes, model_hash, save
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.stages import load_model
from valle2.engine.errors import Valle2Error
from valle2.runtime import Prompt, Request, Settings, Speech, Valle2
from valle2.runtime.audio.levels import frame_levels
from valle2.runtime.errors import SynthesisError
from valle2.runtime.generation.repetition import LoopDetector
from valle2.runtime.generation.token_layout import PACE_EXTRA
from valle2.runtime.types import EOS, MAX_FRAMES, REPETITION

Result = dict[str, Any]
BATCH, SLOTS = 64, 8
"""Requests after which the file is written, and rows that are decoded at once."""
QUIET_DB = -50.0
"""Speech whose loudest 20 ms are below this level of full scale is silent."""
NO_SPEECH, ERROR = "no_speech", "error"
REASONS = (EOS, REPETITION, MAX_FRAMES, NO_SPEECH, ERROR)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended.

    Args:
        reason: one of `REASONS`. retries: sentences that were made again. sentences: in the text.
        frames, ids: of the speech and of its text. expected: frames of the text at the prompt's pace.
        level: of the loudest 20 ms in dB of full scale. run: most frames without a new code.
        text, voice: what was asked for, of a request that did not end by `<eos>` or is silent.
    """

    reason: str
    retries: int
    sentences: int
    frames: int
    ids: int
    expected: int
    level: float
    run: int
    text: str = ""
    voice: str = ""

    @property
    def silent(self) -> bool:
        """Was it answered as a success, without speech?"""
        return self.reason not in (NO_SPEECH, ERROR) and self.level < QUIET_DB


COLUMNS = [entry.name for entry in fields(Ending)]


def endings(
    model: str,
    sentences: Path,
    prompts: Path | None,
    requests: int,
    retries: int,
    codebooks: int,
    seed: int,
    threads: int,
    precisions: Sequence[str],
    out: Path,
    progress: Callable[[str], None],
) -> Result:
    """Make the requests that the file `out` does not have yet. Returns the content of the file.

    Args:
        sentences: lines of text, of which the random texts are made. prompts: recordings of further voices,
            each with its words in a .txt file. retries: of each sentence.
        codebooks: of the speech, 0 for all. The NAR does not decide how a request ends.

    Raises:
        Valle2Error: the file was made from other inputs, or one of the inputs cannot be used.
    """
    lines = read_sentences(sentences, 10**9)
    inputs = {"model": model_hash(model), "lines": len(lines), "prompts": hashes(prompts)}
    inputs |= {"retries": retries, "seed": seed, "codebooks": codebooks}
    result = resumed(out, inputs)
    for precision in precisions:
        rows = result["rows"].setdefault(precision, [])
        with load_model(model, threads=threads, precision=precision, slots=SLOTS) as tts:
            settings = replace(tts.settings(), retries=retries, codebooks=codebooks)
            voices = [*map(tts.voice, tts.voices()), *recorded(tts, prompts)]
            while len(rows) < requests:
                numbers = range(len(rows), min(len(rows) + BATCH, requests))
                made = [random_request(settings, lines, voices, seed, number) for number in numbers]
                rows.extend(list(astuple(one)) for one in spoken(tts, made))
                save(out, result)
                progress(f"{precision}: {len(rows)} of {requests}")
            about = measured_on(tts.manifest, seed, threads)
    return result | about


def resumed(out: Path, inputs: Result) -> Result:
    """The result of an earlier run, or an empty one.

    Raises:
        Valle2Error: the file is of another kind, or was made from other inputs.
    """
    empty: Result = {"inputs": inputs, "columns": COLUMNS, "rows": {}}
    if not out.exists():
        return empty
    try:
        kept = json.loads(out.read_text(encoding="utf-8"))
        same = kept["inputs"] == inputs and kept["columns"] == COLUMNS
    except (OSError, ValueError, KeyError, TypeError):
        raise Valle2Error(f"{out} is no file of `bench endings`; pass another --out") from None
    if not same:
        raise Valle2Error(
            f"{out} has results of another model, text, seed, prompts or codebooks; pass another --out"
        )
    return empty | {"rows": kept["rows"]}


def recorded(tts: Valle2, folder: Path | None) -> list[Prompt]:
    """The recordings of a folder as voices."""
    found = recordings(folder) if folder else []
    return [tts.prompt(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()) for path in found]


def random_request(
    settings: Settings, lines: Sequence[str], voices: Sequence[Prompt], seed: int, number: int
) -> Request:
    """The request of a number: always the same one."""
    source = random.Random(f"{seed} {number}")
    text, voice = random_text(source, lines), source.choice(voices)
    return Request(text, voice, replace(settings, seed=seed + number))


def random_text(source: random.Random, lines: Sequence[str]) -> str:
    """One or two lines; words that make no sentence; one word; a number."""
    words = [word for line in source.choices(lines, k=12) for word in [source.choice(line.split())]]
    kind = source.random()
    if kind < 0.4:
        return source.choice(lines)
    if kind < 0.5:
        return " ".join(source.choices(lines, k=2))
    if kind < 0.8:
        return " ".join(words[: source.randint(2, 12)]) + source.choice(".?!")
    if kind < 0.9:
        return words[0]
    number = source.random() * 10 ** source.randint(0, 5)
    return source.choice((f"{number:.0f}", f"{number:,.0f}", f"{number:.2f}"))


def spoken(tts: Valle2, requests: Sequence[Request]) -> list[Ending]:
    """Speak requests side by side; how each ended."""
    encoded = [tts.encode(request) for request in requests]
    collectors = [tts.start(one)[1] for one in encoded]
    while not all(collector.done for collector in collectors):
        tts.step()
    found = []
    for request, one, collector in zip(requests, encoded, collectors, strict=True):
        counts = [(len(s.text.ids), s.text.prompt_length or 0) for s in one.sentences]
        ids = sum(length - transcript for length, transcript in counts)
        pace = len(one.prompt) / max(1, counts[0][1])
        ending = ending_of(collector.speech(tts.sample_rate), len(counts), ids, round(pace * ids))
        if collector.error:
            silent = isinstance(collector.error, SynthesisError)
            ending = replace(ending, reason=NO_SPEECH if silent else ERROR)
        if ending.reason != EOS or ending.silent:
            ending = replace(ending, text=request.text, voice=request.prompt.name)
        found.append(ending)
    return found


def ending_of(speech: Speech, sentences: int, ids: int, expected: int) -> Ending:
    """What is kept of one speech."""
    level = -200.0
    if len(speech.audio):
        level = round(float(frame_levels(speech.audio.astype(np.float64), speech.sample_rate).max()), 1)
    codes = speech.codes[:, 0].tolist()
    reason, retries = speech.finish_reason, speech.timings.retries
    return Ending(reason, retries, sentences, len(codes), ids, expected, level, longest_run(codes))


def longest_run(codes: Sequence[int]) -> int:
    """Most frames in a row without a new code."""
    detector, longest = LoopDetector(len(codes)), 0
    for code in codes:
        detector.add(code)
        longest = max(longest, detector.run)
    return longest


def table(result: Result) -> str:
    """One row per precision: endings, and the extremes of the speech that ended by `<eos>`."""
    head = ["precision", "requests", *REASONS, "silent", "made again"]
    head += ["longest without a new code, frames", "fewest frames per id", "most times the prompt's pace"]
    lines = []
    for precision, rows in result["rows"].items():
        found = [Ending(*row) for row in rows]
        reasons = Counter(one.reason for one in found)
        ended = [one for one in found if one.reason == EOS]
        far: list[float] = [max((one.run for one in ended), default=0)]
        far.append(round(min((one.frames / one.ids for one in ended), default=0.0), 2))
        paces = [(one.frames - PACE_EXTRA * one.sentences) / max(1, one.expected) for one in ended]
        far.append(round(max(paces, default=0.0), 2))
        counts = [reasons[reason] for reason in REASONS]
        silent, again = sum(one.silent for one in found), sum(one.retries for one in found)
        lines.append([precision, len(found), *counts, silent, again, *far])
    return markdown(head, lines)
