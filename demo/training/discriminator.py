"""Discriminators for the vocoder: small networks that tell real spectrograms from generated ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

SIZES = ((512, 128), (1024, 256), (2048, 512))
CHANNELS = (16, 32, 32, 32)
SLOPE = 0.1
FOOLED, ALIKE = 0.1, 0.5
"""Weights of the two losses of the vocoder."""


class Discriminator(nn.Module):
    """Judges the complex spectrogram of one resolution, (window, hop) samples, patch by patch."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop, layers, inputs = size, hop, list[nn.Module](), 2
        for index, width in enumerate(CHANNELS):
            kernel, stride = ((9, 3), (4, 1)) if index == 0 else ((5, 3), (2, 1))
            padding = (kernel[0] // 2, kernel[1] // 2)
            layers.append(weight_norm(nn.Conv2d(inputs, width, kernel, stride, padding)))
            inputs = width
        self.layers = nn.ModuleList(layers)
        self.out = weight_norm(nn.Conv2d(inputs, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio (B, N) -> a score for each patch, high for real audio, and every layer's activations."""
        window = torch.hann_window(self.size)
        bins = torch.stft(audio, self.size, self.hop, window=window, return_complex=True)
        x = torch.view_as_real(bins).movedim(3, 1)
        x, seen = x / (x.pow(2).sum(dim=1, keepdim=True) + 1e-6) ** 0.35, []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), SLOPE)
            seen.append(x)
        return self.out(x), seen


class Discriminators(nn.Module):
    """One discriminator per resolution; each step trains and uses one of them in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(Discriminator(*size) for size in SIZES)

    def turn(
        self, optimizer: torch.optim.Optimizer, real: Tensor, made: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Train one discriminator on real and generated audio (B, N); return the vocoder's losses from it.

        `fooled`: hinge loss on the scores. `alike`: distance of the activations of the two.
        """
        judge = self.judges[step % len(SIZES)]
        good, bad = judge(torch.cat([real, made.detach()]))[0].chunk(2)
        optimizer.zero_grad()
        (functional.relu(1 - good) + functional.relu(1 + bad)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            wanted = judge(real)[1]
        judge.requires_grad_(False)
        patches, seen = judge(made)
        judge.requires_grad_(True)
        pairs = zip(seen, wanted, strict=True)
        apart = torch.stack([(near - far).abs().mean() / far.abs().mean() for near, far in pairs])
        return {"fooled": -FOOLED * patches.mean(), "alike": ALIKE * apart.mean()}
