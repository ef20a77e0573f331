"""Errors that users of the runtime can cause. Each message is one line: received, expected, what to do."""

from __future__ import annotations

from valle2.engine.errors import Valle2Error


class TextError(Valle2Error):
    """Nothing in the text can be spoken, or it is too long for the model."""


class LexiconError(TextError):
    """A lexicon or a pronunciation is malformed, or holds phonemes that the model has no symbol for."""


class PromptError(Valle2Error):
    """A prompt or voice is missing, unreadable, too short, too long, silent or malformed."""


class SynthesisError(Valle2Error):
    """The model made no speech for a sentence, however often it was tried.

    `code` is for programs: the `code` of the error that a server answers with.
    """

    code = "no_speech"


class AudioError(Valle2Error):
    """Audio cannot be written to this place or in this format."""


class SettingsError(Valle2Error):
    """A setting is not a number or is outside its range."""


class ModelError(Valle2Error):
    """There is no such model, or it lacks a part that the request needs."""
