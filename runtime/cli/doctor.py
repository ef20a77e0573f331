"""`valle2 doctor`: what this machine has, what is missing, and the command that installs it."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from valle2.engine.backends.ort.providers import (
    BOTH_INSTALLED,
    CUDA_EXTRA,
    INSTALL,
    MISSING,
    PROVIDERS,
    REINSTALL,
    both_installed,
    load_onnxruntime,
    lowerings_for,
    onnxruntime_version,
)
from valle2.engine.errors import BackendError

HELP = "show what this machine can run"
PARTS = {
    "export": (("torch", "onnx", "onnxscript"), "pip install 'valle2[export]'"),
    "tensorrt": (("tensorrt",), "pip install 'valle2[tensorrt]'"),
    "tensorrt-rtx": (("tensorrt_rtx",), "pip install 'valle2[tensorrt-rtx]'"),
}
CUDA_READY = "ready, for the embedded model and bundles exported with --lowering ort portable"
OLD_PYTHON = "onnxruntime 1.32, for Python 3.11 or newer, runs all of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments of its own."""


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def cpu_state() -> str:
    """Whether ONNX Runtime can run here, with which lowerings if not all, or the command that installs it."""
    try:
        found, _ = lowerings_for("ort", "cpu")
    except BackendError as error:
        return str(error) if onnxruntime_version() != MISSING else f"missing; {INSTALL}"
    if found == PROVIDERS["ort", "cpu"].lowerings:
        return "ready"
    return f"ready, but only for bundles with the lowering {' or '.join(found)}; {OLD_PYTHON}"


def cuda_state() -> str:
    """Whether ONNX Runtime has its provider for CUDA, or the command that mends it."""
    try:
        providers = load_onnxruntime().get_available_providers()
    except BackendError:
        providers = []
    if PROVIDERS["ort", "cuda"].name in providers:
        beside = "onnxruntime is installed too, and its next update would take CUDA away; then"
        return f"{CUDA_READY}; {beside} {REINSTALL}" if both_installed() else CUDA_READY
    if both_installed():
        return f"missing: {BOTH_INSTALLED}; {REINSTALL}"
    return f"missing; pip install '{CUDA_EXTRA}' (needs an NVIDIA GPU)"


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> dict[str, Any]:
    """Versions, devices, and a line for each optional part."""
    parts = {"cpu": cpu_state(), "cuda": cuda_state()}
    for name, (modules, command) in PARTS.items():
        missing = [module for module in modules if find_spec(module) is None]
        parts[name] = f"missing {', '.join(missing)}; {command}" if missing else "installed"
    return {
        "valle2": installed("valle2"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "can run": parts,
    }
