"""Encode the prompts of a checkpoint or bundle with another codec.

`python -m demo.training.respeak MODEL --work W --out FOLDER`: the teachers speak the transcripts of
MODEL/voices again, and W/codec.pt encodes the speech.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from demo.speech.speak import PITCHES, hibari_speaker, kokoro_speaker, styles_folder, trim, vocabulary
from demo.training.encode import encode
from demo.training.train_codec import load_codec
from valle2.runtime.voices import read_prompt, store_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder with the prompts in voices/")
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--styles", type=styles_folder, default="voices", help="folder voices/ of kokoro-js")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    encoder = load_codec(args.work / "codec.pt").encoder.eval()
    g2p, ids_of = import_module("hibari.g2p").G2P(british=False), vocabulary()
    hibari, kokoro = hibari_speaker(), kokoro_speaker(args.styles)
    for path in sorted((args.model / "voices").glob("*.safetensors")):
        prompt = read_prompt(path, path.stem)
        ids = [0, *(ids_of[symbol] for symbol in g2p(prompt.transcript) if symbol in ids_of), 0]
        speak = hibari if path.stem in PITCHES else kokoro
        sound, _, _ = trim(*speak(ids, path.stem, 0), ids)
        codes = encode(encoder, [sound.astype(np.float32) / 32768])[0].astype(np.int64)
        store_prompt(args.out / path.name, replace(prompt, codes=codes))


if __name__ == "__main__":
    main()
