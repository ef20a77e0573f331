"""The graphs of a loaded model, each with its runner. Every stage can be called by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from valle2.runtime.audio.codec import Codec
from valle2.runtime.errors import ModelError, SettingsError
from valle2.runtime.generation.alignment import FILE, AlignmentTable, spoken_id
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.joint_calls import ALONE, JointLimits
from valle2.runtime.generation.nar_runner import NARRunner
from valle2.runtime.generation.token_layout import Text, TokenLayout
from valle2.runtime.types import FIRST_CHUNK_CODEBOOKS, Codes, Settings


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What synthesis runs on.

    Args:
        ar, nar: the two language models. codec: None in a bundle without one.
        layout: where text, marks and codes stand in the model's input. sizes: the manifest's.
        neutral: (Q,) int64, the codes that stand for those not computed; None in a bundle that names none.
        path: the bundle's folder, for messages. alignment: finds the words' times, None in a bundle without.
        joint_limits: which calls of the NAR and the codec several requests share.
    """

    ar: ARRunner
    nar: NARRunner
    codec: Codec | None
    layout: TokenLayout
    sizes: Mapping[str, int]
    neutral: Codes | None
    path: str
    alignment: AlignmentTable | None = None
    joint_limits: JointLimits = ALONE

    def need_codec(self) -> Codec:
        """The codec.

        Raises:
            ModelError: the bundle has none.
        """
        if self.codec is None:
            raise ModelError(
                f"{self.path} has no codec, so it makes codes alone (generate_codes); for sound, export it "
                f"again: valle2 export CHECKPOINT -o {self.path} --codec CODEC"
            )
        return self.codec

    def need_alignment(self) -> AlignmentTable:
        """The table that finds the words' times.

        Raises:
            ModelError: the bundle has none.
        """
        if self.alignment is None:
            raise ModelError(f"{self.path} has no word times, because it has no {FILE}; ask for none")
        return self.alignment

    def check(self, settings: Settings) -> None:
        """Check that the model can speak with these settings.

        Raises:
            SettingsError: fewer codebooks are asked for than the bundle has neutral codes for, or seconds of
                prompt from a bundle without a codec.
        """
        fewer = {settings.codebooks, settings.first_chunk_codebooks} - {0, self.layout.codebooks}
        if fewer and self.codec and self.neutral is None:
            raise SettingsError(
                f"codebooks is {min(fewer)}, but {self.path} was exported before bundles had neutral codes; "
                "export it again, or leave codebooks at 0"
            )
        if settings.nar_prompt_seconds and self.codec is None:
            raise SettingsError(
                f"nar_prompt_seconds is {settings.nar_prompt_seconds:g}, but {self.path} has no codec, which "
                "says how many frames a second has; leave it at 0"
            )

    def codebooks(self, settings: Settings, *, first_chunk: bool) -> int:
        """How many codebooks the NAR gives a chunk.

        Args:
            first_chunk: it is the first that the listener of a stream hears.
        """
        wanted = min(settings.codebooks, self.layout.codebooks) or self.layout.codebooks
        if not first_chunk:
            return wanted
        if settings.first_chunk_codebooks:
            return min(settings.first_chunk_codebooks, self.layout.codebooks)
        return wanted if self.neutral is None else min(wanted, FIRST_CHUNK_CODEBOOKS)

    def nar_prompt_frames(self, settings: Settings, prompt: Codes) -> int:
        """How many frames at the end of a prompt (P, Q) the NAR hears."""
        if not settings.nar_prompt_seconds or not len(prompt):
            return len(prompt)
        return min(len(prompt), max(1, round(settings.nar_prompt_seconds * self.need_codec().frame_rate)))

    def shorten(self, text: Text, prompt: Codes, settings: Settings) -> Text:
        """The text without the ids that the NAR's part of the prompt (P, Q) no longer says.

        In training, the NAR's text says all of its frames. Without an alignment table, or without knowing
        where the transcript ends, the NAR reads the whole text.
        """
        start = len(prompt) - self.nar_prompt_frames(settings, prompt)
        if not start or self.alignment is None or text.prompt_length is None:
            return text
        marks = self.layout.marks(text.ids)
        transcript = self.layout.bare(text.ids)[: text.prompt_length - 2 * marks]
        if not len(transcript):
            return text
        return replace(text, unheard=spoken_id(self.alignment, transcript, prompt[:, 0], start))

    def close(self) -> None:
        """Free the graphs' memory. The model cannot be used after it."""
        self.ar.close()
        self.nar.close()
        if self.codec:
            self.codec.close()
