"""`bench compare`: the runtime at each precision against eager PyTorch, in turns.

Both sides have the same model, text, prompt, seed and device. Figures are medians over the repeats. Keys of
the JSON, by precision:

- `ratios`: eager / runtime, for seconds of an AR step, seconds of a NAR pass, and `end_to_end`. The last is
  compute seconds per audio second, so that sides which end a frame apart still compare.
- `ratios_group_1`: the same against eager PyTorch with group size 1. Its AR weights are random, which does
  not change its time.
- `host_fraction`: the share of AR time outside the graph's calls.
- `bounds`: how near each stage is to what the host allows: an AR step to its memory bandwidth; a prefill and
  a NAR pass to its peak of matrix products. `bound_fraction` and `nar_peak_fraction` are two of them. A GPU
  has none.
- `first_audio_ms`: until the first sample, whole and streamed, and streamed with two codebooks in the first
  chunk.
- `codebooks`: RTF and milliseconds of the NAR with fewer codebooks.

`rivals` has what a user might run instead (`speed.rivals`), in the same turns.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from valle2.benchmarks.fullsize import random_ar, with_group
from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import share
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.eager import EagerTimes, decode, synthesize
from valle2.benchmarks.speed.hardware import (
    matmul_peak,
    nar_operations,
    prefill_operations,
    read_bandwidth,
    step_bytes,
)
from valle2.benchmarks.speed.latency import NAR_PASSES, STAGES, positions
from valle2.benchmarks.speed.rivals import BF16, Rival, bf16_peak, rivals
from valle2.benchmarks.stages import (
    EncodedSentence,
    StepClock,
    encode_sentences,
    load_model,
    transcript_length,
)
from valle2.engine.bundle.files import sha256
from valle2.engine.bundle.precisions import HALF, METHODS, STORED
from valle2.engine.errors import Valle2Error
from valle2.export import Checkpoint, read_checkpoint
from valle2.export.checkpoint import weights_file
from valle2.runtime import Request, Settings, Speech, Timings, Valle2
from valle2.runtime.types import Codes

WHOLE, STREAMED, CHEAP_START = "whole", "streamed", "streamed_2_codebooks"
CHEAP_CODEBOOKS = 2


@dataclass(slots=True)
class RuntimeSide:
    """The runtime at one precision.

    inside: seconds of each synthesis inside the AR graph's calls. streamed: seconds until the
    first sample by kind of stream. fewer: times by number of codebooks.
    """

    tts: Valle2
    clock: StepClock
    speeches: list[Speech] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    streamed: dict[str, list[float]] = field(default_factory=dict)
    fewer: dict[int, list[Timings]] = field(default_factory=dict)

    def run(self, text: str, settings: Settings, codebooks: Sequence[int]) -> None:
        """Synthesise once whole, once streamed with each kind of start, and once with each of `codebooks`."""
        self.clock.restart()
        voice = self.tts.voice(self.tts.voices()[0])
        self.speeches.append(self.tts.synthesize(text, voice, settings))
        self.inside.append(self.clock.seconds)
        starts = {STREAMED: settings}
        if self.tts.model.neutral is not None:
            starts[CHEAP_START] = replace(settings, first_chunk_codebooks=CHEAP_CODEBOOKS)
        for name, start in starts.items():
            with self.tts.stream(text, voice, start) as stream:
                next(iter(stream))
                self.streamed.setdefault(name, []).append(stream.speech().timings.first_audio)
        for number in codebooks:
            speech = self.tts.synthesize(text, voice, replace(settings, codebooks=number))
            self.fewer.setdefault(number, []).append(speech.timings)


def load_side(model: str, device: str, threads: int, precision: str) -> RuntimeSide:
    tts = load_model(model, device=device, threads=threads, precision=precision)
    return RuntimeSide(tts, StepClock(tts))


@dataclass(slots=True)
class EagerSide:
    """Eager PyTorch with the model's group size, and with group size 1.

    audio: seconds of speech. bandwidth: bytes per second, the most of any turn; 0 on a GPU. same: the share
    of codebook 0 on which both sides agree, the least of any turn. codes: of the latest turn.
    """

    own_group: list[EagerTimes] = field(default_factory=list)
    group_1: list[EagerTimes] = field(default_factory=list)
    audio: float = 0.0
    bandwidth: float = 0.0
    same: float = 1.0
    codes: Codes | None = None


def check_device(device: str) -> None:
    """Refuse a device that this torch cannot use."""
    if device != "cpu" and not torch.cuda.is_available():
        raise Valle2Error(
            f"the baseline needs a torch with {device}; install one, as this is {torch.__version__}"
        )


def compare(
    checkpoint: Path,
    model: str,
    text: str,
    repeats: int,
    seed: int,
    threads: int,
    precisions: Sequence[str] = ("fp32",),
    max_frames: int = 0,
    device: str = "cpu",
    eager_precision: str = "fp32",
    against: Sequence[str] = (),
    codebooks: Sequence[int] = (),
) -> dict[str, Any]:
    """Time all sides in turns. The figures at the top of the result are those of the last precision.

    Args:
        checkpoint: what `model` was exported from. max_frames: length of the speech; 0 lets `<eos>` end it.
        device: "cpu" or "cuda", for both sides.
        eager_precision: "fp32" or "fp16", for AR and NAR in eager PyTorch.
        against: rivals to time as well, of `speed.rivals.RIVALS`; on a CPU, with eager PyTorch in fp32.
        codebooks: numbers of codebooks to time as well.

    Raises:
        Valle2Error: torch cannot use the device, the bundle is of another checkpoint, or the two sides make
            different codes in fp32 on a CPU, so that their times do not compare; or rivals elsewhere.
    """
    need_positive(repeats=repeats, threads=threads)
    torch.set_num_threads(threads)
    check_device(device)
    if against and (device, eager_precision) != ("cpu", "fp32"):
        raise Valle2Error("--against is for a CPU and eager PyTorch in fp32; leave it out")
    sides = {name: load_side(model, device, threads, name) for name in precisions}
    tts = sides[precisions[0]].tts
    if sha256(weights_file(checkpoint)) != tts.manifest.provenance.get("checkpoint_sha256"):
        raise Valle2Error(f"{tts.path} was not exported from {checkpoint}; pass the checkpoint it came from")
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=max_frames, loop_frames=0, retries=0)
    read, voice = read_checkpoint(checkpoint), tts.voice(tts.voices()[0])
    sentence = encode_sentences(tts, Request(text, voice, settings))[0]
    others = rivals(against, read, sentence.text, sentence.prompt, settings)
    eager = baseline(read, tts, sentence, settings, torch.device(device), eager_precision)
    times, exact = EagerSide(), device == "cpu" and "fp32" in sides and eager_precision == "fp32"
    order = deque(sides.values())
    for _ in range(repeats + 1):  # the first is the warm-up
        for side in order:
            side.run(text, settings, codebooks)
        order.rotate()  # no side always follows the same other side
        reference = sides.get("fp32") or next(iter(sides.values()))
        eager(times, reference.speeches[-1], exact)
        for rival in others.values():
            assert times.codes is not None
            rival.turn(reference.speeches[-1].timings.steps, times.codes)
        if device == "cpu":
            times.bandwidth = max(times.bandwidth, read_bandwidth(threads))
    where = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    prefilled = len(sentence.text) + sentence.start + len(sentence.prompt) // tts.manifest.sizes["group_size"]
    found = report(sides, times, others, prefilled, text, seed, threads)
    return found | {"device": where, "eager_precision": eager_precision}


def baseline(
    checkpoint: Checkpoint,
    tts: Valle2,
    sentence: EncodedSentence,
    settings: Settings,
    device: torch.device,
    precision: str,
) -> Callable[[EagerSide, Speech, bool], None]:
    """A function that runs both baselines once.

    It takes the times to add to, the speech that the runtime made, and whether the codes must be the same.
    """
    group = tts.manifest.sizes["group_size"]
    words, prompt = sentence.text, sentence.prompt
    single = checkpoint.ar if group == 1 else random_ar(with_group(dict(tts.manifest.sizes), 1))
    for network in (checkpoint.ar, checkpoint.nar, single):
        network.to(device, torch.float16 if precision == "fp16" else torch.float32)
    assert checkpoint.codec is not None
    checkpoint.codec[1].to(device)

    @torch.inference_mode()
    def run(times: EagerSide, speech: Speech, exact: bool) -> None:
        with device:
            timed(times, speech, exact)

    def timed(times: EagerSide, speech: Speech, exact: bool) -> None:
        steps = speech.timings.steps
        codes, own = synthesize(checkpoint, words, prompt, settings, steps)
        both = min(len(codes), len(speech.codes))
        times.same = min(times.same, float(np.mean(codes[:both, 0] == speech.codes[:both, 0])))
        if exact and not np.array_equal(codes[:, 0], speech.codes[:, 0]):
            raise Valle2Error(
                "the runtime and eager PyTorch made different codes, so their times do not compare; "
                "export the checkpoint again, and report this if they still differ"
            )
        times.own_group.append(own)
        times.codes = codes
        times.audio = speech.timings.audio
        if group == 1:
            times.group_1.append(own)
            return
        began = time.perf_counter()
        _, prefill, count = decode(single, words, prompt[:, 0], settings, max(1, len(speech.codes)))
        took = time.perf_counter() - began
        times.group_1.append(replace(own, prefill=prefill, ar=took - prefill, steps=count))

    return run


def report(
    sides: dict[str, RuntimeSide],
    times: EagerSide,
    others: dict[str, Rival],
    prefilled: int,
    text: str,
    seed: int,
    threads: int,
) -> dict[str, Any]:
    """Medians in milliseconds, ratios and bounds of every side, and what they were measured on.

    prefilled: positions of the prefill.
    """
    peaks = Peaks(threads, times.bandwidth)
    tts = next(iter(sides.values())).tts
    found = {name: one_side(side, name, times, peaks, prefilled) for name, side in sides.items()}
    name, side = next(reversed(sides.items()))
    work = Work(tts, side.speeches[0], prefilled)
    return (
        found[name]
        | {
            "precision": name,
            "precisions": found,
            "eager_bounds": work.bounds(times.own_group[1:], STORED, peaks),
            "rivals": {other: one_rival(rival, times, work, peaks) for other, rival in others.items()},
            "eager_rtf": {
                "own_group": round(units(times.own_group[1:], times.audio)["end_to_end"], 4),
                "group_1": round(units(times.group_1[1:], times.audio)["end_to_end"], 4),
            },
            "read_gb_per_s": round(times.bandwidth / 1e9, 2),
            "same_codes": round(times.same, 4),
            "repeats": len(times.own_group) - 1,
            "text": text,
            "torch": torch.__version__,
        }
        | measured_on(side.tts.manifest, seed, threads)
    )


@dataclass(slots=True)
class Peaks:
    """What the host can do: bytes a second, and operations a second by kind of number, measured once.

    bandwidth: 0 on a GPU, which is not measured.
    """

    threads: int
    bandwidth: float
    found: dict[str, float] = field(default_factory=dict)

    def operations(self, graph: str, precision: str) -> float:
        """Operations a second of the products of a graph, "ar" or "nar", in a precision. 0 on a GPU."""
        if not self.bandwidth:
            return 0.0
        method = METHODS.get(precision, {}).get(graph)
        kind = BF16 if precision == BF16 else "int8" if method and method != HALF else STORED
        if kind not in self.found:
            integers = kind == "int8"
            self.found[kind] = (
                bf16_peak(self.threads) if kind == BF16 else matmul_peak(self.threads, integers=integers)
            )
        return self.found[kind]


@dataclass(frozen=True, slots=True)
class Work:
    """What one synthesis has to compute and to read. prefilled: positions of the prefill."""

    tts: Valle2
    speech: Speech
    prefilled: int

    def bounds(
        self, times: Sequence[Timings] | Sequence[EagerTimes], precision: str, peaks: Peaks
    ) -> dict[str, float | None]:
        """How near each stage is to what the host allows, 1 at best; None where that was not measured."""
        sizes, frames = self.tts.manifest.sizes, len(self.speech.codes)
        took = units(times, 1.0)
        nar = nar_operations(sizes, nar_positions(self.tts, frames), frames)
        prefill, first = prefill_operations(sizes, self.prefilled), median(t.prefill for t in times)
        read = step_bytes(sizes, positions(self.tts, self.speech), precision)
        return {
            "prefill": share(prefill, peaks.operations("ar", precision), first),
            "ar": share(read, peaks.bandwidth, took["ar_step"]),
            "nar": share(nar, peaks.operations("nar", precision), took["nar_pass"]),
        }


def one_rival(rival: Rival, eager: EagerSide, work: Work, peaks: Peaks) -> dict[str, Any]:
    """Figures of what a user might run instead. The first synthesis was the warm-up."""
    if rival.run is None:
        return {"about": rival.about}
    theirs, base = rival.times[1:], eager.own_group[1:]
    mine = units(theirs, eager.audio)
    return {
        "about": rival.about,
        "ratios": ratios(units(base, eager.audio), mine),
        "stages": {stage: stage_row(theirs, base, stage) for stage in STAGES},
        "bounds": work.bounds(theirs, rival.precision, peaks),
        "rtf": round(mine["end_to_end"], 4),
        "same_codes": round(rival.same, 4),
    }


def one_side(
    side: RuntimeSide, precision: str, eager: EagerSide, peaks: Peaks, prefilled: int
) -> dict[str, Any]:
    """Figures of one precision. The first synthesis was the warm-up."""
    ours = [speech.timings for speech in side.speeches[1:]]
    speech, mine = side.speeches[0], units(ours, ours[0].audio)
    inside = median(took / max(t.ar, took) for took, t in zip(side.inside[1:], ours, strict=True))
    bounds = Work(side.tts, speech, prefilled).bounds(ours, precision, peaks)
    return {
        "ratios": ratios(units(eager.own_group[1:], eager.audio), mine),
        "ratios_group_1": ratios(units(eager.group_1[1:], eager.audio), mine),
        "stages": {stage: stage_row(ours, eager.own_group[1:], stage) for stage in STAGES},
        "bounds": bounds,
        "first_audio_ms": first_audio(side),
        "codebooks": {str(number): fewer(times[1:]) for number, times in side.fewer.items()},
        "ar_step_ms": round(1000 * mine["ar_step"], 3),
        "bound_fraction": bounds["ar"],
        "host_fraction": round(1 - inside, 4),
        "nar_pass_ms": round(1000 * mine["nar_pass"], 3),
        "nar_peak_fraction": bounds["nar"],
        "matmul_gop_per_s": round(peaks.operations("nar", precision) / 1e9, 1),
        "rtf": round(mine["end_to_end"], 4),
        "audio_seconds": round(ours[0].audio, 3),
        "steps": ours[0].steps,
    }


def first_audio(side: RuntimeSide) -> dict[str, float]:
    """Median milliseconds until the first sample, by kind of request."""
    kinds = {WHOLE: [speech.timings.first_audio for speech in side.speeches], **side.streamed}
    return {kind: round(1000 * median(seconds[1:]), 2) for kind, seconds in kinds.items()}


def fewer(times: Sequence[Timings]) -> dict[str, float]:
    """Median RTF and milliseconds of the NAR with fewer codebooks."""
    return {
        "rtf": round(median(t.total / t.audio for t in times), 4),
        "nar_ms": round(1000 * median(t.nar for t in times), 2),
    }


def units(times: Sequence[Timings] | Sequence[EagerTimes], audio: float) -> dict[str, float]:
    """Median seconds of an AR step, of a NAR pass, and of the whole synthesis per audio second."""
    return {
        "ar_step": median(t.ar / max(1, t.steps - 1) for t in times),
        "nar_pass": median(t.nar for t in times) / NAR_PASSES,
        "end_to_end": median(t.total for t in times) / audio,
    }


def ratios(eager: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Eager / runtime."""
    return {name: round(eager[name] / ours[name], 2) for name in ours}


def stage_row(
    ours: Sequence[Timings] | Sequence[EagerTimes], eager: Sequence[EagerTimes], stage: str
) -> dict[str, float]:
    """Median milliseconds of one stage on both sides, and their ratio."""
    own, base = (1000 * median(getattr(t, stage) for t in side) for side in (ours, eager))
    return {"ours_ms": round(own, 2), "eager_ms": round(base, 2), "ratio": round(base / own, 2)}


def nar_positions(tts: Valle2, frames: int) -> int:
    """Positions of a NAR pass: text and its `<eos>`, prompt, target, `<eos>`, stage (Eq. 14)."""
    voice = tts.voice(tts.voices()[0])
    return transcript_length(tts, voice) + 1 + len(voice.codes) + frames + 2


def table(result: dict[str, Any]) -> str:
    """Stages and ratios of every side as Markdown tables."""
    head = ["side", "stage", f"eager {result['eager_precision']}, ms", "ms", "ratio", "of the bound"]
    sides = result["precisions"] | {one["about"]: one for one in result["rivals"].values()}
    rows: list[list[object]] = []
    for name, side in sides.items():
        for stage, row in side.get("stages", {}).items():
            bounds = side["bounds"].get(stage), result["eager_bounds"].get(stage)
            rows.append([name, stage, row["eager_ms"], row["ours_ms"], row["ratio"], both_bounds(*bounds)])
        eager_ms = result["stages"]["total"]["eager_ms"]
        for kind, ms in side.get("first_audio_ms", {}).items():
            label = f"first audio, {kind.replace('_', ' ')}"
            rows.append([name, label, eager_ms, ms, round(eager_ms / ms, 2), ""])
        if "stages" not in side:
            rows.append([name, *["–"] * 5])
    units_head = ["side", "to eager", "AR step", "NAR pass", "end to end", "RTF"]
    groups = (("ratios", "same group"), ("ratios_group_1", "group 1"))
    units_rows = [
        [name, group, *side[key].values(), side["rtf"]]
        for name, side in sides.items()
        for key, group in groups
        if key in side
    ]
    tables = [markdown(head, rows), markdown(units_head, units_rows)]
    books_rows = [
        [name, number, one["nar_ms"], one["rtf"]]
        for name, side in result["precisions"].items()
        for number, one in side["codebooks"].items()
    ]
    if books_rows:
        tables.append(markdown(["side", "codebooks", "NAR, ms", "RTF"], books_rows))
    return "\n\n".join(tables)


def both_bounds(ours: float | None, eager: float | None) -> str:
    """The share of the bound, and that of eager PyTorch."""
    return "" if ours is None else f"{ours:g} (eager {eager:g})"


def panels(result: dict[str, Any]) -> list[Panel]:
    """Time per stage, one bar per side, and the ratios."""
    parts, bars = STAGES[:-1], []
    for name, side in result["precisions"].items():
        bars.append(Line(f"valle2 {name}", (), [side["stages"][part]["ours_ms"] for part in parts]))
    eager = [side["stages"][part]["eager_ms"] for part in parts]
    bars.append(Line(f"eager {result['eager_precision']}", (), eager))
    ratios = [Line(name, (), [side["ratios"]["end_to_end"]]) for name, side in result["precisions"].items()]
    return [
        Panel("one request", "median, ms", bars, stacked=parts),
        Panel(f"times as fast as {bars[-1].label}", "ratio", ratios, stacked=("end to end",)),
    ]
