"""What a result was measured on: model, versions, machine. Every benchmark's JSON ends with it."""

from __future__ import annotations

import os
import platform
from typing import Any

from valle2.engine import Manifest
from valle2.engine.backends.ort.providers import onnxruntime_version


def measured_on(manifest: Manifest, seed: int, threads: int) -> dict[str, Any]:
    """Model, seed, threads, versions and machine."""
    return {
        "model": manifest.name,
        "group_size": manifest.sizes["group_size"],
        "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256", ""),
        "seed": seed,
        "threads": threads,
        "versions": {"onnxruntime": onnxruntime_version(), "python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name on Linux, else what Python knows of it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
