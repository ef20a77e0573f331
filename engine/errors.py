"""Every error a user can cause. One line each: what was received, what was expected, what to do."""

from __future__ import annotations

import re

MAX_HEAD, MAX_TAIL = 1200, 700
"""Characters that are kept of a message that is too long: its beginning, and the remedy at its end."""
BREAKS = re.compile(r"[^\S ]+")
UNPRINTABLE = "?"


def one_line(text: str) -> str:
    """A text that a terminal and a log show as one line: names in it may come from strangers."""
    if len(text) > MAX_HEAD + MAX_TAIL:
        text = f"{text[:MAX_HEAD]} ... {text[-MAX_TAIL:]}"
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else UNPRINTABLE for mark in BREAKS.sub(" ", text))


class Valle2Error(ValueError):
    """Base of all errors that valle2 raises for bad input or a bad machine. Its message is one line."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(str(arg)) for arg in args))


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
