"""Calls that several requests share, and AR steps that are read together, beside one at a time.

    python -m valle2.benchmarks.speed.on_gpu.joint MODEL [--precision fp32]   # on this CPU

Both sides run in turns. On a GPU the clock counts; on a CPU it is the time of the process, which other
processes do not change. `same_codes` is the share of codes that are those of each row alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.fullsize import TEXT
from valle2.benchmarks.speed.on_gpu.setup import Result, Setup
from valle2.benchmarks.speed.steps import random_row
from valle2.benchmarks.speed.throughput import make_requests
from valle2.benchmarks.stages import ARStage, encode_sentences, load_model
from valle2.runtime import Request, Valle2
from valle2.runtime.generation.joint_calls import JointCalls, JointLimits
from valle2.runtime.generation.nar_runner import NARState

ROWS, STEPS_AT_ONCE = (2, 4, 8), 4
FIRST_CHUNK, SHORTER = 30, 0.85
"""Frames of a first chunk, and the length of the shortest row as a share of the longest."""
POSITIONS, STEPS = 300, 32
CPU_ROWS, CPU_FRAMES = (2,), 24
"""What a CPU times unless it is asked for more. It computes 40 times as long as with the sizes of a GPU."""


def time_joint(setup: Setup) -> Result:
    """All of it in every precision, with the model of the timings."""
    found: Result = {"nar": [], "codec": [], "steps": [], "requests": []}
    for precision in setup.precisions:
        options = setup.options(precision)
        tts = Valle2.load(
            str(setup.model().bundle),
            threads=setup.threads,
            slots=max(ROWS),
            chunks_per_call=max(ROWS),
            steps_per_read=STEPS_AT_ONCE,
            **options,
        )
        with tts:
            for name, rows in time_model(tts, setup.frames, setup.repeats, on_gpu=setup.on_gpu).items():
                found[name] += [{"precision": precision} | row for row in rows]
                print(name, found[name][-len(rows) :], flush=True)
    return found


def time_model(
    tts: Valle2, frames: int, repeats: int, *, on_gpu: bool, numbers: Sequence[int] = ROWS
) -> dict[str, list[Result]]:
    """By what is timed, one row for each number of rows.

    Args:
        frames: of the longest whole request. numbers: of rows.
    """
    clock = time.perf_counter if on_gpu else time.process_time
    requests = make_requests(tts, TEXT, max(numbers), 0, frames)
    nar, codec = [], []
    for kind, longest in (("first chunk", min(FIRST_CHUNK, frames // 2)), ("whole", frames)):
        states = nar_states(tts, requests, longest)
        for count in numbers:
            about = {"kind": kind, "frames": longest, "rows": count}
            nar.append(about | time_passes(tts, states[:count], repeats, clock))
            codec.append(about | time_codec(tts, states[:count], longest, repeats, clock))
    return {
        "nar": nar,
        "codec": codec,
        "steps": [time_reads(tts, rows, repeats, clock) for rows in (1, max(numbers))],
        "requests": [time_requests(tts, requests[:count], repeats, clock) for count in numbers],
    }


def nar_states(tts: Valle2, requests: list[Request], longest: int) -> list[NARState]:
    """One state per request, their targets from `SHORTER` times `longest` up to `longest` frames."""
    random, made = np.random.default_rng(0), []
    lengths = np.linspace(longest, SHORTER * longest, len(requests)).astype(int)
    for request, length in zip(requests, lengths, strict=True):
        sentence = encode_sentences(tts, request)[0]
        first = random.integers(0, 1024, max(1, length))
        made.append(tts.model.nar.start(sentence.nar_text, sentence.prompt, first))
    return made


def in_turns(
    sides: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median milliseconds of each side, one warm-up apart, and what the last call of each returned."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            began = clock()
            found[name] = side()
            took[name] += [clock() - began] if turn else []
    return {name: round(1000 * median(seconds), 3) for name, seconds in took.items()}, found


def time_passes(tts: Valle2, states: list[NARState], repeats: int, clock: Callable[[], float]) -> Result:
    """All passes of the NAR over these rows, one row a call and all rows a call."""
    sides = {
        "alone": lambda: run_passes(tts, states, together=False),
        "together": lambda: run_passes(tts, states, together=True),
    }
    ms, codes = in_turns(sides, repeats, clock)
    same = same_share(codes["alone"], codes["together"])
    return {"alone_ms": ms["alone"], "together_ms": ms["together"], "same_codes": same}


def run_passes(tts: Valle2, states: list[NARState], *, together: bool) -> list[Any]:
    """All passes of the NAR over copies of these rows: codes (T, Q - 1) of each."""
    rows = [replace(state, codes=state.codes.copy()) for state in states]
    for codebook in rows[0].passes:
        for group in [rows] if together else [[row] for row in rows]:
            tts.model.nar.run(group, codebook)
    return [row.target[:, 1:] for row in rows]


def same_share(some: list[Any], others: list[Any]) -> float:
    """The share of codes of each row that are equal, on average."""
    return float(np.mean([np.mean(a == b) for a, b in zip(some, others, strict=True)]))


def time_codec(
    tts: Valle2, states: list[NARState], frames: int, repeats: int, clock: Callable[[], float]
) -> Result:
    """The codec's decoder over rows of one length, one row a call and all rows a call."""
    codec, random = tts.need_codec(), np.random.default_rng(0)
    codes = random.integers(0, 1024, (len(states), frames, 8))
    sides = {
        "alone": lambda: np.stack([codec.decode(row) for row in codes]),
        "together": lambda: codec.decode_rows(codes),
    }
    ms, waves = in_turns(sides, repeats, clock)
    apart = float(np.abs(waves["alone"] - waves["together"]).max())
    return {"alone_ms": ms["alone"], "together_ms": ms["together"], "greatest_difference": apart}


def time_reads(tts: Valle2, rows: int, repeats: int, clock: Callable[[], float]) -> Result:
    """Milliseconds of an AR step, for each number of steps that are read together."""
    ar, sizes = ARStage(tts), tts.manifest.sizes
    positions = min(POSITIONS, ar.capacity - STEPS, ar.max_groups)
    for row in range(rows):
        ar.prefill(row, random_row(sizes, positions, row))

    def decode(at_once: int) -> Any:
        ar.set_positions(rows, positions)
        drawn = [
            output.codes[:rows].copy()
            for _ in range(STEPS // at_once)
            for output in ar.runner.steps(at_once, rows)
        ]
        return np.stack(drawn)

    numbers = [count for count in (1, 2, 4) if count <= ar.runner.steps_per_read]
    ms, _ = in_turns({str(count): partial(decode, count) for count in numbers}, repeats, clock)
    return {"rows": rows, "ms": {name: round(value / STEPS, 4) for name, value in ms.items()}}


def time_requests(tts: Valle2, requests: list[Request], repeats: int, clock: Callable[[], float]) -> Result:
    """Whole requests at once, with and without calls that they share."""
    engine = tts.engine

    def speak(chunks: int) -> list[Any]:
        engine.joint_calls = JointCalls(JointLimits(chunks))
        return [speech.codes for speech in tts.synthesize_batch(requests)]

    ms, codes = in_turns(
        {"alone": lambda: speak(1), "together": lambda: speak(len(requests))}, repeats, clock
    )
    return {
        "rows": len(requests),
        "alone_ms": ms["alone"],
        "together_ms": ms["together"],
        "same_codes": same_share(codes["alone"], codes["together"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The same of any model on this CPU, one thread."""
    made = argparse.ArgumentParser("joint", description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    made.add_argument("model")
    made.add_argument("--precision", default="fp32")
    made.add_argument("--frames", type=int, default=CPU_FRAMES)
    made.add_argument("--rows", type=int, nargs="+", default=CPU_ROWS)
    made.add_argument("--repeats", type=int, default=1)
    args = made.parse_args(argv)
    most = max(args.rows)
    options = {"chunks_per_call": most, "steps_per_read": STEPS_AT_ONCE, "slots": most}
    with load_model(args.model, threads=1, precision=args.precision, **options) as tts:
        found = time_model(tts, args.frames, args.repeats, on_gpu=False, numbers=args.rows)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
