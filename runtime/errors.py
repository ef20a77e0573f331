"""What a user of the runtime can get wrong; each is one line that says what to do."""

from __future__ import annotations

from valle2.engine.errors import Valle2Error


class TextError(Valle2Error):
    """The text holds nothing that can be spoken, or more than fits."""


class PromptError(Valle2Error):
    """A prompt or voice is missing, unreadable, too short, too long, silent or malformed."""


class AudioError(Valle2Error):
    """Audio cannot be written where or how it was asked for."""


class SettingsError(Valle2Error):
    """A setting is not a number or outside its range."""


class ModelError(Valle2Error):
    """No such model, or one that lacks the part that was asked for."""
