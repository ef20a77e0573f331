"""`bench compare`: the runtime at each precision against eager PyTorch, in turns.

Both sides have the same model, text, prompt, seed and device. Figures are medians over the repeats. Keys of
the JSON, by precision:

- `ratios`: eager / runtime, for seconds of an AR step, seconds of a NAR pass, and `end_to_end`. The last is
  compute seconds per audio second, so that sides which end a frame apart still compare.
- `ratios_group_1`: the same against eager PyTorch with group size 1. Its AR weights are random, which does
  not change its time.
- `host_fraction`: the share of AR time outside the graph's calls.
- `bound_fraction`, `nar_peak_fraction`: the share of the host's memory bandwidth in an AR step, and of its
  peak of matrix products in a NAR pass. A GPU has neither.
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
from valle2.benchmarks.speed.hardware import matmul_peak, nar_operations, read_bandwidth, step_bytes
from valle2.benchmarks.speed.latency import NAR_PASSES, STAGES, positions
from valle2.benchmarks.stages import StepClock, encode_sentences, transcript_length
from valle2.engine.bundle.files import sha256
from valle2.engine.bundle.precisions import DYNAMIC, METHODS
from valle2.engine.errors import Valle2Error
from valle2.export import Checkpoint, read_checkpoint
from valle2.export.checkpoint import weights_file
from valle2.runtime import Request, Settings, Speech, Timings, Valle2


@dataclass(slots=True)
class RuntimeSide:
    """The runtime at one precision. inside: seconds of each synthesis inside the AR graph's calls."""

    tts: Valle2
    clock: StepClock
    speeches: list[Speech] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)

    def run(self, text: str, settings: Settings) -> None:
        """Synthesise once."""
        self.clock.restart()
        voice = self.tts.voice(self.tts.voices()[0])
        self.speeches.append(self.tts.synthesize(text, voice, settings))
        self.inside.append(self.clock.seconds)


def load_side(model: str, device: str, threads: int, precision: str) -> RuntimeSide:
    tts = Valle2.load(model, device=device, threads=threads, precision=precision)
    return RuntimeSide(tts, StepClock(tts))


@dataclass(slots=True)
class EagerSide:
    """Eager PyTorch with the model's group size, and with group size 1.

    audio: seconds of speech. bandwidth: bytes per second, the most of any turn; 0 on a GPU. same: the share
    of codebook 0 on which both sides agree, the least of any turn.
    """

    own_group: list[EagerTimes] = field(default_factory=list)
    group_1: list[EagerTimes] = field(default_factory=list)
    audio: float = 0.0
    bandwidth: float = 0.0
    same: float = 1.0


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
) -> dict[str, Any]:
    """Time all sides in turns. The figures at the top of the result are those of the last precision.

    Args:
        checkpoint: what `model` was exported from. max_frames: length of the speech; 0 lets `<eos>` end it.
        device: "cpu" or "cuda", for both sides.
        eager_precision: "fp32" or "fp16", for AR and NAR in eager PyTorch.

    Raises:
        Valle2Error: torch cannot use the device, the bundle is of another checkpoint, or the two sides make
            different codes in fp32 on a CPU, so that their times do not compare.
    """
    need_positive(repeats=repeats, threads=threads)
    torch.set_num_threads(threads)
    check_device(device)
    sides = {name: load_side(model, device, threads, name) for name in precisions}
    tts = sides[precisions[0]].tts
    if sha256(weights_file(checkpoint)) != tts.manifest.provenance.get("checkpoint_sha256"):
        raise Valle2Error(f"{tts.path} was not exported from {checkpoint}; pass the checkpoint it came from")
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=max_frames)
    eager = baseline(read_checkpoint(checkpoint), tts, text, settings, torch.device(device), eager_precision)
    times, exact = EagerSide(), device == "cpu" and "fp32" in sides and eager_precision == "fp32"
    order = deque(sides.values())
    for _ in range(repeats + 1):  # the first is the warm-up
        for side in order:
            side.run(text, settings)
        order.rotate()  # no side always follows the same other side
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
) -> Callable[[EagerSide, Speech, bool], None]:
    """A function that runs both baselines once.

    It takes the times to add to, the speech that the runtime made, and whether the codes must be the same.
    """
    voice, group = tts.voice(tts.voices()[0]), tts.manifest.sizes["group_size"]
    sentence = encode_sentences(tts, Request(text, voice, settings))[0]
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
    sides: dict[str, RuntimeSide], times: EagerSide, text: str, seed: int, threads: int
) -> dict[str, Any]:
    """Medians in milliseconds, ratios and bounds of every precision, and what they were measured on."""
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


def one_side(side: RuntimeSide, precision: str, eager: EagerSide, peak: float) -> dict[str, Any]:
    """Figures of one precision. The first synthesis was the warm-up."""
    ours = [speech.timings for speech in side.speeches[1:]]
    sizes, speech, mine = side.tts.manifest.sizes, side.speeches[0], units(ours, ours[0].audio)
    filled, frames = positions(side.tts, speech), len(speech.codes)
    inside = median(took / max(t.ar, took) for took, t in zip(side.inside[1:], ours, strict=True))
    operations = nar_operations(sizes, nar_positions(side.tts, frames), frames)
    bytes_read = step_bytes(sizes, filled, precision)
    return {
        "ratios": ratios(units(eager.own_group[1:], eager.audio), mine),
        "ratios_group_1": ratios(units(eager.group_1[1:], eager.audio), mine),
        "stages": {stage: stage_row(ours, eager.own_group[1:], stage) for stage in STAGES},
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
    """Median seconds of an AR step, of a NAR pass, and of the whole synthesis per audio second."""
    return {
        "ar_step": median(t.ar / max(1, t.steps - 1) for t in times),
        "nar_pass": median(t.nar for t in times) / NAR_PASSES,
        "end_to_end": median(t.total for t in times) / audio,
    }


def ratios(eager: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    """Eager / runtime."""
    return {name: round(eager[name] / ours[name], 2) for name in ours}


def stage_row(ours: Sequence[Timings], eager: Sequence[EagerTimes], stage: str) -> dict[str, float]:
    """Median milliseconds of one stage on both sides, and their ratio."""
    own, base = (1000 * median(getattr(t, stage) for t in side) for side in (ours, eager))
    return {"ours_ms": round(own, 2), "eager_ms": round(base, 2), "ratio": round(base / own, 2)}


def nar_positions(tts: Valle2, frames: int) -> int:
    """Positions of a NAR pass: text and its `<eos>`, prompt, target, `<eos>`, stage (Eq. 14)."""
    voice = tts.voice(tts.voices()[0])
    return transcript_length(tts, voice) + 1 + len(voice.codes) + frames + 2


def table(result: dict[str, Any]) -> str:
    """Stages and ratios of every precision as Markdown tables."""
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
