"""Write the trained parts as one checkpoint: `python -m demo.model.assemble --work W --out FOLDER`.

Weights are rounded to float16, so the checkpoint, the exported graphs and the tests all use the same
numbers. A voice's prompt is a held-out utterance of 3 to 5 seconds. Without `--prompts` the checkpoint gets
several prompts a voice, and `demo.model.choose` picks one of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from demo.speech.shards import is_held_out, read_shard, shards
from demo.speech.speak import KOKORO, PITCHES
from demo.training.batches import SHIPPED_GROUP, Example, clipped, demo_config, load_samples
from demo.training.train import ar_batch, ar_loss
from demo.training.train_codec import load_codec
from valle2.export.checkpoint import Checkpoint, save_checkpoint
from valle2.export.codecs.demo import CodecDecoder
from valle2.export.models.ar import ARModel
from valle2.export.models.nar import NARModel
from valle2.runtime import Prompt
from valle2.runtime.voices import store_prompt

PROMPT_FRAMES = (225, 375)
TRIED = 9
SAMPLING = {"top_p": 0.2, "threshold": 0.1}
"""The paper's repetition rule is on: with prompts of strangers, utterances that never end become rare."""
LONGEST = 80
"""Tokens of a sentence. One training sentence in 25 is longer; with 200 tokens the model loses its place."""
NEGLIGIBLE = 1e-3
LICENCE = "Apache-2.0"
DEFAULT_VOICE = "elm"


def mean(work: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The mean of the weights of several checkpoints of one part."""
    states = [torch.load(work / f"{name}.pt", weights_only=True)["model"] for name in names]
    return {key: sum(state[key] for state in states) / len(states) for key in states[0]}


def code_vectors(tables: torch.Tensor) -> torch.Tensor:
    """The tables of books 1 to 7 in as few dimensions R as they span: (8, 1024, D) -> (7, 1024, R).

    A rotation keeps the distances, by which the NAR chooses its codes. Every axis points to the side of its
    largest component, because the signs that a decomposition returns differ between machines.
    """
    rows = tables[1:].flatten(0, 1)
    _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
    kept = axes[sizes > NEGLIGIBLE * sizes[0]]
    largest = kept.gather(1, kept.abs().argmax(1, keepdim=True))
    turned: torch.Tensor = rows @ (kept * largest.sign()).T
    return turned.view(*tables[1:].shape[:2], -1)


def filled(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Load the weights into the module; all names must match."""
    module.load_state_dict(state)
    return module.eval()


@torch.no_grad()
def held_out_prompts(work: Path, ar: ARModel) -> dict[str, list[tuple[Example, str]]]:
    """The held-out utterances of each shipped voice that fit a prompt, ordered by the AR's cross entropy."""
    texts: dict[str, list[str]] = {}
    for path in shards(work):
        if is_held_out(path):
            for item in read_shard(path):
                texts.setdefault(item.voice, []).append(item.text)
    out = {}
    for voice, samples in load_samples(work, held_out=True).items():
        if voice not in KOKORO and voice not in PITCHES:
            continue
        pairs = zip(samples, texts[voice], strict=True)
        fitting = [pair for pair in pairs if PROMPT_FRAMES[0] <= len(pair[0].codes) <= PROMPT_FRAMES[1]]
        out[voice] = sorted(fitting, key=lambda pair: surprise(ar, pair[0]))[:TRIED]
    return out


def surprise(ar: ARModel, sample: Example) -> float:
    """The AR's cross entropy of an utterance: nats per code of codebook 0, teacher forced."""
    size = ar.config.group_size
    _, values = ar_loss(ar, ar_batch([clipped(sample, size)], ar.config.vocab_size, size), guide=0.0)
    return values["ce"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ar", nargs="+", default=["ar"], help="checkpoints' names, averaged")
    parser.add_argument("--nar", nargs="+", default=["nar"], help="checkpoints' names, averaged")
    parser.add_argument("--vocoder", nargs="+", default=["vocoder"], help="checkpoints' names, averaged")
    parser.add_argument("--likeliest", action="store_true", help="the NAR's codes, not those of least risk")
    parser.add_argument("--voices", type=Path, help="folder of a checkpoint's prompts, kept as they are")
    parser.add_argument("--prompts", type=Path, help="prompts.json; without it, all that choose.py tries")
    parser.add_argument("--group", type=int, default=SHIPPED_GROUP, help="the AR's codes a step")
    args = parser.parse_args()
    ar_state, nar_state = mean(args.work, args.ar), mean(args.work, args.nar)
    trained, config = load_codec(args.work / "codec.pt"), demo_config(args.group, ar_state, nar_state)
    if not args.likeliest:
        nar_state["vectors"] = code_vectors(trained.decoder_tables())
        width, style = nar_state["vectors"].shape[2], replace(config.style, prompt_mean=True)
        config = replace(config, vector_width=width, style=style)
    ar, nar = filled(ARModel(config), ar_state), filled(NARModel(config), nar_state)
    decoder = filled(CodecDecoder(trained.config), mean(args.work, args.vocoder))
    assert isinstance(ar, ARModel) and isinstance(nar, NARModel) and isinstance(decoder, CodecDecoder)
    checkpoint = Checkpoint(
        config,
        ar,
        nar,
        (trained.encoder.eval(), decoder, trained.config),
        name="demo",
        text={"kind": "phonemes", "max_tokens": LONGEST},
        sampling=SAMPLING,
        provenance={
            "licence": LICENCE,
            "notes": "synthetic voices of hibari-tts and Kokoro-82M",
            "default_voice": DEFAULT_VOICE,
        },
    )
    save_checkpoint(checkpoint, args.out, torch.float16)
    if args.voices:
        shutil.copytree(args.voices, args.out / "voices", dirs_exist_ok=True)
        return
    (args.out / "voices").mkdir(exist_ok=True)
    chosen = json.loads(args.prompts.read_text()) if args.prompts else {}
    for voice, found in held_out_prompts(args.work, ar).items():
        source = f"Kokoro-82M {KOKORO[voice]}" if voice in KOKORO else f"hibari-tts x {PITCHES[voice]}"
        for rank, (sample, text) in enumerate(found):
            name = voice if args.prompts else f"{voice}{rank}"
            if args.prompts and rank != chosen.get(voice):
                continue
            prompt = Prompt(sample.codes.astype("int64"), text, name, source, LICENCE, "synthetic voice")
            store_prompt(args.out / "voices" / f"{name}.safetensors", prompt)


if __name__ == "__main__":
    main()
