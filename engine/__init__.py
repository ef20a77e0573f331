"""Graphs to sessions: bundles, backends and buffers. Knows named arrays, never speech."""

from valle2.engine.backends.base import Backend, Buffer, Closing, FakeBackend, Step, open_backend, sized
from valle2.engine.backends.ort.providers import fitted, prefill_chunk
from valle2.engine.bundle.manifest import (
    Manifest,
    hash_files,
    read_manifest,
    write_manifest,
)
from valle2.engine.bundle.precisions import check_precision, find_graphs
from valle2.engine.bundle.profiles import whole_text
from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError, HubError, ManifestError, QueueFullError, Valle2Error

__all__ = [
    "Backend",
    "BackendError",
    "Buffer",
    "Closing",
    "FakeBackend",
    "GraphSpec",
    "HubError",
    "Manifest",
    "ManifestError",
    "QueueFullError",
    "Step",
    "TensorSpec",
    "Valle2Error",
    "check_precision",
    "find_graphs",
    "fitted",
    "hash_files",
    "open_backend",
    "prefill_chunk",
    "read_manifest",
    "sized",
    "whole_text",
    "write_manifest",
]
