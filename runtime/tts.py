"""Text and a voice to speech (VALL-E 2, figure 1).

    text -> ids -> AR (codebook 0, grouped, repetition-aware) -> NAR (codebooks 1..7) -> codec -> audio

`Valle2` prepares a request: it loads the voice, splits the text into sentences and encodes them. The engine
(`generation.engine`) runs the three models.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from valle2.engine import (
    Backend,
    Closing,
    HubError,
    Manifest,
    Placement,
    open_backend,
    read_manifest,
)
from valle2.engine.backends.ort.memory import trim_heap
from valle2.engine.bundle.contract import (
    AR,
    FUSED_DECODER,
    NAR,
    NAR_BATCH,
    NAR_ROW,
    PADDED_DECODER,
    PREFILL,
    STEP,
)
from valle2.engine.bundle.hub import fetch_bundle, parse_id
from valle2.engine.bundle.manifest import FILE_NAME
from valle2.engine.bundle.precisions import AUTO, SOURCES
from valle2.engine.bundle.schema import MAX_WINDOW, NEUTRAL, QUALITIES
from valle2.engine.bundle.untrusted import exists, is_folder
from valle2.runtime.audio.checks import bandwidth, check_transcript, is_narrow
from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS, MIN_FIRST_CHUNK_SECONDS
from valle2.runtime.audio.codec import Codec
from valle2.runtime.audio.io import read_recording
from valle2.runtime.audio.prepare import prepare
from valle2.runtime.errors import ModelError, PromptError, SettingsError
from valle2.runtime.generation.alignment import read_alignment
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.engine import EncodedRequest, Failed, RequestId, Sentence, SynthesisEngine
from valle2.runtime.generation.joint_calls import JointLimits
from valle2.runtime.generation.ladders import captured, codec_ladder, nar_ladder
from valle2.runtime.generation.model import LoadedModel
from valle2.runtime.generation.nar_runner import NARRunner
from valle2.runtime.generation.token_layout import TokenLayout, check_prompt, check_text
from valle2.runtime.stream import Collector, Stream
from valle2.runtime.text.annotations.lexicon import WordFinder
from valle2.runtime.text.annotations.script import Script
from valle2.runtime.text.base import FrontEnd
from valle2.runtime.text.front_end import front_end_of
from valle2.runtime.text.tokenizer import TextFrontEnd
from valle2.runtime.text.word_spans import WrittenText
from valle2.runtime.turns import Turns
from valle2.runtime.types import (
    FASTEST,
    SLOWEST,
    Codes,
    Generated,
    Prompt,
    Request,
    Settings,
    Speech,
    SpokenText,
)
from valle2.runtime.voices import read_voice, voice_names

MODELS = Path(__file__).resolve().with_name("models")
"""Resolved, because an editable install links single files and a bundle may not leave its folder."""
SLOTS = 8
"""Rows decoded side by side, unless the caller says otherwise."""
PAUSE_SECONDS = 0.12
"""Silence between two sentences."""
MIN_PROMPT_SECONDS = 0.5
MAX_PROMPT_SECONDS = 20.0
MAX_RECORDING_SECONDS = 60.0
"""A longer file is not decoded. Silence before and after the speech is cut, so a recording may be longer."""


class Valle2(Closing):
    """A loaded model. Closing it, or leaving its `with`, frees its memory.

    Several threads may call its methods. Their requests share the AR steps, and each sounds as if alone. One
    `Stream` is for one thread at a time. `engine` itself is for one thread, which then calls nothing else.

    Args:
        path: the bundle's folder. manifest: with the graphs for the device. slots: rows of the AR batch.
        placement: what runs every graph, resolved for this bundle.
    """

    def __init__(self, path: Path, manifest: Manifest, slots: int, placement: Placement) -> None:
        self.path, self.manifest = path, manifest
        self.precision = placement.precision
        self.model = load_model(path, manifest, slots, placement)
        self.engine = SynthesisEngine(self.model)
        self.collectors: dict[RequestId, Collector] = {}
        self.turns = Turns()
        self.cancelled: deque[RequestId] = deque()
        self.text_lock = threading.Lock()  # phoneme libraries load their data at first use
        self.closed = False
        self.words: dict[str, str] = {}
        self.own_finders: tuple[WordFinder, ...] = ()
        self.front = front_end_of(path, manifest.text, manifest.rules, manifest.files)
        if isinstance(self.front, TextFrontEnd):
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
        chunks_per_call: int = 0,
        steps_per_read: int = 1,
        capture_chunks: bool = False,
    ) -> Valle2:
        """Open a bundle.

        Args:
            model: "demo" for the embedded model, a bundle's folder, or `owner/name[@revision]` on the hub.
            device: "cpu" or "cuda".
            precision: "fp32" as stored; "fp16", "int8" or "int4" once `valle2 build --target ort` made it; of
                an engine, the one it was built with. "int8" of "demo" is made at first use; if it cannot be
                kept, a line of the log says so. "auto" is "int8" on a "cpu" if it is built, else "fp32".
            threads: CPU threads, 0 for all cores.
            slots: rows decoded side by side; an engine must be built for as many (--max-batch).
            engine: "ort", or "tensorrt" / "tensorrt-rtx" with what `valle2 build` made, on "cuda";
                "ort-tensorrt" / "ort-tensorrt-rtx" are these providers of ONNX Runtime.
            fallback: let ONNX Runtime run elsewhere what its provider on "cuda" does not take.
            chunks_per_call: requests that may share a call of the NAR or the codec; 0 for 8 on "cuda" and 1
                on a "cpu". In "fp16" a request's codes may depend on who shares its calls.
            steps_per_read: the most AR steps that run before their codes are read; more than 1 is for "cuda".
            capture_chunks: pad calls of the NAR and the codec to a few sizes, each a CUDA graph; for "ort" on
                "cuda" with a build in "fp16", "int8" or "int4".

        Raises:
            ManifestError: no bundle there, or a damaged one. HubError: not on the hub, or not to be had.
            BackendError: no such device. SettingsError: slots or threads out of range.
        """
        if slots < 1 or threads < 0:
            raise SettingsError(f"slots is {slots}, threads {threads}; expected slots >= 1, threads >= 0")
        more = chunks_per_call, steps_per_read, capture_chunks
        asked = Placement(device, engine, precision, threads, fallback, *more)
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
            raise ModelError(
                f"model {self.path} has no voices; add one: valle2 voices add NAME PRESET.npz --model "
                f"{self.path}, or pass a recording: --prompt and --prompt-text"
            )
        named = self.manifest.provenance.get("default_voice", "")
        return named if named in names else names[0]

    def voice(self, name: str) -> Prompt:
        """One of the bundle's voices."""
        return read_voice(self.path, self.manifest, name)

    def prompt(self, path: str | Path | bytes, transcript: str, name: str = "prompt") -> Prompt:
        """A voice from a recording.

        Args:
            path: WAV, FLAC, OGG or MP3, or its bytes; any rate, mono or stereo, with 0.5 to 20 s of speech
                of one speaker. Silence at its ends is cut, a recording that stops inside a sentence gets a
                short pause, and its level is set (`audio.prepare`).
            transcript: the words spoken in it.

        Returns:
            The voice. Its `warnings` say what makes it a poor prompt.

        Raises:
            PromptError: the recording cannot be used, or the transcript is empty. ModelError: the model has
                no codec or has been closed.
        """
        codec = self.need_codec()
        source = "" if isinstance(path, bytes) else Path(path).name
        if not transcript.strip():
            raise PromptError(
                f"{source or name}: the transcript is empty; pass the words spoken in the recording"
            )
        longest = self.longest_prompt_seconds
        recording = read_recording(
            path if isinstance(path, bytes) else Path(path), MIN_PROMPT_SECONDS, MAX_RECORDING_SECONDS
        )
        with self.turns.alone():
            self.check_open()
            wide = self.has_wide_voices
        made = prepare(recording, codec.sample_rate, MIN_PROMPT_SECONDS, longest, wide=wide)
        warnings = made.warnings + check_transcript(recording.name, transcript, made.speech_seconds)
        with self.turns.alone():
            self.check_open()
            codes = codec.encode(made.audio)
        return Prompt(codes, transcript, name, source=source, warnings=warnings)

    @cached_property
    def has_wide_voices(self) -> bool:
        """Does the default voice have the full band? It does not where a model learnt from 16 kHz."""
        if not self.voices():
            return False
        codec, voice = self.need_codec(), self.voice(self.default_voice())
        return not is_narrow(bandwidth(codec.decode(voice.codes), codec.sample_rate), codec.sample_rate)

    @property
    def longest_prompt_seconds(self) -> float:
        """Most seconds of speech in the recording of a voice.

        Raises:
            ModelError: the bundle has no codec.
        """
        frames: int = self.manifest.sizes["max_frames"]
        return min(MAX_PROMPT_SECONDS, frames / 2 / self.need_codec().frame_rate)

    @property
    def codec(self) -> Codec | None:
        """The model's codec, None in a bundle without one."""
        return self.model.codec

    def need_codec(self) -> Codec:
        """The model's codec.

        Raises:
            ModelError: the bundle has none.
        """
        return self.model.need_codec()

    # -- speech ---------------------------------------------------------------------------------

    def synthesize(
        self,
        text: str,
        voice: Prompt,
        settings: Settings | None = None,
        *,
        speed: float = 1.0,
        timestamps: bool = False,
        lexicon: Mapping[str, str] | None = None,
    ) -> Speech:
        """Speak a text of any length.

        Args:
            text: plain text, SSML, or `Phones`.
            speed: 0.25 to 4: how many times faster than the model speaks. The pitch stays.
            timestamps: find the times of the words, `Speech.words`.
            lexicon: words and their phonemes in the IPA, such as `{"Ljubljana": "ljuːbˈljɑːnə"}`.

        Raises:
            TextError: nothing in the text can be spoken. PromptError: the prompt leaves no room.
            SettingsError: the speed is out of range. ModelError: the model has no word times.
        """
        request = Request(text, voice, settings or self.settings(), speed, timestamps, lexicon or {})
        return self.synthesize_batch([request])[0]

    def synthesize_batch(self, requests: Iterable[Request]) -> list[Speech]:
        """Speak several requests side by side, each as if alone; they share the AR steps.

        Raises:
            TextError, PromptError: of the first request that cannot be spoken.
        """
        encoded = [self.encode(request) for request in requests]
        rate = self.sample_rate
        return [collector.speech(rate) for collector in self.run(encoded)]

    def stream(
        self,
        text: str,
        voice: Prompt,
        settings: Settings | None = None,
        *,
        first_chunk_seconds: float | None = None,
        latency: float | None = None,
        speed: float = 1.0,
        timestamps: bool = False,
        lexicon: Mapping[str, str] | None = None,
    ) -> Stream:
        """Audio (N,) float32 piece by piece, as it is made.

        Args:
            first_chunk_seconds: seconds of speech in the first chunk, 0.4 by default; later chunks grow.
                Short chunks come early, long ones are closer to `synthesize`. 0 yields whole sentences,
                which joined are the audio of `synthesize`.
            latency: the old name of `first_chunk_seconds`.
            speed, timestamps, lexicon: see `synthesize`. `Stream.words` grows with the audio.

        Raises:
            SettingsError: the seconds or the speed are out of range. TextError: nothing can be spoken.
            ModelError: the model has no word times.
        """
        given = [value for value in (first_chunk_seconds, latency) if value is not None]
        request = Request(text, voice, settings or self.settings(), speed, timestamps, lexicon or {})
        encoded = self.encode(request, given[0] if given else FIRST_CHUNK_SECONDS)
        identifier, collector = self.start(encoded)
        return Stream(identifier, collector, self.step, self.cancel, self.sample_rate)

    def settings(self, quality: str | None = None) -> Settings:
        """The model's own defaults. quality: one of `schema.QUALITIES`, whose settings win over them.

        Raises:
            SettingsError: unknown quality.
        """
        if quality is not None and quality not in QUALITIES:
            raise SettingsError(f"quality is {quality!r}; expected one of {', '.join(QUALITIES)}")
        own: dict[str, Any] = self.manifest.sampling | (QUALITIES[quality] if quality else {})
        return replace(Settings(), **own)

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz.

        Raises:
            ModelError: the bundle has no codec.
        """
        return self.need_codec().sample_rate

    # -- text -----------------------------------------------------------------------------------

    def encode(self, request: Request, first_chunk_seconds: float = 0.0) -> EncodedRequest:
        """Prepare a request for the engine: normalise, split and encode its text, check its voice.

        This is all of a request's work on text. It may run in another thread than the engine.

        Raises:
            ModelError: the bundle has no codec, no text front end, or no word times that were asked for.
            TextError: nothing can be spoken.
            PromptError: the prompt does not fit the model. SettingsError: seconds out of range.
        """
        if first_chunk_seconds != 0 and not MIN_FIRST_CHUNK_SECONDS <= first_chunk_seconds < float("inf"):
            raise SettingsError(
                f"first_chunk_seconds is {first_chunk_seconds!r}; expected 0 for whole sentences, or "
                f"{MIN_FIRST_CHUNK_SECONDS:g} and more"
            )
        arrived = time.perf_counter()
        self.need_codec()
        if request.timestamps:
            self.model.need_alignment()
        self.model.check(request.settings)
        prompt = check_prompt(self.model.layout, request.prompt.codes)
        with self.text_lock:
            script = self.need_front().script(request.text, self.finders(request.lexicon))
            sentences = tuple(self.sentences(request, script))
        return EncodedRequest(
            sentences,
            prompt,
            request.settings,
            first_chunk_seconds,
            warnings=(*request.prompt.warnings, *script.warnings),
            end_pause=script.end_pause / request.speed,
            arrived=arrived,
        )

    def spoken(self, text: str, lexicon: Mapping[str, str] | None = None) -> SpokenText:
        """What is said for a text: its sentences in words, phonemes and ids, and warnings.

        Args:
            lexicon: see `synthesize`.

        Raises:
            ModelError: the bundle has no text front end. TextError: nothing in the text can be spoken.
        """
        with self.text_lock:
            return self.need_front().spoken(text, self.finders(lexicon or {}))

    @property
    def lexicon(self) -> Mapping[str, str]:
        """Words and their phonemes for every request; those of a request win over them.

        Setting it raises LexiconError if an entry is malformed or has phonemes that the model lacks.
        """
        return self.words

    @lexicon.setter
    def lexicon(self, words: Mapping[str, str]) -> None:
        with self.text_lock:
            self.own_finders = (self.need_front().finder(words),) if words else ()
            self.words = dict(words)

    def finders(self, lexicon: Mapping[str, str]) -> tuple[WordFinder, ...]:
        """The lexicon of a request, before that of the model."""
        return (self.need_front().finder(lexicon), *self.own_finders) if lexicon else self.own_finders

    def need_front(self) -> FrontEnd:
        """The text front end.

        Raises:
            ModelError: the bundle has none.
        """
        if self.front is None:
            raise ModelError(
                f"{self.path} has no text front end; export it again with its text/, or use generate_codes"
            )
        return self.front

    def sentences(self, request: Request, script: Script) -> Iterator[Sentence]:
        """Ids of each sentence, the prompt's transcript before it (section 3.4).

        The transcript gets a mark at its end, as a text does. Without one, the model cannot tell where the
        prompt's words end and its own begin.
        """
        prompt, longest = request.prompt, self.manifest.sizes["max_text"] - 2
        front = self.need_front()
        found, unheard = front.encode_request(prompt.transcript, script, longest), 0
        written = WrittenText(" ".join(each.text for each in script.passages) if request.timestamps else "")
        for index, ids in enumerate(found):
            marked = (ids.ids, ids.languages, ids.prompt_length)
            text = check_text(self.model.layout, *marked, len(prompt.codes))
            if not index:  # the transcript is the same in every sentence
                unheard = self.model.shorten(text, prompt.codes, request.settings).unheard
            text = replace(text, unheard=unheard) if unheard else text
            words = written.restore(front.words_of(ids)) if request.timestamps else ()
            words = tuple(replace(word, text=script.spellings.readable(word.text)) for word in words)
            speed = min(max(ids.speed * request.speed, SLOWEST), FASTEST)
            pause = PAUSE_SECONDS if index else 0.0
            if ids.pause is not None:
                # the engine divides by the whole speed, and a rate of SSML does not change a break
                pause = ids.pause * speed / request.speed
            yield Sentence(text, pause, speed, words)

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
        layout, settings = self.model.layout, settings or self.settings()
        prompt = check_prompt(layout, prompt_codes)
        text = check_text(layout, text_ids, language_ids, prompt_text_length, len(prompt))
        self.model.check(settings)
        text = self.model.shorten(text, prompt, settings)
        request = EncodedRequest((Sentence(text),), prompt, settings, codes_only=True)
        collector = self.run([request])[0]
        return Generated(np.concatenate(collector.codes), collector.finish_reason)

    # -- the engine's loop ----------------------------------------------------------------------

    def start(self, request: EncodedRequest) -> tuple[RequestId, Collector]:
        """Give a request to the engine; its events go to the collector.

        Raises:
            ModelError: the model has been closed.
        """
        with self.turns.alone():
            self.check_open()
            identifier = self.engine.add(request)
            self.collectors[identifier] = collector = Collector(self.model.layout.codebooks, request.warnings)
        return identifier, collector

    def step(self) -> None:
        """One step of the engine; every event goes to the collector of its request.

        If another thread uses the engine, this waits until it has done so. The caller then looks at its
        collector, which may have got events, and asks for another step if it needs one.
        """
        self.turns.step(self.advance)

    def advance(self) -> None:
        """Run one step in a thread that has the engine to itself."""
        self.drop_cancelled()
        if self.closed:
            return
        try:
            events = self.engine.step()
        except BaseException:  # Ctrl-C leaves the engine in the middle of any request
            self.fail_all(f"a step of {self.path} was interrupted; send the request again")
            raise
        for event in events:
            collector = self.collectors.get(event.request)
            if collector:
                collector.take(event)
                if collector.done:
                    self.collectors.pop(event.request, None)

    def run(self, requests: Iterable[EncodedRequest]) -> list[Collector]:
        """Run requests to their ends; the first error among them is raised, and all are cancelled then."""
        started = [self.start(request) for request in requests]
        try:
            while True:
                # read before the errors, because another thread writes the error first
                done = all(collector.done for _, collector in started)
                for _, collector in started:
                    if collector.error:
                        raise collector.error
                if done:
                    return [collector for _, collector in started]
                self.step()
        finally:
            for identifier, _ in started:
                self.cancel(identifier)

    def cancel(self, identifier: RequestId) -> None:
        """End a request; nothing happens if it has ended. Its rows are free before the next step."""
        if self.collectors.pop(identifier, None):
            self.cancelled.append(identifier)
            self.turns.try_alone(self.drop_cancelled)

    def drop_cancelled(self) -> None:
        """End the cancelled requests in a thread that has the engine to itself."""
        while self.cancelled:
            self.engine.cancel(self.cancelled.popleft())

    def fail_all(self, reason: str) -> None:
        """End every request with a ModelError of its own."""
        for identifier in list(self.collectors):
            collector = self.collectors.pop(identifier, None)
            if collector:
                collector.take(Failed(identifier, ModelError(reason)))
                self.engine.cancel(identifier)

    def close(self) -> None:
        """Free the model's memory; the model cannot be used after it. Requests under way get a ModelError."""
        with self.turns.alone():
            if not self.closed:
                self.closed = True
                self.fail_all(self.closed_reason())
                self.engine.close()

    def check_open(self) -> None:
        """Refuse to use a closed model.

        Raises:
            ModelError: it has been closed.
        """
        if self.closed:
            raise ModelError(self.closed_reason())

    def closed_reason(self) -> str:
        return f"{self.path} has been closed; load it again"


def load_model(path: Path, manifest: Manifest, slots: int, placement: Placement) -> LoadedModel:
    """Open a bundle's graphs.

    Raises:
        BackendError: a graph does not load.
    """
    graphs = placement.locate_graphs(path, manifest)
    encoder = graphs.pop("codec_encoder", None)
    stepped = {STEP if STEP in graphs else AR}
    joint_chunks = placement.joint_chunks(slots)
    several, joint = graphs.pop(NAR_BATCH, graphs[NAR]), None
    padded, ladder = graphs.pop(PADDED_DECODER, None), None
    if placement.capture_chunks:
        graphs[NAR] = several
        stepped.add(NAR)
    elif NAR_ROW in graphs and joint_chunks > 1:
        joint = open_backend(several.folder, several.spec, placement)
    for name in (NAR_ROW, FUSED_DECODER):
        if name in graphs:
            graphs[SOURCES[name]] = graphs.pop(name)
    backends = {
        name: open_backend(found.folder, found.spec, placement, stepped=name in stepped)
        for name, found in graphs.items()
    }
    layout = TokenLayout.of(manifest)
    ar = ARRunner(
        backends["ar"],
        manifest.sizes,
        manifest.cache_length,
        slots,
        MAX_WINDOW,
        chunk=placement.prefill_chunk,
        whole_text=layout.whole_text,
        decoder=backends.get(STEP),
        prefiller=backends.get(PREFILL),
        steps_per_read=placement.steps_per_read,
    )
    if ar.decoder.captures_calls:
        ar.warm_up()
    if placement.capture_chunks:
        ladder = captured(nar_ladder, backends[NAR], manifest.sizes, joint_chunks)
    codec = None
    if manifest.codec and encoder:
        sounds = None
        if padded:
            taking_lengths = open_backend(padded.folder, padded.spec, placement, stepped=True)
            sounds = captured(codec_ladder, taking_lengths, manifest.codec["hop"], joint_chunks)

        def open_encoder() -> Backend:
            found = read_manifest(path, check_hashes=False)
            if found.in_lowering([manifest.lowering], str(path)) != manifest:
                raise ModelError(f"{path} has changed since it was loaded; load it anew")
            return open_backend(encoder.folder, encoder.spec, placement)

        decoder, stream = backends["codec_decoder"], backends.get("codec_stream")
        codec = Codec(open_encoder, decoder, manifest.codec, stream, sounds)
    alignment = read_alignment(path, manifest.files)
    neutral = np.array(manifest.codec[NEUTRAL], np.int64) if NEUTRAL in manifest.codec else None
    return LoadedModel(
        ar,
        NARRunner(backends[NAR], joint, ladder),
        codec,
        layout,
        manifest.sizes,
        neutral,
        str(path),
        alignment,
        JointLimits(joint_chunks),
    )


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
