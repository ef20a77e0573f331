"""Text and a voice to speech: the paper's figure, one call per stage.

    text -> ids -> AR (codebook 0, grouped, repetition-aware) -> NAR (codebooks 1..7) -> codec -> audio

It knows the stages and their order; tokens are `generate`'s, arrays `decode`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle2.engine import (
    Backend,
    HubError,
    Manifest,
    Placement,
    open_backend,
    read_manifest,
)
from valle2.engine.backends.ort.memory import trim_heap
from valle2.engine.bundle.hub import fetch_bundle, parse_id
from valle2.engine.bundle.manifest import FILE_NAME
from valle2.engine.bundle.precisions import AUTO
from valle2.engine.bundle.schema import MAX_WINDOW
from valle2.engine.bundle.untrusted import exists, is_folder
from valle2.runtime.audio.chunks import LATENCY_SECONDS, chunk_sizes, seams_of
from valle2.runtime.audio.codec import Codec
from valle2.runtime.audio.io import pause, read_audio
from valle2.runtime.errors import ModelError, PromptError, SettingsError
from valle2.runtime.generation.ar_runner import Slots
from valle2.runtime.generation.generate import Generated, Graphs, Utterance
from valle2.runtime.generation.scheduler import Batch, Job, Need, Scheduler
from valle2.runtime.generation.token_layout import Rules, Text, check_prompt, check_text
from valle2.runtime.speech import Speech, Spoken, Stream
from valle2.runtime.text.front_end import TextFrontEnd, load_front_end
from valle2.runtime.timings import Timings
from valle2.runtime.types import Prompt, Request, Settings
from valle2.runtime.voices import read_voice, voice_names

Codes = NDArray[np.int64]
MODELS = Path(__file__).resolve().with_name("models")
"""Of the file itself: an editable install links single files, and a bundle may not leave its folder."""
SLOTS = 8
MIN_PROMPT_SECONDS = 0.5
MAX_PROMPT_SECONDS = 20.0


class Valle2:
    """A loaded model. Not for use from two threads at once."""

    def __init__(self, path: Path, manifest: Manifest, slots: int, placement: Placement) -> None:
        self.path = path
        self.manifest = manifest
        self.precision = placement.precision
        graphs = placement.locate_graphs(path, manifest)
        encoder = graphs.pop("codec_encoder", None)
        backends = {
            name: open_backend(found.folder, found.spec, placement, stepped=name == "ar")
            for name, found in graphs.items()
        }
        rules, length = Rules.of(manifest), manifest.cache_length
        rows = Slots(
            backends["ar"],
            manifest.sizes,
            length,
            slots,
            MAX_WINDOW,
            chunk=placement.prefill_chunk,
            whole_text=rules.whole_text,
        )
        self.graphs = Graphs(Batch(rows), backends["nar"], manifest.sizes, rules)
        self.scheduler = Scheduler(self.graphs.batch)
        self.codec = None
        if manifest.codec and encoder:

            def open_encoder() -> Backend:
                found = read_manifest(path, check_hashes=False)
                if found.in_lowering([manifest.lowering], str(path)) != manifest:
                    raise ModelError(f"{path} has changed since it was loaded; load it anew")
                return open_backend(encoder.folder, encoder.spec, placement)

            decoder, stream = backends["codec_decoder"], backends.get("codec_stream")
            self.codec = Codec(open_encoder, decoder, manifest.codec, stream)
        self.front = None
        if any(name.startswith("text/") for name in manifest.files):
            self.front = load_front_end(path, manifest.text, manifest.files)
            self.check_vocabulary(self.front)
        trim_heap()

    @classmethod
    def load(
        cls,
        model: str | Path = "demo",
        *,
        device: str = "cpu",
        precision: str = AUTO,
        threads: int = 0,
        slots: int = SLOTS,
        engine: str = "ort",
        fallback: bool = False,
    ) -> Valle2:
        """Open a bundle.

        Args:
            model: "demo" for the embedded model, a bundle's folder, or `owner/name[@revision]` on the hub.
            device: "cpu" or "cuda".
            precision: "fp32" as stored; "fp16", "int8" or "int4" once `valle2 build --target ort` made it; of
                an engine, the one it was built with. "auto" is "int8" on a "cpu" if it is built, else "fp32".
            threads: CPU threads, 0 for all cores.
            slots: rows decoded side by side; an engine must be built for as many (--max-batch).
            engine: "ort", or "tensorrt" / "tensorrt-rtx" with what `valle2 build` made, on "cuda";
                "ort-tensorrt" / "ort-tensorrt-rtx" are these providers of ONNX Runtime.
            fallback: let ONNX Runtime run elsewhere what its provider on "cuda" does not take.

        Raises:
            ManifestError: no bundle there, or a damaged one. HubError: not on the hub, or not to be had.
            BackendError: no such device. SettingsError: slots or threads out of range.
        """
        if slots < 1 or threads < 0:
            raise SettingsError(f"slots is {slots}, threads {threads}; expected slots >= 1, threads >= 0")
        asked = Placement(device, engine, precision, threads, fallback)
        path = find_model(model)
        placement, manifest = asked.resolve(path, read_manifest(path))
        return cls(path, manifest, slots, placement)

    def check_vocabulary(self, front: TextFrontEnd) -> None:
        """Refuse a front end whose ids the graphs have no rows for."""
        known = self.manifest.sizes["vocab_size"]
        if front.vocab_size > known:
            raise ModelError(
                f"{self.path}: the tokenizer has {front.vocab_size} ids and the model {known} tokens; "
                "export the bundle again"
            )

    # -- voices ---------------------------------------------------------------------------------

    def voices(self) -> list[str]:
        """Names of the bundle's voices."""
        return voice_names(self.manifest)

    def default_voice(self) -> str:
        """The voice that the manifest names, else the first.

        Raises:
            ModelError: the bundle has no voices.
        """
        names = self.voices()
        if not names:
            self.need_codec()
            raise ModelError(f"model {self.path} has no voices; pass a recording: --prompt and --prompt-text")
        named = self.manifest.provenance.get("default_voice", "")
        return named if named in names else names[0]

    def voice(self, name: str) -> Prompt:
        """One of the bundle's voices."""
        return read_voice(self.path, self.manifest, name)

    def prompt(self, path: str | Path | bytes, transcript: str, name: str = "prompt") -> Prompt:
        """A voice from a recording.

        Args:
            path: WAV, FLAC, OGG or MP3, or its bytes; any rate, mono or stereo, 0.5 to 20 s of one speaker.
            transcript: the words spoken in it.

        Raises:
            PromptError: the recording cannot be used, or the transcript is empty.
        """
        codec = self.need_codec()
        source = "" if isinstance(path, bytes) else Path(path).name
        if not transcript.strip():
            raise PromptError(
                f"{source or name}: the transcript is empty; pass the words spoken in the recording"
            )
        longest = min(MAX_PROMPT_SECONDS, self.manifest.sizes["max_frames"] / 2 / codec.frame_rate)
        audio = read_audio(
            path if isinstance(path, bytes) else Path(path), codec.sample_rate, MIN_PROMPT_SECONDS, longest
        )
        return Prompt(codec.encode(audio), transcript, name, source=source)

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
        return self.synthesize_batch([Request(text, voice, settings or self.settings())])[0]

    def synthesize_batch(self, requests: Iterable[Request]) -> list[Speech]:
        """Speak several requests side by side, each as if alone; they share the AR steps.

        Raises:
            TextError, PromptError: of the first request that cannot be spoken.
        """
        spoken = [Spoken(request) for request in requests]
        self.scheduler.finish([self.scheduler.add(self.speak(item, latency=0.0)) for item in spoken])
        return [item.speech(self.need_codec().sample_rate) for item in spoken]

    def stream(
        self,
        text: str,
        voice: Prompt,
        settings: Settings | None = None,
        *,
        latency: float = LATENCY_SECONDS,
    ) -> Stream:
        """Audio (N,) float32 piece by piece, as it is made.

        Args:
            latency: seconds of speech in the first chunk; later chunks grow. Small is early; long chunks are
                closer to `synthesize`. 0 yields whole sentences, which joined are `synthesize`'s audio.
        """
        if not 0 <= latency < float("inf"):
            raise SettingsError(f"latency is {latency!r}; expected seconds, 0 or more")
        rate = self.need_codec().sample_rate
        spoken = Spoken(Request(text, voice, settings or self.settings()))
        task = self.scheduler.add(self.speak(spoken, latency))
        return Stream(self.scheduler, task, spoken, rate)

    def settings(self) -> Settings:
        """The model's own defaults."""
        return replace(Settings(), **self.manifest.sampling)  # type: ignore[arg-type]

    def speak(self, spoken: Spoken, latency: float) -> Job:
        """The stages in their order, sentence by sentence and chunk by chunk."""
        codec, request, timings = self.need_codec(), spoken.request, spoken.timings
        prompt = check_prompt(self.graphs.rules, request.prompt.codes)
        for index, text in enumerate(self.sentences(request)):
            if index:
                spoken.add(pause(codec.sample_rate))
            seams, sizes = seams_of(codec, latency), chunk_sizes(latency, codec.frame_rate)
            with Utterance(self.graphs, text, prompt, request.settings, index, timings) as utterance:
                while not utterance.done:
                    codes = yield from utterance.chunk(next(sizes))
                    yield Need.WORK
                    with timings.stage("codec"):
                        audio = seams.add(codes, last=utterance.done)
                    spoken.add(audio, codes)
                spoken.reasons.add(utterance.finish_reason)

    def sentences(self, request: Request) -> Iterator[Text]:
        """Ids of each sentence, the prompt's transcript before it (section 3.4).

        The transcript is given a mark at its end, as a text is: without one, the model cannot tell where the
        prompt's words end and those that it is to say begin.
        """
        if self.front is None:
            raise ModelError(f"{self.path} has no text front end; use generate_codes")
        transcript = self.front.finish(request.prompt.transcript.strip())
        length = len(self.front.encode(transcript))
        room = self.manifest.sizes["max_text"] - 2 - length
        if room < 1:
            raise PromptError("the prompt's transcript fills the model's text; use a shorter prompt")
        for sentence in self.front.split(request.text, room):
            yield Text(self.front.encode(f"{transcript} {sentence}"), prompt_length=length)

    # -- tokens ---------------------------------------------------------------------------------

    def generate_codes(
        self,
        text_ids: Codes,
        prompt_codes: Codes,
        settings: Settings | None = None,
        *,
        language_ids: Codes | None = None,
        prompt_text_length: int | None = None,
    ) -> Generated:
        """Tokens in, codes out.

        Args:
            text_ids: (S,) int64, transcript of the prompt and the target text, without `<eos>`. A mark
                that the model's family puts at each end may be there or not.
            prompt_codes: (P, Q) int64, P may be 0 unless the model has no start mark.
            language_ids: (S,) int64, the language of every id, for models with languages.
            prompt_text_length: ids of the transcript among them, for models whose NAR reads the target alone;
                with a mark at each end if `text_ids` has them.

        Returns:
            Codes (T, Q) of the target and why they ended.

        Raises:
            TextError, PromptError: wrong shapes, ids out of range, or no room left.
        """
        rules = self.graphs.rules
        prompt = check_prompt(rules, prompt_codes)
        text = check_text(rules, text_ids, language_ids, prompt_text_length, len(prompt))
        found: list[Generated] = []

        def job() -> Job:
            with Utterance(self.graphs, text, prompt, settings or self.settings(), 0, Timings()) as utterance:
                codes = yield from utterance.chunk()
                found.append(Generated(codes, utterance.finish_reason))

        self.scheduler.finish([self.scheduler.add(job())])
        return found[0]


def find_model(model: str | Path) -> Path:
    """The folder of a model: an embedded one, else a folder, else one of the hub."""
    embedded = MODELS / str(model)
    if str(model).isidentifier() and is_folder(embedded):
        return embedded
    path, name = Path(model), parse_id(model)
    if is_folder(path) and name is not None and not (path / FILE_NAME).is_file():
        raise ModelError(
            f"{path} is a folder here without {FILE_NAME}, and folders win over the hub; for the hub's "
            f"{name}, run this in another folder"
        )
    if exists(path):
        return path
    if name is not None:
        try:
            return fetch_bundle(name)
        except HubError as error:
            raise HubError(f"no folder {str(path)!r} here, and on the hub: {error}") from None
    names = sorted(p.name for p in MODELS.iterdir()) if MODELS.is_dir() else []
    embedded_names = ", ".join(names) or "none is embedded in this version"
    raise ModelError(
        f"unknown model {str(model)!r}; expected a bundle's folder, owner/name on the hub, or an embedded "
        f"model ({embedded_names})"
    )
