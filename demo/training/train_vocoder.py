"""Train the codec's decoder (the vocoder) from codes: `python -m demo.training.train_vocoder --work W`.

The run resumes where it stopped. When refine.py has written codes of the NAR, training uses only those
shards, and half of the crops have the NAR's codes. `--adversarial` adds discriminators of spectrograms, and a
loss on the latents of the codec's encoder. The latents are phonetic, so an error there costs words.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.speech.shards import Utterance, is_held_out, read_codes, read_shard, shards
from demo.speech.speak import HOP
from demo.training.batches import voice_shares
from demo.training.discriminator import Discriminators
from demo.training.train_codec import autocast, load_codec, resume, save
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder

BATCH, CROP = 12, 56
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))
RATE = 1e-3
EDGE = 2 * HOP
CLOSE, HEARD = 2.0, 1.0
"""Weights of the mel and latent distances, relative to the spectral loss."""
OPPOSED = 6
"""Rows of a batch that the discriminators see."""


def spectral_loss(guess: Tensor, sound: Tensor) -> Tensor:
    """Log magnitude, spectral convergence and half the complex distance over four resolutions."""
    total = guess.new_zeros(())
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size)
        a, b = (torch.stft(x, size, hop, window=window, return_complex=True) for x in (guess, sound))
        near, far = a.abs().clamp(min=1e-4), b.abs().clamp(min=1e-4)
        total = total + (near.log() - far.log()).abs().mean()
        total = total + (near - far).norm() / far.norm() + 0.5 * (a - b).abs().mean()
    return total / len(RESOLUTIONS)


Array = np.ndarray[Any, Any]
Items = dict[str, list[tuple[Utterance, list[Array]]]]


def load_items(work: Path) -> Items:
    """Utterances by voice, each with its own codes and the NAR's if there are any; no held-out shards."""
    out: Items = {}
    folders = [work / "codes", work / "codes-nar"] if any(work.glob("codes-nar/*.npz")) else [work / "codes"]
    for path in shards(work):
        files = [folder / path.name for folder in folders]
        if all(file.exists() for file in files) and not is_held_out(path):
            ways = [read_codes(file) for file in files]
            for item, *codes in zip(read_shard(path), *ways, strict=True):
                if item.frames > CROP:
                    out.setdefault(item.voice, []).append((item, codes))
    return out


def crops(items: Items, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """BATCH crops, the voices in `voice_shares`: codes (B, CROP, 8), audio (B, CROP * HOP)."""
    names, codes, sounds = sorted(items), [], []
    shares = voice_shares(names, np.ones(len(names)))
    for _ in range(BATCH):
        pool = items[names[rng.choice(len(names), p=shares)]]
        item, ways = pool[rng.integers(len(pool))]
        code = ways[rng.integers(len(ways))]
        start = int(rng.integers(len(code) - CROP + 1))
        codes.append(code[start : start + CROP].astype(np.int64))
        sounds.append(item.audio[start * HOP : (start + CROP) * HOP].astype(np.float32) / 32768)
    return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(sounds))


def latent_loss(encoder: CodecEncoder, guess: Tensor, sound: Tensor) -> Tensor:
    """Distance of the codec's latents of two sounds (B, N), in units of the true one's spread."""
    with torch.no_grad():
        wanted = encoder.trunk(encoder.mel(sound))
    distance: Tensor = functional.l1_loss(encoder.trunk(encoder.mel(guess)), wanted) / wanted.std()
    return distance


def train(args: argparse.Namespace) -> None:
    """Run to `--steps`, saving every 100."""
    torch.manual_seed(args.seed)
    config = CodecConfig()
    model = CodecDecoder(config)
    codec = load_codec(args.work / "codec.pt")
    encoder = codec.encoder.requires_grad_(False)
    model.tables.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, RATE, betas=(0.8, 0.99))
    path, opposed = args.work / f"{args.name}.pt", args.work / f"{args.name}-opponents.pt"
    start = resume(path if path.exists() else args.from_ or path, model, optimizer)
    model.tables.data.copy_(codec.decoder_tables())
    opponents = Discriminators()
    opposing = torch.optim.AdamW(opponents.parameters(), RATE, betas=(0.8, 0.99))
    if args.adversarial:
        resume(opposed, opponents, opposing)
    items, began = load_items(args.work), time.monotonic()
    for step in range(start, args.steps):
        codes, sound = crops(items, np.random.default_rng([args.seed, step]))
        left = (args.steps - step) / args.decay if args.decay else 1.0
        for group in (*optimizer.param_groups, *opposing.param_groups):
            group["lr"] = args.rate * min(1.0, (step - start + 1) / 100, max(0.02, left))
        with autocast():
            out = model.trunk(model.embed(codes)).float()
        guess = model.waves(out)[:, EDGE:-EDGE]
        target = sound[:, EDGE:-EDGE]
        parts = {
            "spectrum": spectral_loss(guess, target),
            "mel": CLOSE * functional.l1_loss(encoder.mel(guess), encoder.mel(target)),
        }
        if args.adversarial:
            parts["heard"] = HEARD * latent_loss(encoder, guess, target)
            parts |= opponents.turn(opposing, target[:OPPOSED], guess[:OPPOSED], step)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        if step % 50 == 0:
            text = " ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            print(f"{step} {time.monotonic() - began:.0f}s {text}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            save(path, model, optimizer, step + 1)
            if args.adversarial:
                save(opposed, opponents, opposing, step + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--decay", type=int, default=0, help="last steps in which the rate falls to 2 %%")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate before the decay")
    parser.add_argument("--name", default="vocoder", help="checkpoint's name")
    parser.add_argument("--from", dest="from_", type=Path, help="checkpoint to start a new name from")
    parser.add_argument(
        "--adversarial", action="store_true", help="discriminators, and a loss on the encoder's latents"
    )
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
