"""Two Ray Serve replicas against one, over HTTP, with equal threads per replica.

    python -m valle2.benchmarks.serving.replicas --rounds 5

Both applications run at the same time, at /one and /two. They are loaded in turns, so that other load of the
machine affects both. `ratio` is the median over the rounds of two / one, in audio seconds per second. Clients
send the next request after each answer (a closed loop); there are as many as two replicas have rows.

This needs the extra `ray`, Linux, and one free core for each thread of each replica. On a busy machine the
replicas share the cores, and the ratio says little. `cpu`, processor seconds of the replicas per second of
speech, depends less on other programs. `ratio_by_cpu` is 2 * cpu of one / cpu of two, the ratio to expect if
each replica had its own core.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from valle2.benchmarks.options import TEXT, need_positive
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.serving.client import speech_body
from valle2.runtime import Valle2
from valle2.runtime.audio.io import BYTES_PER_SAMPLE

IMPORT_PATH = "valle2.runtime.server.ray_app:application"
START_SECONDS = 120.0
STOP_SECONDS = 60.0
REQUEST_SECONDS = 300.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # the default of 15 puts replicas behind all other processes
}


def config(port: int, apps: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a Ray Serve config file."""
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": apps}


def app(name: str, prefix: str, args: dict[str, Any], count: int) -> dict[str, Any]:
    """One application of a config. The replicas of two applications are never busy together, so each reserves
    half a core."""
    return {
        "name": name,
        "route_prefix": prefix,
        "import_path": IMPORT_PATH,
        "args": args,
        "deployments": [{"name": "Speech", "num_replicas": count, "ray_actor_options": {"num_cpus": 0.5}}],
    }


@contextmanager
def running(content: dict[str, Any], log: Path) -> Iterator[str]:
    """Run a local Ray cluster with these applications; the context's value is its address."""
    file = log.with_suffix(".yaml")
    file.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(file)]
    address = f"http://127.0.0.1:{content['http_options']['port']}"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **ENVIRONMENT})
    try:
        for part in content["applications"]:
            wait_ready(process, f"{address}{part['route_prefix'].rstrip('/')}/ready", log)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the URL answers with status 200.

    Raises:
        RuntimeError: it does not in time; the message has the end of the log.
    """
    end = time.perf_counter() + START_SECONDS
    while process.poll() is None and time.perf_counter() < end:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, HTTPError, HTTPException, OSError):
            time.sleep(0.2)
    end_of_log = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{url} did not answer within {START_SECONDS:.0f} s; the end of its log: {end_of_log}")


def speak(url: str, text: str, seed: int) -> tuple[bytes, str]:
    """Send one request. Returns PCM and the replica's name."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/v1/audio/speech", speech_body(text, seed), headers)
    with urlopen(request, timeout=REQUEST_SECONDS) as response:
        return response.read(), response.headers["X-Replica"]


def cpu_seconds(name: str) -> float:
    """Processor seconds that the replicas of an application have used."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_text().startswith(f"ray::ServeReplica:{name}:"):
                after_name = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(after_name[11]) + int(after_name[12])  # utime, stime
        except OSError:
            continue  # the process has ended
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Load:
    """One closed loop.

    speed: audio seconds per second. cpu: processor seconds per audio second. names: replicas that answered.
    """

    speed: float
    cpu: float
    names: frozenset[str]


def loaded(address: str, name: str, text: str, seeds: range, clients: int, rate: int) -> Load:
    """Send requests with these seeds to one application."""
    began, used = time.perf_counter(), cpu_seconds(name)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda seed: speak(f"{address}/{name}", text, seed), seeds))
    audio = sum(len(pcm) for pcm, _ in answers) / BYTES_PER_SAMPLE / rate
    took, used = time.perf_counter() - began, cpu_seconds(name) - used
    return Load(audio / took, used / audio, frozenset(name for _, name in answers))


def replicas(model: str, text: str, requests: int, slots: int, rounds: int, port: int) -> dict[str, Any]:
    """Compare one replica with two."""
    need_positive(requests=requests, slots=slots, rounds=rounds)
    args = {"model": model, "threads": 1, "limits": {"slots": slots, "queue": 2 * requests}}
    apps = [app(name, f"/{name}", args, count) for name, count in (("one", 1), ("two", 2))]
    tts = Valle2.load(model, threads=1, slots=1)
    rate = tts.need_codec().sample_rate
    found: dict[str, list[Load]] = {"one": [], "two": []}
    with (
        tempfile.TemporaryDirectory() as folder,
        running(config(port, apps), Path(folder) / "log") as address,
    ):
        for turn in range(rounds + 1):
            for name in found:
                seeds = range(turn * requests, (turn + 1) * requests)
                load = loaded(address, name, text, seeds, 2 * slots, rate)
                found[name] += [load] if turn else []  # the first round is the warm-up
    return (
        summary(found)
        | {
            "load_average": [round(value, 2) for value in os.getloadavg()],
            "slots": slots,
            "clients": 2 * slots,
            "requests": requests,
            "text": text,
        }
        | measured_on(tts.manifest, 0, 1)
    )


def summary(found: dict[str, list[Load]]) -> dict[str, Any]:
    """Medians, and the ratio of every round."""
    pairs = list(zip(found["one"], found["two"], strict=True))
    return {
        "one_replica": round(median(one.speed for one, _ in pairs), 3),
        "two_replicas": round(median(two.speed for _, two in pairs), 3),
        "ratio": round(median(two.speed / one.speed for one, two in pairs), 3),
        "ratios": [round(two.speed / one.speed, 3) for one, two in pairs],
        "cpu": {name: round(median(load.cpu for load in loads), 3) for name, loads in found.items()},
        "ratio_by_cpu": round(median(2 * one.cpu / two.cpu for one, two in pairs), 3),
        "answered": {name: len({n for x in loads for n in x.names}) for name, loads in found.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    return markdown(
        ["", "audio s/s"],
        [
            ["one replica", result["one_replica"]],
            ["two replicas", result["two_replicas"]],
            ["ratio (median of rounds)", result["ratio"]],
            ["ratio by processor seconds", result["ratio_by_cpu"]],
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Two Ray Serve replicas against one.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--requests", type=int, default=16, help="requests per round")
    parser.add_argument("--slots", type=int, default=4, help="rows per replica")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one warm-up")
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    result = replicas(args.model, args.text, args.requests, args.slots, args.rounds, args.port)
    print(table(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
