"""`valle2 doctor`: what this machine has, what is missing, and the command that installs it."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import onnxruntime

from valle2.engine.backends.ort.providers import BOTH_INSTALLED, CUDA_EXTRA, REINSTALL, both_installed

HELP = "show what this machine can run"
PARTS = {
    "export": (("torch", "onnx", "onnxscript"), "pip install 'valle2[export]'"),
    "tensorrt": (("tensorrt",), "pip install 'valle2[tensorrt]'"),
    "tensorrt-rtx": (("tensorrt_rtx",), "pip install 'valle2[tensorrt-rtx]'"),
}
CUDA_READY = "ready, for the embedded model and bundles exported with --lowering ort portable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments of its own."""


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def cuda_advice() -> str:
    """Why CUDA is missing, and the command that mends it."""
    if both_installed():
        return f"missing: {BOTH_INSTALLED}; {REINSTALL}"
    return f"missing; pip install '{CUDA_EXTRA}' (needs an NVIDIA GPU)"


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> dict[str, Any]:
    """Versions, devices, and a line for each optional part."""
    providers = onnxruntime.get_available_providers()
    cuda = "CUDAExecutionProvider" in providers
    parts = {"cpu": "ready", "cuda": CUDA_READY if cuda else cuda_advice()}
    for name, (modules, command) in PARTS.items():
        missing = [module for module in modules if find_spec(module) is None]
        parts[name] = f"missing {', '.join(missing)}; {command}" if missing else "installed"
    return {
        "valle2": installed("valle2"),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "can run": parts,
    }
