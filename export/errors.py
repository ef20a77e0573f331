"""Errors of the export that a user can cause."""

from __future__ import annotations

from valle2.engine.errors import Valle2Error


class CheckpointError(Valle2Error):
    """A checkpoint is missing, of another format, or contradicts its own sizes."""
