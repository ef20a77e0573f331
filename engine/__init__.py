"""Bundles, and the backends that run their graphs. Knows named arrays, never text, tokens' meaning or audio.

Importing it loads no runtime: `open_backend` imports ONNX Runtime or TensorRT when it opens a graph.
"""

from valle2.engine.backends.base import Backend, Buffer, Closing, Step, sized
from valle2.engine.backends.placement import Placement, select_variant
from valle2.engine.backends.registry import open_backend
from valle2.engine.bundle.manifest import Manifest, hash_files, read_manifest, write_manifest
from valle2.engine.bundle.precisions import LocatedGraph, find_graphs
from valle2.engine.bundle.profiles import whole_text
from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError, HubError, ManifestError, QueueFullError, Valle2Error

__all__ = [
    "Backend",
    "BackendError",
    "Buffer",
    "Closing",
    "GraphSpec",
    "HubError",
    "LocatedGraph",
    "Manifest",
    "ManifestError",
    "Placement",
    "QueueFullError",
    "Step",
    "TensorSpec",
    "Valle2Error",
    "find_graphs",
    "hash_files",
    "open_backend",
    "read_manifest",
    "select_variant",
    "sized",
    "whole_text",
    "write_manifest",
]
