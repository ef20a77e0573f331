"""Train the demo's AR or NAR model.

`python -m demo.training.train ar --work W --steps N --decay D` resumes where it stopped. The learning rate is
constant and falls in the last `--decay` steps. A run without decay can go on for as long as it helps, and a
finished model can be made from any of its checkpoints (`--from`, `--name`).
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

from demo.training.attention import HIDDEN, hidden
from demo.training.batches import SHIPPED_GROUP, Example, demo_config, draw, load_samples, text_batch
from demo.training.regroup import regroup
from demo.training.train_codec import autocast, load_codec, resume, save
from valle2.engine.bundle.contract import CODEBOOKS, EOS_CODE
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.checkpoint import read_checkpoint
from valle2.export.models.ar import ARModel, Block, merge_heads, split_heads
from valle2.export.models.layers import Angles, nearest
from valle2.export.models.nar import NARModel, expected, mean_shift

POSITIONS = {"ar": {1: 2800, 2: 1800, 4: 1300, 8: 1000}, "nar": {1: 2600}}
"""Positions of a training step, by frames per position: about as many utterances at every group size."""
RATE = 1.5e-3
GUIDED_LAYERS, GUIDED_HEADS, GUIDE_WEIGHT = (1, 2), 2, 0.2
STAGE_SHARES = np.array([0.34, 0.18, 0.12] + [0.09] * 4)
RISK_WEIGHT = 3.0
ROW_NORM = 0.32
WRONG_CODES = 0.15
"""At most this share of a row's input codes is replaced: at synthesis the AR's own codes have errors too."""
DROPOUT = 0.05
"""Dropout on the output of each AR block; without it a few hundred utterances a voice are learnt by heart."""


def attend_causal(
    block: Block, x: Tensor, angles: Angles | None, target: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Causal attention and, with a target (query mask, text index), the guide loss of the first heads.

    It uses matrix products: for rows this short, PyTorch's fused attention is slower on a CPU.
    """
    query, key, value = (split_heads(part, block.heads) for part in block.project(x, None, angles))
    steps = x.shape[1]
    later = x.new_full((steps, steps), HIDDEN).triu(1)
    scores = torch.baddbmm(
        later.to(query.dtype),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=query.shape[3] ** -0.5,
    )
    weights = scores.softmax(dim=2)
    out = torch.bmm(weights, value.flatten(0, 1)).view(query.shape)
    loss = x.new_zeros((), dtype=torch.float32)
    if target is not None:
        mask, index = target
        near = torch.stack([(index + shift).clamp(0, steps - 1) for shift in (-1, 0, 1)], dim=-1)
        near = near[:, None].expand(-1, GUIDED_HEADS, -1, -1)
        guided = weights.view(*query.shape[:2], steps, steps)[:, :GUIDED_HEADS]
        mass = guided.gather(3, near).float().sum(dim=3).clamp(1e-4, 1)
        loss = -(mass.log() * mask[:, None]).sum() / (mask.sum() * GUIDED_HEADS)
    return block.finish(x, merge_heads(out)), loss


def ar_batch(batch: list[Example], eos: int, size: int) -> dict[str, Tensor]:
    """Rows of text, `<eos>`, `<bos>`, groups of `size` codes; targets (B, S, G), -1 where none is due.

    A prompt that is a recording is no target, so that the model does not learn to speak with its noise.
    """
    words, lengths = text_batch(batch, eos)
    groups = [len(item.codes) // size for item in batch]
    steps = max(int(n) + 1 + g for n, g in zip(lengths, groups, strict=True))
    text = np.full((len(batch), steps), eos)
    codes = np.zeros((len(batch), steps, size), np.int64)
    target = np.full((len(batch), steps, size), -1)
    spoken, heard = np.zeros((len(batch), steps), np.int64), np.zeros((len(batch), steps), bool)
    for row, (item, count) in enumerate(zip(batch, groups, strict=True)):
        length = int(lengths[row])
        text[row, :length] = words[row, :length]
        first = item.codes[:, 0].reshape(-1, size)
        codes[row, length + 1 : length + 1 + count] = first
        heard[row, length : length + count] = True
        unsaid = item.split // size if item.prompted else 0
        target[row, length + unsaid : length + count] = first[unsaid:]
        target[row, length + count] = EOS_CODE
        middle = np.arange(count) * size + size / 2
        spoken[row, length : length + count] = np.minimum(np.searchsorted(item.ends, middle), length - 1)
    arrays = {"text": text, "codes": codes, "target": target, "spoken": spoken, "heard": heard}
    return {name: torch.from_numpy(value) for name, value in arrays.items()} | {"lengths": lengths}


def misheard(codes: Tensor, said: Tensor) -> Tensor:
    """Replace a random share, at most WRONG_CODES, of each row's codes (B, S, G) by codes of `said` (N,)."""
    share = torch.rand(len(codes), 1, 1) * WRONG_CODES
    return torch.where(torch.rand(codes.shape) < share, said[torch.randint(len(said), codes.shape)], codes)


def ar_loss(model: ARModel, batch: dict[str, Tensor], guide: float) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy per code (Eq. 9-11) plus the guide loss; in training mode some input codes are wrong."""
    codes, dropout = batch["codes"], DROPOUT if model.training else 0.0
    said = (batch["target"] >= 0) & (batch["target"] != EOS_CODE)
    if model.training:
        codes = misheard(codes, batch["target"][said])
    start = torch.zeros_like(batch["lengths"])
    x = functional.dropout(model.embed(batch["text"], codes, batch["lengths"], start), dropout)
    angles = model.angles(start[:1], codes.shape[1])
    guides = []
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        wanted = (batch["heard"].float(), batch["spoken"]) if index in GUIDED_LAYERS and guide else None
        said, loss = attend_causal(block, x, angles, wanted)
        x = x + functional.dropout(said - x, dropout)
        guides.append(loss)
    valid = batch["target"][:, :, 0] >= 0
    logits = model.head(x[valid]).float()
    entropy = functional.cross_entropy(logits.flatten(0, 1), batch["target"][valid].flatten())
    pull = torch.stack(guides).sum() / len(GUIDED_LAYERS)
    return entropy + guide * pull, {"ce": entropy.item(), "mass": torch.exp(-pull).item()}


def nar_batch(batch: list[Example], eos: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Padded rows; the prompt is the first utterance, or a prefix of at most half (section 10)."""
    text, lengths = text_batch(batch, eos)
    frames = [len(item.codes) for item in batch]
    codes = np.zeros((len(batch), max(frames), CODEBOOKS), np.int64)
    prompts = []
    for row, item in enumerate(batch):
        codes[row, : frames[row]] = item.codes
        prompts.append(item.split or int(rng.integers(0, frames[row] // 2)))
    stage = int(rng.choice(CODEBOOKS - 1, p=STAGE_SHARES)) + 1
    return {
        "text": text,
        "lengths": lengths,
        "codes": torch.from_numpy(codes),
        "prompts": torch.tensor(prompts),
        "frames": torch.tensor(frames),
        "stage": torch.tensor(stage),
    }


def nar_loss(model: NARModel, batch: dict[str, Tensor], tables: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Loss of one stage (Eq. 17), where the model itself predicts the stages before it.

    Its predictions are seldom the true codes. So the next stage has another residual, and its target is the
    code nearest to that residual. A second term is the distance of the expected vector to the residual; the
    vector is shifted to the prompt's mean as in `NARModel.choose`. tables: (8, 1024, D), the codec's.
    """
    start, index = batch["text"].shape[1], torch.arange(batch["codes"].shape[1])
    in_prompt = index < batch["prompts"][:, None]
    target = ~in_prompt & (index < batch["frames"][:, None])
    row = target.nonzero()[:, 0]

    def logits(stage: int) -> Tensor:
        number = torch.tensor(stage)
        text, codes = batch["text"], batch["codes"]
        inputs = NARInputs(text, batch["lengths"], codes, batch["prompts"], batch["frames"], number)
        found = hidden(model, inputs) if fast else model.hidden(inputs)
        return model.head(found[:, start : start + len(index)][target], number).float()

    def moved(logits: Tensor, stage: int, said: Tensor) -> Tensor:
        wanted = expected(logits[None], tables[stage])[0]
        own = torch.zeros_like(heard).index_add(0, row, said + wanted)
        return wanted + mean_shift(heard, own, batch["prompts"], batch["frames"])[row]

    fast = torch.is_autocast_enabled("cpu")
    left = sum(tables[book][batch["codes"][:, :, book]] for book in range(1, CODEBOOKS))
    assert isinstance(left, Tensor)
    heard, true = (left * in_prompt[:, :, None]).sum(dim=1), left[target]
    scale, last, said = true.square().mean(), int(batch["stage"]), torch.zeros_like(true)
    batch["codes"] = batch["codes"].clone()
    with torch.no_grad():
        for stage in range(1, last):
            codes = nearest(moved(logits(stage), stage, said)[None], tables[stage])[0]
            batch["codes"][:, :, stage][target] = codes
            said = said + tables[stage][codes]
    found, left = logits(last), true - said
    wanted = nearest(left[None], tables[last])[0] if last > 1 else batch["codes"][:, :, 1][target]
    entropy = functional.cross_entropy(found, wanted)
    missed = (moved(found, last, said) - left).square().mean()
    values = {f"ce{last}": entropy.item(), f"missed{last}": (missed / scale).item()}
    return entropy + RISK_WEIGHT * missed / left.square().mean(), values


def start_tables(model: ARModel | NARModel, work: Path) -> None:
    """Initialise the code tables with the codec's own, centred and rotated."""
    codec = load_codec(work / "codec.pt")
    turn = torch.linalg.qr(torch.randn(model.config.d_model, model.config.d_model))[0]
    with torch.no_grad():
        for book, table in enumerate(codec.decoder_tables()):
            rows = (table - table.mean(dim=0)) @ turn[: table.shape[1]]
            rows = rows * ROW_NORM / rows.norm(dim=1).mean()
            if isinstance(model, NARModel):
                model.code_tables[book] = rows
            elif book == 0:
                model.code_table.weight[:-1] = rows


def rate_at(step: int, steps: int, decay: int, rate: float) -> float:
    """Warm-up, flat, then linear to 2 % over the last `decay` steps."""
    left = (steps - step) / decay if decay else 1.0
    return rate * min(1.0, (step + 1) / 100, max(0.02, left))


def train(args: argparse.Namespace) -> None:
    """Run to `--steps`, saving every 100 under `--name`."""
    torch.manual_seed(args.seed)
    path = args.work / f"{args.name or args.model}.pt"
    source, start = (path if path.exists() else args.from_), 0
    warm = read_checkpoint(args.warm).ar if args.warm and not source else None
    known: Any = torch.load(source, weights_only=True)["model"] if source else warm and warm.state_dict()
    config = demo_config(args.group, **{args.model: known})
    model: Any = ARModel(config) if args.model == "ar" else NARModel(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    if source:
        start = resume(source, model, optimizer)
    else:
        start_tables(model, args.work)
        if warm is not None:
            model.load_state_dict(regroup(warm, config))
    tables: Any = load_codec(args.work / "codec.pt").decoder_tables() if args.model == "nar" else None
    samples, began = load_samples(args.work), time.monotonic()
    shown: dict[str, float] = {}
    for step in range(start, args.steps):
        rng = np.random.default_rng([args.seed, step])
        size = args.group if args.model == "ar" else 1
        items = draw(samples, rng, POSITIONS[args.model][size], size)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps, args.decay, args.rate)
        with autocast():
            if args.model == "ar":
                loss, values = ar_loss(model, ar_batch(items, config.vocab_size, size), GUIDE_WEIGHT)
            else:
                loss, values = nar_loss(model, nar_batch(items, config.vocab_size, rng), tables)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shown = {k: values.get(k, v) * 0.05 + v * 0.95 if k in values else v for k, v in shown.items()} | {
            k: v for k, v in values.items() if k not in shown
        }
        if step % 50 == 0:
            text = " ".join(f"{k} {v:.3f}" for k, v in sorted(shown.items()))
            print(f"{step} {time.monotonic() - began:.0f}s {text}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            save(path, model, optimizer, step + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["ar", "nar"])
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--decay", type=int, default=0)
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate before the decay")
    parser.add_argument("--name", help="checkpoint's name, by default the model's")
    parser.add_argument("--from", dest="from_", type=Path, help="checkpoint to start a new name from")
    parser.add_argument("--group", type=int, default=SHIPPED_GROUP, help="the AR's codes a step")
    parser.add_argument(
        "--warm", type=Path, help="checkpoint folder to start the AR from, of any group size above 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
