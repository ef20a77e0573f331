"""Our runtime against eager PyTorch: the same model, text, prompt and seed, in turns, in one process.

Figures are medians over the repeats, ratios eager / ours.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from valle2.benchmarks.eager import EagerTimes, synthesize
from valle2.benchmarks.latency import NAR_PASSES, STAGES
from valle2.benchmarks.report import markdown, measured_on, need_positive
from valle2.engine.errors import Valle2Error
from valle2.engine.manifest import sha256
from valle2.export import read_checkpoint
from valle2.export.checkpoint import weights_file
from valle2.runtime import Settings, Timings, Valle2


def compare(checkpoint: Path, model: str, text: str, repeats: int, seed: int, threads: int) -> dict[str, Any]:
    """Time both sides in turns.

    Raises:
        Valle2Error: the bundle is not the checkpoint's, or the two sides do not make the same codes, so
            that their times mean nothing.
    """
    need_positive(repeats=repeats, threads=threads)
    torch.set_num_threads(threads)
    tts = Valle2.load(model, threads=threads)
    if sha256(weights_file(checkpoint)) != tts.manifest.provenance.get("checkpoint_sha256"):
        raise Valle2Error(f"{tts.path} was not exported from {checkpoint}; pass the checkpoint it came from")
    eager_model = read_checkpoint(checkpoint)
    assert tts.front is not None
    voice = tts.voice(tts.voices()[0])
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed)
    ids = tts.front.encode(f"{voice.transcript} {text}")
    words = np.append(ids, tts.manifest.sizes["vocab_size"])
    prompt = voice.codes[len(voice.codes) % tts.manifest.sizes["group_size"] :]
    ours, eager = list[Timings](), list[EagerTimes]()
    for repeat in range(repeats + 1):
        speech = tts.synthesize(text, voice, settings)
        codes, times = synthesize(eager_model, words, prompt, settings, speech.timings.steps)
        if not np.array_equal(codes[:, 0], speech.codes[:, 0]):
            raise Valle2Error("the runtime and eager PyTorch made other codes; compare bundle and checkpoint")
        if repeat:  # the first is the warm-up
            ours.append(speech.timings)
            eager.append(times)
    return report(ours, eager, tts, text, seed, threads)


def report(
    ours: list[Timings], eager: list[EagerTimes], tts: Valle2, text: str, seed: int, threads: int
) -> dict[str, Any]:
    """Medians in milliseconds, ratios, and what they were measured on."""
    steps = max(1, ours[0].steps - 1)
    rows = {}
    for stage in STAGES:
        own, base = (1000 * median(getattr(t, stage) for t in side) for side in (ours, eager))
        rows[stage] = {"ours_ms": round(own, 2), "eager_ms": round(base, 2), "ratio": round(base / own, 2)}
    return {
        "stages": rows,
        "ratios": {
            "ar_step": rows["ar"]["ratio"],
            "nar_pass": rows["nar"]["ratio"],
            "end_to_end": rows["total"]["ratio"],
        },
        "ar_step_ms": round(rows["ar"]["ours_ms"] / steps, 3),
        "nar_pass_ms": round(rows["nar"]["ours_ms"] / NAR_PASSES, 3),
        "rtf": round(rows["total"]["ours_ms"] / 1000 / ours[0].audio, 4),
        "eager_rtf": round(rows["total"]["eager_ms"] / 1000 / ours[0].audio, 4),
        "audio_seconds": round(ours[0].audio, 3),
        "steps": ours[0].steps,
        "repeats": len(ours),
        "text": text,
        "torch": torch.__version__,
    } | measured_on(tts, seed, threads)


def table(result: dict[str, Any]) -> str:
    """The stages as a Markdown table."""
    rows = [[stage, row["eager_ms"], row["ours_ms"], row["ratio"]] for stage, row in result["stages"].items()]
    return markdown(["stage", "eager fp32, ms", "valle2, ms", "ratio"], rows)
