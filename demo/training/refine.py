"""Make training codes with the NAR, one file a shard: `python -m demo.training.refine --work W --bundle B`.

Codebook 0 is the utterance's own. The NAR makes the other seven, with another utterance of the voice as the
prompt. A vocoder that is trained on these too (train_vocoder.py) knows the codes it gets at synthesis.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.shards import Utterance, is_held_out, read_codes, read_shard, shards, write_codes
from valle2.runtime import Prompt, Request, Valle2

Array = np.ndarray[Any, Any]
PROMPT_FRAMES = (150, 375)


def pairs(items: list[Utterance]) -> list[tuple[int, int]]:
    """Indices (utterance, prompt): the prompt is the next utterance of the voice with a length that fits."""
    out = []
    for index, item in enumerate(items):
        for other in (*range(index + 1, len(items)), *range(index)):
            fits = PROMPT_FRAMES[0] <= items[other].frames <= PROMPT_FRAMES[1]
            if fits and items[other].voice == item.voice:
                out.append((index, other))
                break
    return out


def refined(tts: Valle2, request: Request, first: Array) -> Array:
    """The NAR's codes (T, 8) for a true codebook 0 (T,)."""
    encoded = tts.encode(request)
    _, text = tts.model.layout.texts(encoded.sentences[0].text)
    return tts.model.nar.refine(text, encoded.prompt, first)


def refine_shard(tts: Valle2, items: list[Utterance], codes: list[Array]) -> list[Array]:
    """The codes (T, 8) of each utterance; its own codes where the voice has no prompt."""
    out = list(codes)
    for index, other in pairs(items):
        said = items[other]
        prompt = Prompt(codes[other].astype(np.int64), said.text, said.voice)
        request = Request(items[index].text, prompt, tts.settings())
        out[index] = refined(tts, request, codes[index][:, 0].astype(np.int64)).astype(np.int16)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--every", type=int, default=4, help="take one shard of this many")
    args = parser.parse_args()
    tts = Valle2.load(args.bundle, threads=1)
    (args.work / "codes-nar").mkdir(exist_ok=True)
    for path in shards(args.work)[:: args.every]:
        target = args.work / "codes-nar" / path.name
        if target.exists() or is_held_out(path):
            continue
        codes = read_codes(args.work / "codes" / path.name)
        write_codes(target, refine_shard(tts, read_shard(path), codes))


if __name__ == "__main__":
    main()
