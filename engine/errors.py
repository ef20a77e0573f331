"""The errors that a user can cause. A message says what was received, what was expected and what to do."""

from __future__ import annotations

import re

MAX_HEAD, MAX_TAIL = 1200, 700
"""Characters that remain of a long message: its beginning, and its end, which says what to do."""
BREAKS = re.compile(r"[^\S ]+")
UNPRINTABLE = "?"


def one_line(text: str) -> str:
    """The text as one printable line. Names in it may come from a file that a stranger wrote."""
    if len(text) > MAX_HEAD + MAX_TAIL:
        text = f"{text[:MAX_HEAD]} ... {text[-MAX_TAIL:]}"
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else UNPRINTABLE for mark in BREAKS.sub(" ", text))


class Valle2Error(ValueError):
    """Base of the errors that valle2 raises for wrong input or a machine that lacks something.

    Its message is one line.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(str(arg)) for arg in args))


class ManifestError(Valle2Error):
    """A bundle is incomplete, damaged, of another format, or refers to files outside its folder."""


class BackendError(Valle2Error):
    """A device or provider is absent, or a graph does not take an input."""


class AuditError(BackendError):
    """A parsed TensorRT network would compute something else than the graph, or be slower than designed."""


class QueueFullError(Valle2Error):
    """More requests are waiting than the scheduler holds."""


class HubError(Valle2Error):
    """A model of the hub cannot be fetched: offline, absent, gated or damaged, or the disk is full."""
