"""Text and a voice to speech: the paper's figure, one call per stage.

    text -> ids -> AR (codebook 0, grouped, repetition-aware) -> NAR (codebooks 1..7) -> codec -> audio

It knows the stages and their order; tokens are `generate`'s, arrays `decode`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle2.engine import BackendError, Manifest, open_backend, read_manifest
from valle2.runtime.audio import Audio, faded, join, pause, read_audio
from valle2.runtime.codec import Codec
from valle2.runtime.errors import ModelError, PromptError
from valle2.runtime.generate import Generated, Generator, Timings, check_tokens
from valle2.runtime.settings import Prompt, Request, Settings
from valle2.runtime.text import load_front_end
from valle2.runtime.voices import read_voice, voice_names

Codes = NDArray[np.int64]
MODELS = Path(__file__).with_name("models")
PRECISIONS = ("fp32",)
MIN_PROMPT_SECONDS = 0.5
MAX_PROMPT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Speech:
    """Synthesised speech. audio: (N,) float32. codes: (T, 8) int64. finish_reason: the worst of its
    sentences, `eos` or `max_frames`."""

    audio: Audio = field(repr=False)
    sample_rate: int
    codes: Codes = field(repr=False)
    finish_reason: str
    timings: Timings


class Valle2:
    """A loaded model. Not for use from two threads at once."""

    def __init__(self, path: Path, manifest: Manifest, device: str, threads: int) -> None:
        self.path = path
        self.manifest = manifest
        backends = {
            name: open_backend(path, graph, device, threads) for name, graph in manifest.graphs.items()
        }
        self.generator = Generator(backends["ar"], backends["nar"], manifest.sizes, manifest.cache_length)
        self.codec = None
        if manifest.codec:
            self.codec = Codec(backends["codec_encoder"], backends["codec_decoder"], manifest.codec)
        self.front = load_front_end(path, manifest.text) if (path / "text").is_dir() else None

    @classmethod
    def load(
        cls,
        model: str | Path = "demo",
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int = 0,
    ) -> Valle2:
        """Open a bundle.

        Args:
            model: "demo" for the embedded model, or a bundle's folder. device: "cpu" or "cuda".
            precision: "fp32". threads: CPU threads, 0 for all cores.

        Raises:
            ManifestError: no bundle there, or a damaged one. BackendError: no such device.
        """
        if precision not in PRECISIONS:
            raise BackendError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
        path = find_model(model)
        return cls(path, read_manifest(path), device, threads)

    # -- voices ---------------------------------------------------------------------------------

    def voices(self) -> list[str]:
        """Names of the bundle's voices."""
        return voice_names(self.manifest)

    def voice(self, name: str) -> Prompt:
        """One of the bundle's voices."""
        return read_voice(self.path, self.manifest, name)

    def prompt(self, path: str | Path, transcript: str, name: str = "prompt") -> Prompt:
        """A voice from a recording.

        Args:
            path: WAV, FLAC, OGG or MP3, any rate, mono or stereo, 0.5 to 20 s of one speaker.
            transcript: the words spoken in it.

        Raises:
            PromptError: the recording cannot be used, or the transcript is empty.
        """
        codec = self.need_codec()
        if not transcript.strip():
            raise PromptError(f"{path}: the transcript is empty; pass the words spoken in the recording")
        longest = min(MAX_PROMPT_SECONDS, self.manifest.sizes["max_frames"] / 2 / codec.frame_rate)
        audio = read_audio(Path(path), codec.sample_rate, MIN_PROMPT_SECONDS, longest)
        return Prompt(codec.encode(audio), transcript, name, source=Path(path).name)

    def need_codec(self) -> Codec:
        if self.codec is None:
            raise ModelError(f"{self.path} has no codec; use generate_codes, or export it with one")
        return self.codec

    # -- speech ---------------------------------------------------------------------------------

    def synthesize(self, text: str, voice: Prompt, settings: Settings | None = None) -> Speech:
        """Speak a text of any length.

        Raises:
            TextError: nothing in the text can be spoken. PromptError: the prompt leaves no room.
        """
        request = Request(text, voice, settings or self.settings())
        timings, parts = Timings(), list[Generated]()
        began = time.perf_counter()
        audio = join(list(self.pieces(request, timings, parts)))
        timings.total = time.perf_counter() - began
        timings.audio = len(audio) / self.need_codec().sample_rate
        reasons = {part.finish_reason for part in parts}
        return Speech(
            audio,
            self.need_codec().sample_rate,
            np.concatenate([part.codes for part in parts]),
            "max_frames" if "max_frames" in reasons else "eos",
            timings,
        )

    def stream(self, text: str, voice: Prompt, settings: Settings | None = None) -> Iterator[Audio]:
        """Yield audio (N,) float32 sentence by sentence; joined it is `synthesize`'s audio."""
        yield from self.pieces(Request(text, voice, settings or self.settings()), Timings(), [])

    def synthesize_batch(self, requests: Iterable[Request]) -> list[Speech]:
        """Speak several requests, each as if alone."""
        return [self.synthesize(r.text, r.prompt, r.settings) for r in requests]

    def settings(self) -> Settings:
        """The model's own defaults."""
        return replace(Settings(), **self.manifest.sampling)  # type: ignore[arg-type]

    def pieces(self, request: Request, timings: Timings, parts: list[Generated]) -> Iterator[Audio]:
        """Audio of every sentence, faded at the seams, with a pause between two."""
        codec = self.need_codec()
        for index, ids in enumerate(self.sentence_ids(request)):
            generated = self.generator.generate(ids, request.prompt.codes, request.settings, index, timings)
            parts.append(generated)
            began = time.perf_counter()
            audio = faded(codec.decode(generated.codes), codec.sample_rate)
            timings.codec += time.perf_counter() - began
            yield join([pause(codec.sample_rate), audio]) if index else audio

    def sentence_ids(self, request: Request) -> Iterator[Codes]:
        """Ids of each sentence, the prompt's transcript before it (section 3.4)."""
        if self.front is None:
            raise ModelError(f"{self.path} has no text front end; use generate_codes")
        transcript = request.prompt.transcript
        room = self.manifest.sizes["max_text"] - 2 - len(self.front.encode(transcript))
        if room < 1:
            raise PromptError("the prompt's transcript fills the model's text; use a shorter prompt")
        for sentence in self.front.split(request.text, room):
            yield self.front.encode(f"{transcript} {sentence}")

    # -- tokens ---------------------------------------------------------------------------------

    def generate_codes(
        self, text_ids: Codes, prompt_codes: Codes, settings: Settings | None = None
    ) -> Generated:
        """Tokens in, codes out.

        Args:
            text_ids: (S,) int64, transcript of the prompt and the target text, without `<eos>`.
            prompt_codes: (P, 8) int64, P may be 0.

        Returns:
            Codes (T, 8) of the target and why they ended.

        Raises:
            TextError, PromptError: wrong shapes, ids out of range, or no room left.
        """
        ids, prompt = check_tokens(text_ids, prompt_codes, self.manifest.sizes)
        return self.generator.generate(ids, prompt, settings or self.settings(), 0, Timings())


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name or a path."""
    embedded = MODELS / str(model)
    if str(model).isidentifier() and embedded.is_dir():
        return embedded
    path = Path(model)
    if not path.exists():
        names = sorted(p.name for p in MODELS.iterdir()) if MODELS.is_dir() else []
        embedded_names = ", ".join(names) or "none is embedded in this version"
        raise ModelError(
            f"unknown model {str(model)!r}; expected a bundle or an embedded model ({embedded_names})"
        )
    return path
