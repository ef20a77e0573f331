"""Runs every part in a process of its own, and writes results as they come.

    python -m valle2.benchmarks.speed.on_gpu --out FOLDER
    python -m valle2.benchmarks.speed.on_gpu --out FOLDER --device cpu   # a trial with a toy

`FOLDER` gets `on_gpu.json` (all results), `on_gpu.md` (a table) and `on_gpu.log` (what the parts printed).
The exit status is 0 if every part ran, 1 if one failed or ran out of time. A part that this machine cannot
run is skipped with a reason, which is no failure. Nothing is fetched from a network.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.on_gpu.parts import PARTS
from valle2.benchmarks.speed.on_gpu.setup import CPU, CUDA, NotHereError, Result, Setup, all_threads
from valle2.engine.bundle.files import write_file
from valle2.engine.errors import Valle2Error, one_line

OK, FAILED, LATE, SKIPPED = "ok", "failed", "out of time", "skipped"
LEAST_SECONDS = 5.0
"""A part does not start with less time than this left."""
TRIAL_FACTOR = 6
"""How much longer a part may take on a CPU, where time shows nothing."""
SKIP_STATUS = 3
"""Exit status of a part's process that cannot run here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, or one part if this is its process. Returns the exit status."""
    args = parser().parse_args(argv)
    if args.inside:
        return run_inside(args.inside, Path(args.result))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = args.work or (work if args.device == CPU else "")
        setup = Setup(args.device, folder, args.threads or all_threads())
        return run_parts(setup, out, args.parts or list(PARTS), 60 * args.minutes)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("on_gpu", description=__doc__.split("\n")[0], allow_abbrev=False)
    made.add_argument("--out", default=os.environ.get("OUT", "on_gpu"), help="folder of the results")
    made.add_argument("--device", choices=[CUDA, CPU], default=CUDA, help="cpu is a trial with a toy")
    made.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    made.add_argument("--parts", nargs="+", choices=list(PARTS), help="only these (default: all)")
    made.add_argument("--work", default="", help="folder for models (default: the user's cache)")
    made.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    made.add_argument("--inside", help=argparse.SUPPRESS)
    made.add_argument("--result", help=argparse.SUPPRESS)
    return made


def run_parts(setup: Setup, out: Path, names: Sequence[str], seconds: float) -> int:
    """Run the parts one after another, and write all results after each."""
    began, found = time.monotonic(), dict[str, Result]()
    for name in names:
        print(f"{name} ...", end=" ", flush=True)
        needs = found.get(PARTS[name].needs, {"status": OK})
        if needs["status"] == OK:
            left = began + seconds - time.monotonic()
            limit = PARTS[name].seconds * (1 if setup.on_gpu else TRIAL_FACTOR)
            found[name] = run_part(name, setup, out, min(limit, left))
        else:
            found[name] = {"status": FAILED, "seconds": 0.0, "reason": f"needs {PARTS[name].needs}"}
        print(found[name]["status"], f"{found[name]['seconds']} s", found[name].get("reason", ""), flush=True)
        report = {"device": setup.device, "seconds": round(time.monotonic() - began, 1), "parts": found}
        write_file(out / "on_gpu.json", (json.dumps(report, indent=1) + "\n").encode())
        write_file(out / "on_gpu.md", (table(found) + "\n").encode())
    return int(any(row["status"] in (FAILED, LATE) for row in found.values()))


def run_part(name: str, setup: Setup, out: Path, limit: float) -> Result:
    """Run a part in its own process group, which is killed at its limit."""
    if limit < LEAST_SECONDS:
        return {"status": LATE, "seconds": 0.0, "reason": "no time was left for it"}
    began, result = time.monotonic(), out / f".{name}.json"
    with (out / "on_gpu.log").open("ab") as log:
        log.write(f"== {name}\n".encode())
        log.flush()
        command = part_command(name, setup, result)
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_group(process)
    took = {"seconds": round(time.monotonic() - began, 1)}
    try:
        said: Result = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    result.unlink(missing_ok=True)
    if status is None:
        return {"status": LATE, **took, "reason": f"stopped after {limit:.0f} s"}
    if status == 0 and said:
        wrong = PARTS[name].wrong(said)
        return {"status": FAILED if wrong else OK, **took, "result": said} | (
            {"reason": wrong} if wrong else {}
        )
    state = SKIPPED if status == SKIP_STATUS else FAILED
    return {"status": state, **took, "reason": said.get("reason", f"exit status {status}; see on_gpu.log")}


def part_command(name: str, setup: Setup, result: Path) -> list[str]:
    """The command of a part's process, which writes its result as JSON."""
    given = ["--inside", f"{name} {setup.to_json()}", "--result", str(result)]
    return [sys.executable, "-m", "valle2.benchmarks.speed.on_gpu", *given]


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of a part: its process, and what that has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_inside(given: str, result: Path) -> int:
    """Run one part in this process. given: its name, a space, and the setup as JSON."""
    name, _, setup = given.partition(" ")
    try:
        found, status = PARTS[name].run(Setup.from_json(setup)), 0
    except NotHereError as error:
        found, status = {"reason": str(error)}, SKIP_STATUS
    except Valle2Error as error:
        found, status = {"reason": str(error)}, 1
    except Exception as error:  # the log has the trace, the report one line
        write_file(result, json.dumps({"reason": one_line(f"{type(error).__name__}: {error}")}).encode())
        raise
    write_file(result, json.dumps(found).encode())
    return status


def table(found: dict[str, Result]) -> str:
    """What every part found as a Markdown table."""
    rows = []
    for name, row in found.items():
        if row["status"] != OK:
            rows.append([name, row["status"], row["reason"].replace("|", "/")])
        if "result" in row:
            rows += [[name, what, value] for what, value in PARTS[name].rows(row["result"])]
    return markdown(["part", "", "result"], rows)


if __name__ == "__main__":
    sys.exit(main())
