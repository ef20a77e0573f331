"""One request at a time: stage split, first audio, RTF, and the AR step beside its memory-bandwidth bound."""

from __future__ import annotations

from statistics import median
from typing import Any

from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.report import (
    markdown,
    measured_on,
    need_positive,
    percentiles,
    share,
    step_bytes,
)
from valle2.benchmarks.speed.bandwidth import read_bandwidth
from valle2.engine.bundle.precisions import STORED
from valle2.runtime import Settings, Speech, Timings, Valle2

STAGES = ("prefill", "ar", "nar", "codec", "total")
NAR_PASSES = 7


def latency(
    model: str,
    text: str,
    repeats: int,
    seed: int,
    threads: int,
    device: str = "cpu",
    frames: int = 0,
    **where: Any,
) -> dict[str, Any]:
    """Time whole and streamed synthesis in turns, after a warm-up of each.

    frames: what is spoken, for a model that never ends; 0 lets `<eos>` end it. where: other arguments of
    `Valle2.load`. The bandwidth is the host's, so it bounds a "cpu" alone.
    """
    need_positive(repeats=repeats, threads=threads)
    tts = Valle2.load(model, threads=threads, device=device, **where)
    voice = tts.voice(tts.voices()[0])
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=frames)
    whole: list[Speech] = []
    streamed: list[Timings] = []
    for _ in range(repeats + 1):
        whole.append(tts.synthesize(text, voice, settings))
        stream = tts.stream(text, voice, settings)
        list(stream)
        streamed.append(stream.speech().timings)
    bandwidth = read_bandwidth(threads) if device == "cpu" else 0.0
    figures = report(tts, whole[1:], streamed[1:], bandwidth, where.get("precision", STORED))
    return figures | {"text": text, "device": device, **where} | measured_on(tts, seed, threads)


def report(
    tts: Valle2, whole: list[Speech], streamed: list[Timings], bandwidth: float, precision: str
) -> dict[str, Any]:
    """Medians and 95th percentiles in milliseconds."""
    times = [speech.timings for speech in whole]
    audio, steps = times[0].audio, max(1, times[0].steps - 1)
    step = median(t.ar for t in times) / steps
    filled = positions(tts, whole[0])
    bytes_read = step_bytes(tts.manifest.sizes, filled, precision) if bandwidth else 0.0
    return {
        "stages": {stage: percentiles([getattr(t, stage) for t in times], 50, 95) for stage in STAGES},
        "first_audio": {
            "whole": percentiles([t.first_audio for t in times], 50, 95),
            "streamed": percentiles([t.first_audio for t in streamed], 50, 95),
        },
        "ar_step_ms": round(1000 * step, 3),
        "ar_step_bytes": round(bytes_read),
        "bound_fraction": share(bytes_read, bandwidth, step),
        "read_gb_per_s": round(bandwidth / 1e9, 2),
        "nar_pass_ms": round(1000 * median(t.nar for t in times) / NAR_PASSES, 3),
        "rtf": round(median(t.total for t in times) / audio, 4),
        "streamed_rtf": round(median(t.total for t in streamed) / streamed[0].audio, 4),
        "audio_seconds": round(audio, 3),
        "steps": times[0].steps,
        "repeats": len(times),
    }


def positions(tts: Valle2, speech: Speech) -> float:
    """Cache positions in the middle of the decode."""
    assert tts.front is not None
    voice, group = tts.voice(tts.voices()[0]), tts.manifest.sizes["group_size"]
    prefix = len(tts.front.encode(voice.transcript)) + 2 + len(voice.codes) // group
    return prefix + len(speech.codes) / group / 2


def table(result: dict[str, Any]) -> str:
    """The stages as a Markdown table."""
    rows = [[stage, row["p50"], row["p95"]] for stage, row in result["stages"].items()]
    rows += [[f"first audio, {kind}", row["p50"], row["p95"]] for kind, row in result["first_audio"].items()]
    return markdown(["stage", "median, ms", "p95, ms"], rows)


def panels(result: dict[str, Any]) -> list[Panel]:
    """Where the time goes, and when the first audio comes."""
    parts = STAGES[:-1]
    split = Line("whole", (), [result["stages"][stage]["p50"] for stage in parts])
    first = [Line(kind, (), [row["p50"]]) for kind, row in result["first_audio"].items()]
    stages = Panel("one request", "median, ms", [split], stacked=parts)
    return [stages, Panel("first audio", "median, ms", first, stacked=("first audio",))]
