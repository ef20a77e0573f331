"""Every error a user can cause. One line each: what was received, what was expected, what to do."""

from __future__ import annotations


class Valle2Error(ValueError):
    """Base of all errors that valle2 raises for bad input or a bad machine."""


class ManifestError(Valle2Error):
    """A bundle is incomplete, damaged, of another format, or reaches outside its folder."""


class BackendError(Valle2Error):
    """A device or provider is absent, or a graph was fed something it does not take."""


class AuditError(BackendError):
    """A parsed TensorRT network would not compute what the graph means, or not as fast as designed."""


class QueueFullError(Valle2Error):
    """More requests are waiting than the scheduler was told to hold."""


class HubError(Valle2Error):
    """A model of the hub cannot be had: offline, absent, gated, damaged, or the disk is full."""
