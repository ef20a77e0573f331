"""Our runtime at each precision against eager PyTorch: same model, text, prompt and seed, in turns.

Figures are medians over the repeats, ratios eager / ours: seconds of an AR step, of a NAR pass, and compute
seconds per audio second for `end_to_end`, so that sides that end a frame apart still compare. `ratios` are to
eager with the model's group size, `ratios_group_1` to eager with group size 1, whose AR weights are
random, which changes no time. host_fraction is the share of AR time spent outside the graph's calls. Both
sides run on the same device; bandwidth and peak are the host's, so a GPU has none of the shares of them.
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
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.report import markdown, measured_on, need_positive, share, step_bytes
from valle2.benchmarks.speed.bandwidth import read_bandwidth
from valle2.benchmarks.speed.eager import EagerTimes, decode, synthesize
from valle2.benchmarks.speed.latency import NAR_PASSES, STAGES, positions
from valle2.benchmarks.speed.peak import matmul_peak, nar_operations
from valle2.engine.bundle.files import sha256
from valle2.engine.bundle.precisions import DYNAMIC, METHODS
from valle2.engine.errors import Valle2Error
from valle2.export import Checkpoint, read_checkpoint
from valle2.export.checkpoint import weights_file
from valle2.runtime import Request, Settings, Speech, Timings, Valle2


@dataclass(slots=True)
class Ours:
    """One precision of our runtime: what it made, and the seconds inside the graph's AR calls."""

    tts: Valle2
    speeches: list[Speech] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, text: str, settings: Settings) -> Speech:
        """Synthesise once and note it."""
        self.clock_steps()
        self.seconds = 0.0
        voice = self.tts.voice(self.tts.voices()[0])
        self.speeches.append(self.tts.synthesize(text, voice, settings))
        self.inside.append(self.seconds)
        return self.speeches[-1]

    def clock_steps(self) -> None:
        """Put a clock around every bound call, once the first synthesis has bound them."""
        bound = self.tts.model.ar.bound
        for key, step in bound.items():
            if not getattr(step, "clocked", False):
                bound[key] = self.clocked(step)

    def clocked(self, step: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            began = time.perf_counter()
            step()
            self.seconds += time.perf_counter() - began

        call.clocked = True  # type: ignore[attr-defined]
        return call


@dataclass(slots=True)
class Eager:
    """The baselines' times, with the model's group size and with group size 1.

    bandwidth: bytes a second, the most that was read in any turn; 0 on a GPU. same: the share of codebook 0
    that both sides agree on, the least of any turn.
    """

    own: list[EagerTimes] = field(default_factory=list)
    one: list[EagerTimes] = field(default_factory=list)
    audio: float = 0.0
    bandwidth: float = 0.0
    same: float = 1.0


def check_device(device: str) -> None:
    """Refuse a device that torch does not have here."""
    if device != "cpu" and not torch.cuda.is_available():
        raise Valle2Error(f"the baseline needs a torch with {device}; this is {torch.__version__}")


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
) -> dict[str, Any]:
    """Time all sides in turns. The figures at the top of the result are those of the last precision.

    device: "cpu" or "cuda", of both sides. eager_precision: "fp32" or "fp16", of the baseline's AR and NAR.

    Raises:
        Valle2Error: torch has no such device, the bundle is not the checkpoint's, or on a CPU at fp32 the two
            sides do not make the same codes, so that their times mean nothing.
    """
    need_positive(repeats=repeats, threads=threads)
    torch.set_num_threads(threads)
    check_device(device)
    sides = {
        name: Ours(Valle2.load(model, device=device, threads=threads, precision=name)) for name in precisions
    }
    tts = sides[precisions[0]].tts
    if sha256(weights_file(checkpoint)) != tts.manifest.provenance.get("checkpoint_sha256"):
        raise Valle2Error(f"{tts.path} was not exported from {checkpoint}; pass the checkpoint it came from")
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=max_frames)
    eager = baseline(read_checkpoint(checkpoint), tts, text, settings, torch.device(device), eager_precision)
    times, exact = Eager(), device == "cpu" and "fp32" in sides and eager_precision == "fp32"
    order = deque(sides.values())
    for _ in range(repeats + 1):  # the first is the warm-up
        for side in order:
            side.run(text, settings)
        order.rotate()  # none always follows the same other
        reference = sides.get("fp32") or next(iter(sides.values()))
        eager(times, reference.speeches[-1], exact)
        if device == "cpu":
            times.bandwidth = max(times.bandwidth, read_bandwidth(threads))
    where = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    return report(sides, times, text, seed, threads) | {"device": where, "eager_precision": eager_precision}


def baseline(
    checkpoint: Checkpoint,
    tts: Valle2,
    text: str,
    settings: Settings,
    device: torch.device,
    precision: str,
) -> Callable[[Eager, Speech, bool], None]:
    """A function that runs both baselines once for what our side has spoken; exact: the codes must agree."""
    voice, group = tts.voice(tts.voices()[0]), tts.manifest.sizes["group_size"]
    spoken = next(iter(tts.sentences(Request(text, voice, settings))))
    words = np.append(spoken.ids, tts.manifest.sizes["vocab_size"])
    prompt = voice.codes[len(voice.codes) % group :]
    single = checkpoint.ar if group == 1 else random_ar(with_group(dict(tts.manifest.sizes), 1))
    for network in (checkpoint.ar, checkpoint.nar, single):
        network.to(device, torch.float16 if precision == "fp16" else torch.float32)
    assert checkpoint.codec is not None
    checkpoint.codec[1].to(device)

    @torch.inference_mode()
    def run(times: Eager, speech: Speech, exact: bool) -> None:
        with device:
            timed(times, speech, exact)

    def timed(times: Eager, speech: Speech, exact: bool) -> None:
        steps = speech.timings.steps
        codes, own = synthesize(checkpoint, words, prompt, settings, steps)
        both = min(len(codes), len(speech.codes))
        times.same = min(times.same, float(np.mean(codes[:both, 0] == speech.codes[:both, 0])))
        if exact and not np.array_equal(codes[:, 0], speech.codes[:, 0]):
            raise Valle2Error("the runtime and eager PyTorch made other codes; compare bundle and checkpoint")
        times.own.append(own)
        times.audio = speech.timings.audio
        if group == 1:
            times.one.append(own)
            return
        began = time.perf_counter()
        _, prefill, count = decode(single, words, prompt[:, 0], settings, max(1, len(speech.codes)))
        took = time.perf_counter() - began
        times.one.append(replace(own, prefill=prefill, ar=took - prefill, steps=count))

    return run


def report(sides: dict[str, Ours], times: Eager, text: str, seed: int, threads: int) -> dict[str, Any]:
    """Medians in milliseconds, ratios, bounds, and what they were measured on."""
    found = {}
    for name, side in sides.items():
        integers = METHODS.get(name, {}).get("nar") == DYNAMIC
        peak = matmul_peak(threads, integers=integers) if times.bandwidth else 0.0
        found[name] = one_side(side, name, times, peak)
    name, side = next(reversed(sides.items()))
    return (
        found[name]
        | {
            "precision": name,
            "precisions": found,
            "eager_rtf": {
                "own_group": round(units(times.own[1:], times.audio)["end_to_end"], 4),
                "group_1": round(units(times.one[1:], times.audio)["end_to_end"], 4),
            },
            "read_gb_per_s": round(times.bandwidth / 1e9, 2),
            "same_codes": round(times.same, 4),
            "repeats": len(times.own) - 1,
            "text": text,
            "torch": torch.__version__,
        }
        | measured_on(side.tts, seed, threads)
    )


def one_side(side: Ours, precision: str, eager: Eager, peak: float) -> dict[str, Any]:
    """Figures of one precision; the first synthesis was the warm-up."""
    ours = [speech.timings for speech in side.speeches[1:]]
    sizes, speech, mine = side.tts.manifest.sizes, side.speeches[0], units(ours, ours[0].audio)
    filled, frames = positions(side.tts, speech), len(speech.codes)
    inside = median(took / max(t.ar, took) for took, t in zip(side.inside[1:], ours, strict=True))
    operations = nar_operations(sizes, nar_positions(side.tts, frames), frames)
    bytes_read = step_bytes(sizes, filled, precision)
    return {
        "ratios": ratios(units(eager.own[1:], eager.audio), mine),
        "ratios_group_1": ratios(units(eager.one[1:], eager.audio), mine),
        "stages": {stage: stage_row(ours, eager.own[1:], stage) for stage in STAGES},
        "ar_step_ms": round(1000 * mine["ar_step"], 3),
        "bound_fraction": share(bytes_read, eager.bandwidth, mine["ar_step"]),
        "host_fraction": round(1 - inside, 4),
        "nar_pass_ms": round(1000 * mine["nar_pass"], 3),
        "nar_peak_fraction": share(operations, peak, mine["nar_pass"]),
        "matmul_gop_per_s": round(peak / 1e9, 1),
        "rtf": round(mine["end_to_end"], 4),
        "audio_seconds": round(ours[0].audio, 3),
        "steps": ours[0].steps,
    }


def units(times: Sequence[Timings] | Sequence[EagerTimes], audio: float) -> dict[str, float]:
    """Median seconds of an AR step, of a NAR pass, and of everything per audio second."""
    return {
        "ar_step": median(t.ar / max(1, t.steps - 1) for t in times),
        "nar_pass": median(t.nar for t in times) / NAR_PASSES,
        "end_to_end": median(t.total for t in times) / audio,
    }


def ratios(eager: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Eager / ours."""
    return {name: round(eager[name] / ours[name], 2) for name in ours}


def stage_row(ours: Sequence[Timings], eager: Sequence[EagerTimes], stage: str) -> dict[str, float]:
    """Median milliseconds of a stage on both sides, and their ratio."""
    own, base = (1000 * median(getattr(t, stage) for t in side) for side in (ours, eager))
    return {"ours_ms": round(own, 2), "eager_ms": round(base, 2), "ratio": round(base / own, 2)}


def nar_positions(tts: Valle2, frames: int) -> int:
    """Positions of a NAR pass: text and its `<eos>`, prompt, target, `<eos>`, stage (Eq. 14)."""
    assert tts.front is not None
    voice = tts.voice(tts.voices()[0])
    return len(tts.front.encode(voice.transcript)) + 1 + len(voice.codes) + frames + 2


def table(result: dict[str, Any]) -> str:
    """The stages of every precision as a Markdown table."""
    head = ["precision", "stage", f"eager {result['eager_precision']}, ms", "valle2, ms", "ratio"]
    rows = [
        [name, stage, row["eager_ms"], row["ours_ms"], row["ratio"]]
        for name, side in result["precisions"].items()
        for stage, row in side["stages"].items()
    ]
    units_head = ["precision", "to eager", "AR step", "NAR pass", "end to end"]
    units_rows = [
        [name, group, *side[key].values()]
        for name, side in result["precisions"].items()
        for key, group in (("ratios", "same group"), ("ratios_group_1", "group 1"))
    ]
    return f"{markdown(head, rows)}\n\n{markdown(units_head, units_rows)}"


def panels(result: dict[str, Any]) -> list[Panel]:
    """Where the time goes on both sides, a bar a side."""
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
