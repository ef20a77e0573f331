"""`bench throughput`: one request at a time against many at once, then an open loop of Poisson arrivals.

In the open loop requests arrive whether or not earlier ones are done, so queueing time counts. Playback of a
stream starts with its first audio. An underrun is a wait of more than 100 ms after that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import (
    UNDERRUN_SECONDS,
    longest_wait,
    percentiles,
    ratio_percentiles,
)
from valle2.benchmarks.report.tables import markdown, open_loop_rows
from valle2.benchmarks.stages import load_model
from valle2.runtime import Request, Stream, Valle2


@dataclass(slots=True)
class Listener:
    """One stream, and what its listener hears.

    arrived: when the request arrived. heard: (arrival time, seconds of audio) of every piece. All times are
    seconds since the loop began.
    """

    stream: Stream
    arrived: float
    heard: list[tuple[float, float]] = field(default_factory=list)

    def listen(self, now: float) -> None:
        """Take the audio that was made since the last call."""
        while self.stream.ready:
            self.heard.append((now, len(next(self.stream)) / self.stream.sample_rate))

    @property
    def audio(self) -> float:
        return sum(seconds for _, seconds in self.heard)

    @property
    def first(self) -> float:
        return self.heard[0][0] - self.arrived

    @property
    def took(self) -> float:
        return self.heard[-1][0] - self.arrived


def throughput(
    model: str,
    text: str,
    requests: int,
    slots: int,
    rate: float,
    seed: int,
    threads: int,
    repeats: int,
    frames: int = 0,
    **load_options: Any,
) -> dict[str, Any]:
    """Compare one at a time with `slots` at once, then measure an open loop.

    Args:
        rate: requests per second of the open loop; 0 is 70 % of the throughput at once.
        frames: length of each request, for a model that never draws `<eos>`; 0 lets `<eos>` end it.
        load_options: other arguments of `Valle2.load`.
    """
    need_positive(requests=requests, slots=slots, threads=threads, repeats=repeats)
    tts = load_model(model, threads=threads, slots=slots, **load_options)
    batch = make_requests(tts, text, slots, seed, frames)
    tts.synthesize_batch(batch)  # warm-up
    pairs = [(one_at_a_time(tts, batch), at_once(tts, batch)) for _ in range(repeats)]
    alone, together = (median(pair[side] for pair in pairs) for side in (0, 1))
    seconds = tts.synthesize(text, batch[0].prompt, batch[0].settings).timings.audio
    chosen = rate or 0.7 * together / seconds
    return {
        "one_at_a_time": round(alone, 3),
        "at_once": round(together, 3),
        "ratio": round(median(both / one for one, both in pairs), 3),
        "slots": slots,
        "open_loop": open_loop(tts, batch, requests, chosen, seed),
        "text": text,
        **load_options,
    } | measured_on(tts.manifest, seed, threads)


def make_requests(tts: Valle2, text: str, count: int, seed: int, frames: int) -> list[Request]:
    """`count` requests of the same text that differ in seed and voice."""
    voices = [tts.voice(name) for name in tts.voices()]
    fixed = replace(tts.settings(), max_frames=frames, loop_frames=0, retries=0)
    return [Request(text, voices[i % len(voices)], replace(fixed, seed=seed + i)) for i in range(count)]


def one_at_a_time(tts: Valle2, batch: list[Request]) -> float:
    """Audio seconds per second of requests spoken one after another."""
    began = time.perf_counter()
    audio = sum(tts.synthesize(r.text, r.prompt, r.settings).timings.audio for r in batch)
    return audio / (time.perf_counter() - began)


def at_once(tts: Valle2, batch: list[Request]) -> float:
    """Audio seconds per second of requests spoken in one batch."""
    began = time.perf_counter()
    audio = sum(speech.timings.audio for speech in tts.synthesize_batch(batch))
    return audio / (time.perf_counter() - began)


def open_loop(tts: Valle2, batch: list[Request], count: int, rate: float, seed: int) -> dict[str, Any]:
    """Streams that arrive as a Poisson process of `rate` requests per second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    listeners, took = listen(tts, batch, list(np.cumsum(gaps) - gaps[0]))
    return summary(listeners, rate, took)


def listen(tts: Valle2, batch: list[Request], due: list[float]) -> tuple[list[Listener], float]:
    """Start a stream at each of the `due` times and listen to all of them.

    Returns:
        The listeners, and the seconds until the last stream ended.
    """
    listeners: list[Listener] = []
    began = time.perf_counter()
    while due or any(not listener.stream.done for listener in listeners):
        now = time.perf_counter() - began
        while due and due[0] <= now:
            request = batch[len(listeners) % len(batch)]
            stream = tts.stream(request.text, request.prompt, request.settings)
            listeners.append(Listener(stream, due.pop(0)))
        if tts.engine.busy:
            tts.step()
        else:
            time.sleep(max(0.0, due[0] - now))
        for listener in listeners:
            listener.listen(time.perf_counter() - began)
    return listeners, time.perf_counter() - began


def summary(listeners: list[Listener], rate: float, took: float) -> dict[str, Any]:
    """Percentiles over the streams that ended without an error."""
    heard = [listener for listener in listeners if listener.heard and not listener.stream.error]
    points = (50, 95, 99)
    return {
        "requests_per_s": round(rate, 3),
        "requests": len(listeners),
        "errors": len(listeners) - len(heard),
        "first_audio_ms": percentiles([listener.first for listener in heard], *points),
        "rtf": ratio_percentiles([x.took / x.audio for x in heard], *points),
        "audio_s_per_s": round(sum(listener.audio for listener in heard) / took, 3),
        "underruns": sum(longest_wait(listener.heard) > UNDERRUN_SECONDS for listener in heard),
    }


def table(result: dict[str, Any]) -> str:
    """The comparison and the open loop as a Markdown table."""
    loop = result["open_loop"]
    return markdown(
        ["", "value"],
        [
            ["one at a time, audio s/s", result["one_at_a_time"]],
            [f"{result['slots']} at once, audio s/s", result["at_once"]],
            ["ratio", result["ratio"]],
            *open_loop_rows(loop),
        ],
    )


def panels(result: dict[str, Any]) -> list[Panel]:
    """Throughput of all three loops; first audio and RTF in the open loop."""
    loop = result["open_loop"]
    sides = [
        Line("one at a time", (), [result["one_at_a_time"]]),
        Line(f"{result['slots']} at once", (), [result["at_once"]]),
        Line("open loop", (), [loop["audio_s_per_s"]]),
    ]
    waits = [Line(name, (), [value]) for name, value in loop["first_audio_ms"].items()]
    rtf = [Line(name, (), [value]) for name, value in loop["rtf"].items()]
    return [
        Panel("throughput", "audio seconds per second", sides, stacked=("audio s/s",)),
        Panel("first audio in the open loop", "ms", waits, stacked=("first audio",)),
        Panel("RTF in the open loop", "RTF", rtf, stacked=("RTF",)),
    ]
