"""Runs each fuzzer in its own process and watches what reading a file does.

A file may be read, or refused with a `Valle2Error` of one line. Faults are another exception, running code,
too much memory, more than two seconds of CPU time, and a process that dies or hangs. Audit events of Python,
and a folder that hostile pickles make, reveal running code. Memory may grow by 1.5 times the file's size
plus a constant.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from valle2.engine.errors import Valle2Error

SECONDS, HANG = 2.0, 60
"""CPU seconds for one file, and seconds after which the process is killed."""
GROWTH, CONSTANT = 1.5, 24 << 20
"""Peak memory of a read: this many times the file's size, plus bytes for small Python values."""
LONGEST_MESSAGE = 2000
WARM_UP = 30
FORBIDDEN = (
    *(
        "exec",
        "compile",
        "import",
        "marshal.loads",
        "pickle.find_class",
        "ctypes.dlopen",
        "ctypes.call_function",
    ),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"),
    *("socket.connect", "socket.bind", "socket.sendto", "shutil.rmtree", "shutil.copyfile"),
)
"""Audit events that must not occur during a read. Fuzzers import beforehand what readers import late."""


class Fuzzes(Protocol):
    """Makes hostile files and reads them. Hostile code would make the folder `mark`."""

    mark: Path

    def make(self) -> Path: ...
    def read(self, path: Path) -> None: ...


@dataclass
class Report:
    """Results of a run. faults: (message, number of the file), at most 20."""

    kind: str
    files: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    growth: int = 0
    faults: list[tuple[str, int]] = field(default_factory=list)


class Watch:
    """Collects forbidden audit events while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.event)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if name == "ctypes.dlopen" and arguments[0] is None:  # the process itself
            return
        writes = name == "open" and len(arguments) == 3 and arguments[2] is not None and arguments[2] & 3
        if name in FORBIDDEN or writes:
            self.seen.append(f"{name} {str(arguments[:2])[:100]}")


def memory(name: str) -> int:
    """A figure of this process in bytes: VmRSS, or VmHWM, its peak."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def reset_peak() -> None:
    """Reset the peak to the memory that is resident now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def run(kind: str, fuzzer: Fuzzes, count: int, watch: Watch, progress: Path) -> Report:
    """Make and read files in this process. progress: a file for the state of the run, if the process dies."""
    report = Report(kind)
    for number in range(count):
        path = fuzzer.make()
        size = sum(part.lstat().st_size for part in ([path] if path.is_file() else path.rglob("*")))
        progress.write_text(json.dumps(asdict(report) | {"files": number}))
        fault = ""
        if number % 500 == 0:
            gc.collect()
        before = memory("VmRSS")
        reset_peak()
        signal.alarm(HANG)
        began = time.process_time()
        watch.on = number >= WARM_UP
        try:
            fuzzer.read(path)
            report.read += 1
        except Valle2Error as error:
            report.refused += 1
            message = str(error)
            if not message.isprintable() or len(message) > LONGEST_MESSAGE:
                fault = f"message of {len(message)} characters: {message[:200]!r}"
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:300]!r}"
        finally:
            watch.on = False
        seconds = time.process_time() - began
        signal.alarm(0)
        grown = memory("VmHWM") - before
        if number >= WARM_UP:
            report.slowest, report.growth = max(report.slowest, seconds), max(report.growth, grown)
            if seconds > SECONDS:
                fault = fault or f"took {seconds:.1f} s"
            if grown > GROWTH * size + CONSTANT:
                fault = fault or f"grew memory by {grown >> 20} MiB for a file of {size} bytes"
        if watch.seen:
            fault = f"did what it must not: {watch.seen[0]}"
            watch.seen.clear()
        if fuzzer.mark.exists():
            fault = "ran code"
            fuzzer.mark.rmdir()
        if fault and len(report.faults) < 20:
            report.faults.append((fault, number))
            keep(path, kind, number)
        report.files += 1
    return report


def keep(path: Path, kind: str, number: int) -> None:
    """Copy a file that shows a fault to $FUZZ_KEEP, if that is set."""
    folder = os.environ.get("FUZZ_KEEP")
    if folder and path.is_file():
        (Path(folder) / f"{kind}-{number}{path.suffix}").write_bytes(path.read_bytes())


Maker = Callable[[Path, int], Fuzzes]


def work(kind: str, maker: Maker, count: int, seed: int, folder: Path) -> None:
    """The process's main function: make a fuzzer, run it, and write the report to a file."""
    (folder / "files").mkdir()
    watch = Watch()
    torch.set_num_threads(1)
    report = run(kind, maker(folder / "files", seed), count, watch, folder / "progress")
    (folder / "report").write_text(json.dumps(asdict(report)))


def fuzz(kind: str, maker: Maker, count: int, seed: int = 0) -> Report:
    """Run a fuzzer in its own process.

    Args:
        kind: its name in the report. maker: makes it from a folder and a seed. count: files.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=work, args=(kind, maker, count, seed, folder))
        process.start()
        process.join()
        done = folder / "report"
        left = done if done.exists() else folder / "progress"
        if not left.exists():
            return Report(kind, faults=[(f"the process ended with status {process.exitcode}", 0)])
        values = json.loads(left.read_text())
        report = Report(**{**values, "faults": [tuple(fault) for fault in values["faults"]]})
        if left != done:
            report.faults.append((f"the process ended with status {process.exitcode}", report.files))
        return report
