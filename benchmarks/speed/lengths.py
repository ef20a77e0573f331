"""`bench lengths`: one request at a time against its length: stages, first audio, underruns.

Each length is an upper limit for a model that draws `<eos>`, so its text must be long enough. The length that
was spoken is reported. An underrun is a wait of a stream's playback of more than 100 ms.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import UNDERRUN_SECONDS, longest_wait, percentiles
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.latency import STAGES
from valle2.benchmarks.stages import load_model
from valle2.runtime import Prompt, Settings, Timings, Valle2

SECONDS = (2.5, 5.0, 10.0, 20.0)
Result = dict[str, Any]


@dataclass(slots=True)
class Timed:
    """Whole and streamed synthesis at one length, and the longest wait of each stream in seconds."""

    whole: list[Timings] = field(default_factory=list)
    streamed: list[Timings] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def run(self, tts: Valle2, text: str, voice: Prompt, settings: Settings) -> None:
        """Synthesise once whole, then once as a stream."""
        self.whole.append(tts.synthesize(text, voice, settings).timings)
        began, heard = time.perf_counter(), list[tuple[float, float]]()
        stream = tts.stream(text, voice, settings)
        for audio in stream:
            heard.append((time.perf_counter() - began, len(audio) / stream.sample_rate))
        self.streamed.append(stream.speech().timings)
        self.waits.append(longest_wait(heard))


def lengths(
    model: str,
    text: str,
    repeats: int,
    seed: int,
    threads: int,
    precision: str = "fp32",
    seconds: Sequence[float] = SECONDS,
) -> Result:
    """Time every length in turns, after one warm-up of each. seconds: the lengths."""
    need_positive(repeats=repeats, threads=threads, lengths=min(seconds))
    tts = load_model(model, threads=threads, precision=precision)
    voice, rate = tts.voice(tts.default_voice()), tts.need_codec().frame_rate
    greedy = Settings(top_p=0.0, threshold=1.0, seed=seed, loop_frames=0, retries=0)
    timed = {length: Timed() for length in seconds}
    for _ in range(repeats + 1):
        for length, found in timed.items():
            found.run(tts, text, voice, replace(greedy, max_frames=round(length * rate)))
    rows = [row(length, found) for length, found in timed.items()]
    about = {"text": text, "precision": precision, "repeats": repeats}
    return {"lengths": rows} | about | measured_on(tts.manifest, seed, threads)


def row(length: float, found: Timed) -> Result:
    """Figures of one length. The first run was the warm-up."""
    whole, streamed, waits = found.whole[1:], found.streamed[1:], found.waits[1:]
    total, first = median(t.total for t in whole), median(t.first_audio for t in streamed)
    return {
        "asked_seconds": length,
        "audio_seconds": round(whole[0].audio, 3),
        "steps": whole[0].steps,
        "stages": {stage: percentiles([getattr(t, stage) for t in whole], 50, 95) for stage in STAGES},
        "first_audio": percentiles([t.first_audio for t in streamed], 50, 95),
        "first_audio_share": round(first / total, 4),
        "rtf": round(total / whole[0].audio, 4),
        "streamed_rtf": round(median(t.total for t in streamed) / streamed[0].audio, 4),
        "longest_wait_ms": percentiles(waits, 50, 95),
        "underruns": sum(wait > UNDERRUN_SECONDS for wait in waits),
    }


def table(result: Result) -> str:
    """One line per length."""
    head = ["audio, s", *(f"{stage}, ms" for stage in STAGES), "RTF", "first audio streamed, ms"]
    head += ["of the whole, %", "RTF streamed", "underruns"]
    rows = [
        [
            found["audio_seconds"],
            *(found["stages"][stage]["p50"] for stage in STAGES),
            found["rtf"],
            found["first_audio"]["p50"],
            round(100 * found["first_audio_share"], 1),
            found["streamed_rtf"],
            f"{found['underruns']} of {result['repeats']}",
        ]
        for found in result["lengths"]
    ]
    return markdown(head, rows)


def panels(result: Result) -> list[Panel]:
    """Times against the length, and time per stage."""
    rows = result["lengths"]
    x = [found["audio_seconds"] for found in rows]
    total = Line("whole", x, [found["stages"]["total"]["p50"] for found in rows])
    first = Line("first audio, streamed", x, [found["first_audio"]["p50"] for found in rows])
    real = Line("real time", x, [1000 * seconds for seconds in x], dashed=True)
    parts = STAGES[:-1]
    bars = [
        Line(f"{s:g} s", (), [f["stages"][p]["p50"] for p in parts]) for s, f in zip(x, rows, strict=True)
    ]
    return [
        Panel("one request, ms", "seconds of speech", [total, first, real]),
        Panel("where the time goes", "median, ms", bars, stacked=parts),
    ]
