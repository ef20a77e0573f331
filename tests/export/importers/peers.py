"""Random checkpoints of public code bases, and oracles in plain PyTorch written from their specification.

The oracles use the raw tensors of a file in float64, and share no code with the modules of valle2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Lifeiteng:
    """A random lifeiteng or VALL-E X file. Its NAR has `scale` times the width, heads and layers."""

    width: int = 32
    heads: int = 4
    layers: int = 2
    books: int = 8
    norm_first: bool = True
    prenet: bool = False
    bos: bool = False
    mode: int = 1
    scale: float = 1.0
    shared: bool = True
    languages: bool = False
    vocab: int = 40
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    def random(self, *shape: int, around: float = 0.0) -> Tensor:
        deviation = 0.3 if around else 1.2 / shape[-1] ** 0.5 if len(shape) > 1 else 0.2
        return around + torch.randn(*shape, generator=self.generator) * deviation

    def sizes(self, part: str) -> tuple[int, int, int]:
        """Width, heads and layers of a half."""
        scale = self.scale if part == "nar" else 1.0
        return int(self.width * scale), int(self.heads * scale), int(self.layers * scale)

    def table(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def half(self, part: str) -> Weights:
        """The weights that both halves have."""
        width, _, layers = self.sizes(part)
        found = {f"{part}_text_embedding.word_embeddings.weight": self.table(self.vocab, width)}
        for kind in ("text", "audio"):
            found[f"{part}_{kind}_position.alpha"] = self.random(1, around=1.5)
        if self.languages:
            found[f"{part}_language_embedding.word_embeddings.weight"] = self.table(3, width)
        for layer in range(layers):
            base = f"{part}_decoder.layers.{layer}"
            found[f"{base}.self_attn.in_proj_weight"] = self.random(3 * width, width)
            found[f"{base}.self_attn.in_proj_bias"] = self.random(3 * width)
            found |= self.linear(f"{base}.self_attn.out_proj", width, width)
            found |= self.linear(f"{base}.linear1", 4 * width, width)
            found |= self.linear(f"{base}.linear2", width, 4 * width)
            found |= self.norm(f"{base}.norm1", part) | self.norm(f"{base}.norm2", part)
        if self.norm_first:
            found |= self.norm(f"{part}_decoder.norm", part)
        return found | (self.prenets(part, width) if self.prenet else {})

    def linear(self, name: str, rows: int, columns: int) -> Weights:
        return {f"{name}.weight": self.random(rows, columns), f"{name}.bias": self.random(rows)}

    def norm(self, name: str, part: str) -> Weights:
        width = self.sizes(part)[0]
        inner = f"{name}.norm" if part == "nar" else name
        found = {f"{inner}.weight": self.random(width, around=1.0), f"{inner}.bias": self.random(width)}
        if part == "nar":
            found |= self.linear(f"{name}.project_layer", 2 * width, width)
            found[f"{name}.project_layer.bias"][:width] += 1
        return found

    def prenets(self, part: str, width: int) -> Weights:
        found = Weights()
        for at in (1, 5, 9):
            base = f"{part}_text_prenet"
            found[f"{base}.{at}.weight"] = self.random(width, width, 5)
            found[f"{base}.{at}.bias"] = self.random(width)
            for name, around in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                found[f"{base}.{at + 1}.{name}"] = self.random(width, around=around)
            found[f"{base}.{at + 1}.running_var"] = found[f"{base}.{at + 1}.running_var"].abs() + 0.2
            found[f"{base}.{at + 1}.num_batches_tracked"] = torch.tensor(7)
        found |= self.linear(f"{part}_text_prenet.14", width, width)
        for at, (after, before) in zip((0, 3, 6), ((256, width), (256, 256), (width, 256)), strict=True):
            found |= self.linear(f"{part}_audio_prenet.{at}", after, before)
        return found

    def state(self) -> Weights:
        """The state dict."""
        found, width = self.half("ar") | self.half("nar"), self.sizes("nar")[0]
        found["ar_audio_embedding.word_embeddings.weight"] = self.table(1025 + self.bos, self.width)
        found["ar_predict_layer.weight"] = self.random(1025, self.width)
        for book in range(self.books):
            found[f"nar_audio_embeddings.{book}.word_embeddings.weight"] = self.table(
                1024 + (not book), width
            )
        for stage in range(self.books - 1):
            tied = self.shared and stage < self.books - 2
            source = f"nar_audio_embeddings.{stage + 2}.word_embeddings.weight"
            found[f"nar_predict_layers.{stage}.weight"] = found[source] if tied else self.random(1024, width)
            found[f"nar_stage_embeddings.{stage}.word_embeddings.weight"] = self.table(1, width)
        return found

    def container(self) -> dict[str, Any]:
        """The container that the code base saves."""
        return {
            "model": self.state(),
            "model_name": "VALL-E",
            "decoder_dim": self.width,
            "nhead": self.heads,
            "num_decoder_layers": self.layers,
            "norm_first": self.norm_first,
            "add_prenet": self.prenet,
            "prefix_mode": self.mode,
            "share_embedding": self.shared,
            "scale_factor": self.scale,
            "prepend_bos": self.bos,
            "num_quantizers": self.books,
        }


def sinusoid(length: int, width: int) -> Tensor:
    """Positions (length, width) float64."""
    out = torch.zeros(length, width, dtype=torch.float64)
    for pair in range(width // 2):
        rate = 10000.0 ** (-2 * pair / width)
        out[:, 2 * pair] = torch.sin(torch.arange(length, dtype=torch.float64) * rate)
        out[:, 2 * pair + 1] = torch.cos(torch.arange(length, dtype=torch.float64) * rate)
    return out


class Oracle:
    """lifeiteng's network, for one row without a batch axis."""

    def __init__(self, file: Lifeiteng, state: Weights) -> None:
        self.file = file
        self.state = {name: value.double() for name, value in state.items()}

    def at(self, name: str) -> Tensor:
        return self.state[name]

    def dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self.at(f"{name}.weight").T + self.at(f"{name}.bias")

    def norm(self, x: Tensor, name: str, stage: Tensor | None) -> Tensor:
        inner = f"{name}.norm" if stage is not None else name
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt() * self.at(f"{inner}.weight") + self.at(f"{inner}.bias")
        if stage is None:
            return x
        gain, shift = self.dense(stage, f"{name}.project_layer").chunk(2)
        return gain * x + shift

    def attention(self, x: Tensor, base: str, heads: int, mask: Tensor) -> Tensor:
        joined = x @ self.at(f"{base}.in_proj_weight").T + self.at(f"{base}.in_proj_bias")
        outs = []
        for part in range(heads):
            query, key, value = (chunk.chunk(heads, dim=1)[part] for chunk in joined.chunk(3, dim=1))
            scores = (query @ key.T / query.shape[1] ** 0.5).masked_fill(~mask, float("-inf"))
            outs.append(scores.softmax(1) @ value)
        return self.dense(torch.cat(outs, 1), f"{base}.out_proj")

    def decode(self, part: str, x: Tensor, mask: Tensor, stage: Tensor | None) -> Tensor:
        _, heads, layers = self.file.sizes(part)
        for layer in range(layers):
            base = f"{part}_decoder.layers.{layer}"

            def feed(y: Tensor, base: str = base) -> Tensor:
                return self.dense(self.dense(y, f"{base}.linear1").relu(), f"{base}.linear2")

            if self.file.norm_first:
                x = x + self.attention(self.norm(x, f"{base}.norm1", stage), f"{base}.self_attn", heads, mask)
                x = x + feed(self.norm(x, f"{base}.norm2", stage))
            else:
                attended = self.attention(x, f"{base}.self_attn", heads, mask)
                x = self.norm(x + attended, f"{base}.norm1", stage)
                x = self.norm(x + feed(x), f"{base}.norm2", stage)
        return self.norm(x, f"{part}_decoder.norm", stage) if self.file.norm_first else x

    def words(self, part: str, text: Tensor, languages: Tensor | None) -> Tensor:
        x = self.at(f"{part}_text_embedding.word_embeddings.weight")[text]
        if languages is not None:
            x = x + self.at(f"{part}_language_embedding.word_embeddings.weight")[languages]
        if self.file.prenet:
            for at in (1, 5, 9):
                base = f"{part}_text_prenet.{at}"
                x = functional.conv1d(
                    x.T[None], self.at(f"{base}.weight"), self.at(f"{base}.bias"), padding=2
                )
                after = f"{part}_text_prenet.{at + 1}"
                names = ("running_mean", "running_var", "weight", "bias")
                mean, variance, gain, shift = (self.at(f"{after}.{name}") for name in names)
                x = functional.batch_norm(x, mean, variance, gain, shift, eps=1e-5)[0].T.relu()
            x = self.dense(x, f"{part}_text_prenet.14")
        return x + self.at(f"{part}_text_position.alpha") * sinusoid(len(text), x.shape[1])

    def sounds(self, part: str, y: Tensor) -> Tensor:
        if self.file.prenet:
            for at in (0, 3, 6):
                y = self.dense(y, f"{part}_audio_prenet.{at}")
                y = y.relu() if at < 6 else y
        return y + self.at(f"{part}_audio_position.alpha") * sinusoid(len(y), y.shape[1])

    def ar(self, text: Tensor, codes: Tensor, languages: Tensor | None = None) -> Tensor:
        """Logits (T + bos, 1025) of all audio positions. codes: (T,)."""
        if self.file.bos:
            codes = torch.cat([torch.tensor([1025]), codes])
        table = self.at("ar_audio_embedding.word_embeddings.weight")
        x = torch.cat([self.words("ar", text, languages), self.sounds("ar", table[codes])])
        length = len(text)
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        mask[:length, :length] = True
        return self.decode("ar", x, mask, None)[length:] @ self.at("ar_predict_layer.weight").T

    def nar(
        self, text: Tensor, codes: Tensor, prompt: int, stage: int, languages: Tensor | None = None
    ) -> Tensor:
        """Logits (T, 1024) of the target frames. codes: (P + T, Q)."""
        tables = [self.at(f"nar_audio_embeddings.{j}.word_embeddings.weight") for j in range(self.file.books)]
        below = sum(tables[j][codes[:, j]] for j in range(stage))
        whole = sum(tables[j][codes[:, j]] for j in range(self.file.books))
        assert isinstance(below, Tensor) and isinstance(whole, Tensor)
        y = below if self.file.mode == 0 else torch.cat([whole[:prompt], below[prompt:]])
        x = torch.cat([self.words("nar", text, languages), self.sounds("nar", y)])
        vector = self.at(f"nar_stage_embeddings.{stage - 1}.word_embeddings.weight")[0]
        mask = torch.ones(len(x), len(x), dtype=torch.bool)
        hidden = self.decode("nar", x, mask, vector)[len(text) + prompt :]
        return hidden @ self.at(f"nar_predict_layers.{stage - 1}.weight").T


def greedy(oracle: Oracle, text: Tensor, nar_text: Tensor, prompt: Tensor, frames: int) -> Tensor:
    """Codes (T, Q) of the code base: argmax everywhere, no cache."""
    first = prompt[:, 0]
    while len(first) < len(prompt) + frames:
        code = oracle.ar(text, first)[-1].argmax()
        if code == 1024:
            break
        first = torch.cat([first, code[None]])
    codes = torch.zeros(len(first), oracle.file.books, dtype=torch.int64)
    codes[: len(prompt)], codes[:, 0] = prompt, first
    for stage in range(1, oracle.file.books):
        logits = oracle.nar(nar_text, codes, len(prompt), stage)
        codes[len(prompt) :, stage] = logits.argmax(1)
    return codes[len(prompt) :]
