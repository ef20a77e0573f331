"""`bench latency`: one request at a time: stages, first audio, RTF, AR step against its bandwidth bound.

With `--codebooks 8,4,3,2` it also times streams whose first chunk has so many codebooks, in turns, and says
where the time until the first audio goes. An underrun is a wait of a stream's playback of more than 100 ms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import UNDERRUN_SECONDS, longest_wait, percentiles, share
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.hardware import read_bandwidth, step_bytes
from valle2.benchmarks.stages import load_model, transcript_length
from valle2.engine.bundle.precisions import STORED
from valle2.runtime import Prompt, Settings, Speech, Timings, Valle2

STAGES = ("prefill", "ar", "nar", "codec", "total")
STARTS = ("prefill", "steps", "nar", "codec", "first_audio", "cpu")
NAR_PASSES = 7


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds until the first audio of one stream, and where they went.

    Args:
        prefill, nar, codec: in each stage. steps: what is left: the AR steps, the text and the engine.
        first_audio: in all. cpu: processor time of all threads. wait: the longest of the stream's playback.
    """

    prefill: float
    steps: float
    nar: float
    codec: float
    first_audio: float
    cpu: float
    wait: float

    @classmethod
    def of(cls, tts: Valle2, text: str, voice: Prompt, settings: Settings) -> Start:
        """Time one stream."""
        began, cpu, heard = time.perf_counter(), time.process_time(), list[tuple[float, float]]()
        with tts.stream(text, voice, settings) as stream:
            for audio in stream:
                heard.append((time.perf_counter() - began, len(audio) / stream.sample_rate))
                if len(heard) == 1:
                    cpu = time.process_time() - cpu
                    first = replace(stream.speech().timings)
            prefill = stream.speech().timings.prefill
        steps = first.first_audio - prefill - first.nar - first.codec
        return cls(prefill, steps, first.nar, first.codec, first.first_audio, cpu, longest_wait(heard))


def latency(
    model: str,
    text: str,
    repeats: int,
    seed: int,
    threads: int,
    device: str = "cpu",
    frames: int = 0,
    first_codebooks: Sequence[int] = (),
    **load_options: Any,
) -> dict[str, Any]:
    """Time whole and streamed synthesis in turns, after one warm-up of each.

    The bandwidth probe measures the host's memory, so only device "cpu" has a bandwidth bound.

    Args:
        frames: length of the speech, for a model that never draws `<eos>`; 0 lets `<eos>` end it.
        first_codebooks: numbers of codebooks of a stream's first chunk to time as well.
        load_options: other arguments of `Valle2.load`.
    """
    need_positive(repeats=repeats, threads=threads)
    tts = load_model(model, threads=threads, device=device, **load_options)
    voice = tts.voice(tts.voices()[0])
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=frames, loop_frames=0, retries=0)
    whole: list[Speech] = []
    streamed: list[Timings] = []
    starts: dict[int, list[Start]] = {number: [] for number in first_codebooks}
    order = deque(starts)
    for _ in range(repeats + 1):
        whole.append(tts.synthesize(text, voice, settings))
        stream = tts.stream(text, voice, settings)
        list(stream)
        streamed.append(stream.speech().timings)
        for number in order:
            fewer = replace(settings, first_chunk_codebooks=number)
            starts[number].append(Start.of(tts, text, voice, fewer))
        order.rotate()  # none always follows the same other one
    bandwidth = read_bandwidth(threads) if device == "cpu" else 0.0
    figures = report(tts, whole[1:], streamed[1:], bandwidth, load_options.get("precision", STORED))
    figures["first_chunks"] = {str(number): first_chunk(found[1:]) for number, found in starts.items()}
    about = {"text": text, "device": device, **load_options}
    return figures | about | measured_on(tts.manifest, seed, threads)


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


def first_chunk(found: Sequence[Start]) -> dict[str, Any]:
    """Medians in milliseconds until the first audio, and underruns."""
    medians = {name: round(1000 * median(getattr(one, name) for one in found), 2) for name in STARTS}
    return medians | {"underruns": sum(one.wait > UNDERRUN_SECONDS for one in found)}


def positions(tts: Valle2, speech: Speech) -> float:
    """Filled cache positions half way through the decode, spoken in the first voice."""
    voice, group = tts.voice(tts.voices()[0]), tts.manifest.sizes["group_size"]
    prefix = transcript_length(tts, voice) + 2 + len(voice.codes) // group
    return prefix + len(speech.codes) / group / 2


def table(result: dict[str, Any]) -> str:
    """The stages as a Markdown table."""
    rows = [[stage, row["p50"], row["p95"]] for stage, row in result["stages"].items()]
    rows += [[f"first audio, {kind}", row["p50"], row["p95"]] for kind, row in result["first_audio"].items()]
    stages = markdown(["stage", "median, ms", "p95, ms"], rows)
    chunks = result["first_chunks"]
    if not chunks:
        return stages
    head = ["codebooks at first", "prefill, ms", "AR steps, ms", "NAR, ms", "codec, ms", "first audio, ms"]
    head += ["CPU, ms", "of the first row", "CPU of the first row", "underruns"]
    base = next(iter(chunks.values()))
    lines = [
        [
            number,
            *(one[name] for name in STARTS),
            *(round(one[name] / base[name], 2) for name in STARTS[-2:]),
            f"{one['underruns']} of {result['repeats']}",
        ]
        for number, one in chunks.items()
    ]
    return f"{stages}\n\n{markdown(head, lines)}"


def panels(result: dict[str, Any]) -> list[Panel]:
    """Time per stage, and the first audio."""
    parts = STAGES[:-1]
    split = Line("whole", (), [result["stages"][stage]["p50"] for stage in parts])
    first = [Line(kind, (), [row["p50"]]) for kind, row in result["first_audio"].items()]
    stages = Panel("one request", "median, ms", [split], stacked=parts)
    return [stages, Panel("first audio", "median, ms", first, stacked=("first audio",))]
