"""Train the codec, a mel autoencoder: `python -m demo.training.train_codec --work W`.

A linear classifier of the spoken symbol makes codebook 0 phonetic. Codebooks 1 to 7 quantise a narrow
residual. A small network must be able to predict it from codebook 0 and the crop's mean, so that a NAR model
can learn these codebooks. The run resumes where it stopped.

With `--detail-of OLD.pt` codebook 0 and its trunk are copied from OLD and stay fixed. The other codebooks get
their own trunk and a wider residual, and are trained on crops played slower and faster too.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.speech.recording import recorded
from demo.speech.shards import Utterance, is_held_out, read_shard, shards, symbols
from demo.speech.speak import RATE
from demo.training.batches import voice_shares
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.export.codecs.demo import CodecConfig, CodecEncoder, Trunk
from valle2.export.models.layers import nearest

Array = np.ndarray[Any, Any]
BATCH, CROP, HOP = 16, 96, 320
GAIN = (0.3, 1.0)
DECAY = 0.98
QUANTISE_FROM = 200
REDRAWN = 200
"""Steps between two draws of utterances, and between two saved checkpoints."""
WEIGHTS = {"mel": 1.0, "commit": 0.25, "symbol": 0.4, "learn": 0.02, "pull": 1.0}
UNPREDICTABLE = 0.15
"""Target share of the residual's variance that the predictor misses. A NAR model cannot learn more than that.
The loss weight that pulls towards it adapts during training (`pull`)."""
DETAIL = CodecConfig(residual=24, detail=3)
SPEEDS = (0.84, 1.2)
"""With a detail trunk, half of the crops are played at a speed in this range, which gives new voices."""
RECORDED = 0.5
"""Share of the crops whose input simulates a recording (echo, tilt, noise); the target stays clean. The
teachers' pauses are digital silence, those of a recording are not."""
PULL_START, PULL_RATE, PULL_RANGE = 0.02, 0.003, (1e-3, 0.3)


class CodecTrainer(nn.Module):
    """The encoder with what only training needs: mel decoder, classifier, predictor, EMA statistics."""

    first_sum: Tensor
    first_count: Tensor
    rest_sum: Tensor
    rest_count: Tensor

    def __init__(self, config: CodecConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.residual_only = False
        self.encoder = CodecEncoder(config)
        width, ffn, latent = config.width, config.ffn, config.latent
        self.widen = nn.Linear(config.residual, latent, bias=False)
        self.decoder = Trunk((latent, width, ffn, config.mels), config.blocks)
        self.classify = nn.Linear(latent, classes)
        self.predict = Trunk((latent + config.residual, 96, 192, config.residual), 2)
        nn.init.zeros_(self.predict.out.weight)
        self.pull: Tensor
        self.register_buffer("pull", torch.tensor(PULL_START))
        for name in ("first", "rest"):
            table: Tensor = getattr(self.encoder, name)
            table.requires_grad_(False)
            self.register_buffer(f"{name}_sum", torch.zeros_like(table))
            self.register_buffer(f"{name}_count", torch.zeros(table.shape[:-1]))

    def quantise_with(self, x: Tensor, table: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """Nearest codeword of x (B, T, D); moves the codebook by EMA and re-draws dead codes."""
        x = x.float()
        with torch.autocast("cpu", enabled=False):
            index = nearest(x, table)
        flat, hits = x.detach().flatten(0, 1), index.flatten()
        if self.training:
            count.mul_(DECAY).index_add_(0, hits, torch.full((len(hits),), 1 - DECAY))
            total.mul_(DECAY).index_add_(0, hits, flat * (1 - DECAY))
            alive = count > 1e-3
            table[alive] = (total / count.clamp(min=1e-6)[:, None])[alive]
            dead = (~alive).nonzero()[:, 0]
            if len(dead):
                fresh = flat[torch.randint(len(flat), (len(dead),))]
                fresh = fresh + 0.01 * flat.std() * torch.randn_like(fresh)
                table[dead], total[dead], count[dead] = fresh, fresh * 0.02, 0.02
        return functional.embedding(index, table)

    def forward(self, heard: Tensor, audio: Tensor, labels: Tensor, step: int) -> dict[str, Tensor]:
        """One step's losses. heard: (B, N) input; audio: (B, N) target; labels: (B, T)."""
        with torch.autocast("cpu", enabled=False):
            mel = self.encoder.mel(audio)
            spectrum = self.encoder.mel(heard)
        with torch.set_grad_enabled(not self.residual_only and torch.is_grad_enabled()):
            latent = fine = self.encoder.trunk(spectrum).float()
        if self.encoder.detail is not None:
            fine = self.encoder.detail(spectrum).float()
        if step < QUANTISE_FROM and not self.residual_only:
            return {"mel": mel_loss(self.decoder(latent), mel)}
        if self.residual_only:
            zero = functional.embedding(nearest(latent, self.encoder.first), self.encoder.first)
        else:
            zero = self.quantise_with(latent, self.encoder.first, self.first_sum, self.first_count)
        left = self.encoder.narrow(fine - zero.detach()).float()
        losses = {
            "symbol": functional.cross_entropy(
                self.classify(latent + (zero - latent).detach()).transpose(1, 2),
                labels,
                ignore_index=-1,
            ),
        } | self.predict_losses(zero, left)
        rest, commit = self.quantise_rest(left)
        straight = latent + (zero - latent).detach()
        drop = (torch.rand(len(audio), 1, 1) < 0.1).float()
        rebuilt = straight + (1 - drop) * self.widen(rest)
        losses["mel"] = mel_loss(self.decoder(rebuilt), mel)
        losses["commit"] = functional.mse_loss(latent, zero.detach()) + commit
        return losses

    def predict_losses(self, zero: Tensor, left: Tensor) -> dict[str, Tensor]:
        """Losses on the share of the residual that codebook 0 and the crop's mean do not predict.

        `learn` is that share; its gradient reaches only the predictor. The gradient of `pull` reaches only
        the residual; its weight adapts until the share is UNPREDICTABLE.
        """
        mean = left.mean(dim=1, keepdim=True).expand_as(left).detach()
        guess = mean + self.predict(torch.cat([zero, mean], dim=2)).float()
        scale = left.var().detach().clamp(min=1e-4)
        learn = ((guess - left.detach()) ** 2).mean() / scale
        missed = ((guess.detach() - left) ** 2).mean() / scale
        if self.training:
            excess = (missed.detach() / UNPREDICTABLE - 1).clamp(-1, 1)
            self.pull.mul_(torch.exp(PULL_RATE * excess)).clamp_(*PULL_RANGE)
        return {"learn": learn, "pull": self.pull * missed}

    def quantise_rest(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Seven residual books with quantiser dropout -> straight-through vector, commitment loss."""
        keep = torch.where(
            torch.rand(len(left)) < 0.5, torch.randint(1, CODEBOOKS, (len(left),)), CODEBOOKS - 1
        )
        total, remainder, commit = torch.zeros_like(left), left, left.new_zeros(())
        for book in range(CODEBOOKS - 1):
            word = self.quantise_with(
                remainder, self.encoder.rest[book], self.rest_sum[book], self.rest_count[book]
            )
            commit = commit + functional.mse_loss(remainder, word.detach())
            used = (book < keep).float()[:, None, None]
            total = total + used * word.detach()
            remainder = remainder - word.detach()
        return left + (total - left).detach(), commit

    def decoder_tables(self) -> Tensor:
        """The folded tables (8, 1024, latent): codebook 0, and the residual books widened."""
        with torch.no_grad():
            return torch.cat([self.encoder.first[None], self.widen(self.encoder.rest)])


def autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it; elsewhere it is emulated and slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512")


def mel_loss(guess: Tensor, mel: Tensor) -> Tensor:
    difference = guess.float() - mel
    return difference.abs().mean() + (difference**2).mean()


def crops(
    utterances: list[Utterance], rng: np.random.Generator, *, played: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """BATCH random crops of CROP frames: heard and true (B, N) float32, and symbol labels (B, T).

    played: half of them at another speed.
    """
    heard = np.zeros((BATCH, CROP * HOP), np.float32)
    audio, labels = np.zeros((BATCH, CROP * HOP), np.float32), np.full((BATCH, CROP), -1)
    middles = np.arange(CROP) + 0.5
    for row in range(BATCH):
        item = utterances[rng.integers(len(utterances))]
        start = int(rng.integers(max(1, item.frames - CROP)))
        speed = rng.uniform(*SPEEDS) if played and row % 2 else 1.0
        sound = item.audio[start * HOP : int((start + CROP * speed) * HOP)] / 32768 * rng.uniform(*GAIN)
        if speed != 1.0:
            sound = soxr.resample(sound, RATE * speed, RATE)[: CROP * HOP]
        at = (start + middles * speed).astype(np.int64)
        said = item.labels()[at[at < item.frames]]
        labels[row, : len(said)] = said
        audio[row, : len(sound)] = sound
        heard[row] = recorded(audio[row], rng) if rng.random() < RECORDED else audio[row]
    return torch.from_numpy(heard), torch.from_numpy(audio), torch.from_numpy(labels)


def drawn(work: Path, known: dict[Path, list[Utterance]], rng: np.random.Generator) -> list[Utterance]:
    """Load new shards and draw utterances by their voices' shares, without the held-out shards."""
    for path in shards(work):
        if path not in known and not is_held_out(path):
            known[path] = read_shard(path)
    voices: dict[str, list[Utterance]] = {}
    for items in known.values():
        for item in items:
            voices.setdefault(item.voice, []).append(item)
    names = sorted(voices)
    shares = voice_shares(names, np.array([len(voices[name]) for name in names]) ** 0.3)
    chosen = (voices[names[index]] for index in rng.choice(len(names), REDRAWN * BATCH, p=shares))
    return [items[rng.integers(len(items))] for items in chosen]


def restart_residual(model: CodecTrainer) -> None:
    """Reset the residual branch: the narrow projection, its codebooks and the layers that read them."""
    nn.init.orthogonal_(model.encoder.narrow.weight)
    model.widen.weight.data.copy_(model.encoder.narrow.weight.T)
    nn.init.zeros_(model.predict.out.weight)
    model.rest_sum.zero_()
    model.rest_count.zero_()


def detailed(source: CodecTrainer) -> CodecTrainer:
    """A codec with another one's codebook 0 and trunk; the detail trunk starts as a copy of that trunk."""
    model = CodecTrainer(DETAIL, len(symbols()))
    for name in ("trunk", "detail"):
        getattr(model.encoder, name).load_state_dict(source.encoder.trunk.state_dict())
    model.encoder.first.data.copy_(source.encoder.first)
    model.classify.load_state_dict(source.classify.state_dict())
    return model


def codec_of(state: dict[str, Tensor]) -> CodecTrainer:
    """The codec whose weights these are."""
    blocks = {name.split(".")[3] for name in state if name.startswith("encoder.detail.blocks.")}
    residual = len(state["encoder.narrow.weight"])
    model = CodecTrainer(replace(CodecConfig(), residual=residual, detail=len(blocks)), len(symbols()))
    model.load_state_dict(state)
    return model


def load_codec(path: Path) -> CodecTrainer:
    """A codec as it was saved."""
    return codec_of(torch.load(path, weights_only=True)["model"])


def train(
    path: Path, steps: int, seed: int, residual_only: bool, detail_of: Path | None, on: Path | None
) -> None:
    """Run to `steps`, saving every 200; continues from `path`, in the work folder, when it is there.

    residual_only: the encoder and codebook 0 stay as they are, so an AR model trained on them stays
    valid, and books 1..7 are learned anew. detail_of: so they do too, in a codec that begins with another's.
    on: all parts of this codec go on learning.
    """
    torch.manual_seed(seed)
    if path.exists():
        model = load_codec(path)
    elif on:
        model = load_codec(on)
    elif detail_of:
        model = detailed(load_codec(detail_of))
    else:
        model = CodecTrainer(CodecConfig(), len(symbols()))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.8, 0.99), weight_decay=0.01)
    start = resume(path, model, optimizer) or (QUANTISE_FROM if on else 0)
    model.residual_only = residual_only or detail_of is not None
    if residual_only or (detail_of and not start):
        restart_residual(model)
    known: dict[Path, list[Utterance]] = {}
    began = time.monotonic()
    for step in range(start, steps):
        rng = np.random.default_rng([seed, step])
        if step == start or step % REDRAWN == 0:
            pool = drawn(path.parent, known, rng)
        done = (step - start) / (steps - start) if residual_only else step / steps
        rate = 1e-3 * min(1, step / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        heard, audio, labels = crops(pool, rng, played=model.encoder.detail is not None)
        with autocast():
            losses = model(heard, audio, labels, step)
            loss = sum((WEIGHTS[name] * value for name, value in losses.items()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            text = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"{step} {time.monotonic() - began:.0f}s {text}", flush=True)
        if (step + 1) % REDRAWN == 0 or step + 1 == steps:
            save(path, model, optimizer, step + 1)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint aside, then put it in place."""
    aside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside)
    aside.replace(path)


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; -> its step. One that unpack.py made has no optimizer."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="codec", help="checkpoint's name")
    parser.add_argument(
        "--residual-only", action="store_true", help="reset books 1 to 7 and train only these"
    )
    parser.add_argument("--detail-of", type=Path, help="checkpoint whose codebook 0 stays")
    parser.add_argument(
        "--from", dest="on", type=Path, help="checkpoint to continue from, with all its parts"
    )
    args = parser.parse_args()
    train(args.work / f"{args.name}.pt", args.steps, args.seed, args.residual_only, args.detail_of, args.on)
