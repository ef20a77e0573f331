"""A checkpoint of VALL-E X's published size: the cost of its import, and the AR step against PyTorch.

    pytest -m slow -s tests/export/importers/test_large.py

It needs 5 GB of disk and of memory. The NAR's logits reach 210, which float32 cannot represent within 1e-4.
The export therefore compares with float64, too. The eager step is what a user has without valle2: one row in
PyTorch, with keys and values joined by `torch.cat`. Both sides use one thread and take turns, so a busy
machine slows both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.importers.peers import Lifeiteng
from valle2.benchmarks.speed.eager import decode
from valle2.engine import read_manifest
from valle2.export.importers import read_any
from valle2.export.verify.judge import LOGITS_TOLERANCE, MULTIPLE
from valle2.runtime import Settings, Valle2
from valle2.runtime.generation.engine import EncodedRequest, Sentence
from valle2.runtime.generation.token_layout import Text

READ, WHOLE = (20.0, 1.6), (60.0, 1.8)
"""Most seconds, and most memory as a multiple of the file's size."""
STEPS, ROUNDS, TEXT, PROMPT = 40, 3, 60, 225
GREEDY = Settings(top_p=0.0, threshold=1.0, max_frames=STEPS)
MEASURED = """
import json, resource, sys, time
from pathlib import Path
from valle2.export import export_checkpoint
from valle2.export.importers import read_any
file, *bundle = map(Path, sys.argv[1:])
began = time.perf_counter()
export_checkpoint(file, bundle[0], codec=False) if bundle else read_any([file])
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, peak * 1024]))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds, and the peak of resident memory as a multiple of the file's size."""

    seconds: float
    memory: float


def cost(file: Path, *bundle: Path, threads: int = 1) -> Cost:
    """Read the file, or export it to a bundle, in another process. threads: of eager PyTorch."""
    command = [sys.executable, "-c", MEASURED, str(file), *map(str, bundle)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return Cost(round(seconds, 1), round(peak / file.stat().st_size, 2))


def made(folder: Path) -> Path:
    """The checkpoint. Shared heads are stored once, and `<eos>` is never the likeliest code."""
    file = Lifeiteng(width=1024, heads=16, layers=12, bos=True, languages=True, vocab=2048)
    state = file.state()
    state["ar_predict_layer.weight"][1024] = 0
    torch.save({"model": state}, folder / "vallex.pt")
    return folder / "vallex.pt"


def engine_steps(tts: Valle2, ids: np.ndarray, prompt: np.ndarray) -> float:
    """Seconds per AR step of the engine."""
    request = EncodedRequest((Sentence(Text(ids, ids * 0)),), prompt, GREEDY, codes_only=True)
    timings = tts.run([request])[0].timings
    return timings.ar / (timings.steps - 1)


@pytest.mark.slow
def test_a_checkpoint_of_the_published_size(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    file = made(tmp_path)
    read, whole = cost(file), cost(file, tmp_path / "bundle")
    parallel = cost(file, tmp_path / "bundle", threads=os.cpu_count() or 1)
    print(f"\n{file.stat().st_size / 1e9:.2f} GB; read: {read}; whole export: {whole}")
    print(f"whole export, a thread per core: {parallel}")
    parity = read_manifest(tmp_path / "bundle").parity
    print("; ".join(f"{name} {value:.1e}" for name, value in parity.items()))
    tts = Valle2.load(tmp_path / "bundle", threads=1, slots=1)
    model = read_any([file]).ar
    draws = np.random.default_rng(0)
    ids, prompt = draws.integers(5, 70, TEXT), draws.integers(0, 1024, (PROMPT, 8))
    ours, eager = [], []
    for _ in range(ROUNDS):
        ours.append(engine_steps(tts, ids, prompt))
        began = time.perf_counter()
        _, prefill, steps = decode(model, ids, prompt[:, 0], GREEDY, STEPS)
        eager.append((time.perf_counter() - began - prefill) / (steps - 1))
    ratio = statistics.median(slow / fast for slow, fast in zip(eager, ours, strict=True))
    print(f"AR step: engine {min(ours) * 1e3:.1f} ms, eager {min(eager) * 1e3:.1f} ms, ratio {ratio:.2f}")
    assert parity["nar"] > LOGITS_TOLERANCE and parity["nar_float64"] < MULTIPLE * parity["nar_eager_float64"]
    assert read.seconds < READ[0] and read.memory < READ[1] and ratio > 1
    assert whole.seconds < WHOLE[0] and max(whole.memory, parallel.memory) < WHOLE[1]
