"""Where do words and voice get lost: `python demo/ceilings.py --work W [--bundle B]`.

Held-out utterances of each source are judged as they are, through the codec, with their true codebook 0 and
the NAR's other seven, and spoken anew by the whole chain. The prompt is the voice's next held-out utterance.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from data import Utterance, read_shard
from refine import pairs, refined
from speak import SOURCES

from valle2.benchmarks.alignment import word_error_rate
from valle2.benchmarks.judges import Judges, words
from valle2.benchmarks.report import markdown
from valle2.runtime import Prompt, Request, Valle2

Array = np.ndarray[Any, Any]


def four_ways(tts: Valle2, item: Utterance, said: Utterance) -> dict[str, Array]:
    """The utterance, its round trip, NAR on the true codebook 0, all anew."""
    codec = tts.need_codec()
    codes = codec.encode(item.wave)
    prompt = Prompt(codec.encode(said.wave), said.text, said.voice)
    request = Request(item.text, prompt, tts.settings())
    return {
        "source": item.wave,
        "codec": codec.decode(codes),
        "true codebook 0 + NAR": codec.decode(refined(tts, request, codes[:, 0])),
        "AR + NAR": tts.synthesize_batch([request])[0].audio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--count", type=int, default=40, help="utterances a source")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges()
    rate = tts.need_codec().sample_rate
    rows = []
    for source in SOURCES:
        path = args.work / "speech" / f"{source}-0000.npz"
        if not path.exists():
            continue
        said: list[str] = []
        heard: dict[str, list[str]] = {}
        near: dict[str, list[float]] = {}
        items = read_shard(path)
        for item, prompt in ((items[a], items[b]) for a, b in pairs(items)[: args.count]):
            said.append(words(item.text))
            target = judges.embed(prompt.wave, rate)
            for way, audio in four_ways(tts, item, prompt).items():
                heard.setdefault(way, []).append(words(judges.transcribe(audio, rate)))
                near.setdefault(way, []).append(float(judges.embed(audio, rate) @ target))
        for way, found in heard.items():
            wer = word_error_rate(said, found)
            rows.append([source, way, round(wer, 1), round(float(np.mean(near[way])), 3)])
            print(*rows[-1], flush=True)
    print(markdown(["source", "signal", "WER %", "similarity to the prompt"], rows))


if __name__ == "__main__":
    main()
