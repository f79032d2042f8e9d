"""A convolutional codec of sound and a flow of log-mel frames in PyTorch: their training steps."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import CLASSES, DEVICE, Residual, Step, convert_names, descend, drop_labels, moving_average
from benchmarks.peer_flow import DiTBlock, Velocity, modulate, waves
from gen.networks.spectra import Mel, mel_filters

RATE, SAMPLES, BATCH = 8000, 8000, 16
SCALES = ((64, 10), (256, 20), (1024, 40))
"""Samples in a frame, and mel bands, of each scale of the codec's loss."""
LEVELS, BOOKS = 10, 3
FRAMES, BANDS, FRAMES_OF_PATCH = 126, 40, 2


class Shorten(nn.Conv1d):
    """A convolution with a stride, padded so that the length is divided by the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, 2 * stride, stride)
        self.around = (stride // 2, stride - stride // 2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.around))


class Lengthen(nn.ConvTranspose1d):
    """A transposed convolution with a stride, cropped so that the length is multiplied by the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, 2 * stride, stride, padding=stride // 2)

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        return super().forward(input)[..., : input.shape[-1] * self.stride[0]]


def make_encoder() -> nn.Module:
    """Returns a convolutional encoder, [B, 1, 8000] -> [B, 3, 100]."""
    layers: dict[str, nn.Module] = {}
    for i, (inputs, width, stride) in enumerate([(1, 32, 4), (32, 64, 4), (64, 128, 5)]):
        layers |= {f"Conv_{i}": Shorten(inputs, width, stride), f"Block_{i}": Residual(nn.Conv1d, width)}
    return nn.Sequential(OrderedDict(layers, silu=nn.SiLU(), Conv_3=nn.Conv1d(128, BOOKS, 1)))


def make_decoder() -> nn.Module:
    """Returns a convolutional decoder, [B, 3, 100] -> [B, 1, 8000]."""
    layers: dict[str, nn.Module] = {"Conv_0": nn.Conv1d(BOOKS, 128, 3, padding=1)}
    for i, (inputs, width, stride) in enumerate([(128, 64, 5), (64, 32, 4), (32, 1, 4)]):
        layers |= {f"Block_{i}": Residual(nn.Conv1d, inputs), f"silu_{i}": nn.SiLU()}
        layers |= {f"Conv_{i + 1}": Lengthen(inputs, width, stride)}
    return nn.Sequential(OrderedDict(layers))


CODEC = {"encoder": make_encoder, "decoder": make_decoder}


def quantize(h: Tensor) -> Tensor:
    """Residual finite scalar quantization, with the gradient of tanh. Zeghidour et al. 2021; Mentzer et al. 2023."""
    x = torch.tanh(h)
    rest, total = x, torch.zeros_like(x)
    for i in range(BOOKS):
        scale = (LEVELS - 1) ** -i
        part = (((rest / scale + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1) * 2 / (LEVELS - 1) - 1) * scale
        total, rest = total + part, rest - part
    return x + (total - x).detach()


class LogMels(nn.Module):
    """Log-mels of sound [B, T], [B, bands, frames]."""

    filters: Tensor
    hann: Tensor

    def __init__(self, window: int, bands: int):
        super().__init__()
        filters = mel_filters(RATE, Mel(window, window // 4, bands))
        self.register_buffer("filters", torch.tensor(filters.T), persistent=False)
        self.register_buffer("hann", torch.hann_window(window, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        window = len(self.hann)
        spectrum = torch.stft(
            x, window, window // 4, window=self.hann.to(x.dtype), pad_mode="constant", return_complex=True
        )
        return (self.filters.to(x.dtype) @ spectrum.abs()).clamp(min=1e-5).log()


def codec(encoder: nn.Module, decoder: nn.Module, adam: Any) -> Step:
    """Returns a step on the distance of samples and of log-mels."""
    params = [*encoder.parameters(), *decoder.parameters()]
    scales = [LogMels(*scale).to(DEVICE, params[0].dtype) for scale in SCALES]
    optimizer, average = adam(params, lr=1e-3), moving_average(params)

    def step(x: Tensor) -> list[Tensor]:
        x = x.transpose(1, 2)
        y = decoder(quantize(encoder(x)))
        loss = F.l1_loss(y, x) + sum(F.l1_loss(scale(y[:, 0]), scale(x[:, 0])) for scale in scales)
        descend(loss, [optimizer], params, clip=1.0)
        average()
        return [loss]

    return step


def codec_weights(w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the parameters of `gen` to PyTorch."""
    named = convert_names(w)
    for i in (1, 2, 3):
        # PyTorch mirrors the kernel of a transposed convolution, and JAX does not.
        named[f"decoder/Conv_{i}.weight"] = w[f"decoder/Conv_{i}/kernel"][::-1].transpose(1, 2, 0)
    return named


class MelDiT(nn.Module):
    """A transformer over pairs of log-mel frames, [B, frames, bands] -> the same shape."""

    def __init__(self, layers: int = 4, width: int = 192, heads: int = 4):
        super().__init__()
        numbers = FRAMES_OF_PATCH * BANDS
        self.begin = nn.Linear(numbers, width)
        places = waves(torch.arange(FRAMES // FRAMES_OF_PATCH, dtype=torch.float64), width // 2, 10_000.0)
        self.register_buffer("places", places, persistent=False)
        self.layers = layers
        for i in range(layers):
            self.add_module(f"block_{i}", DiTBlock(width, heads))
        self.end_modulation, self.end = nn.Linear(width, 2 * width), nn.Linear(width, numbers)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.begin(x.reshape(len(x), -1, FRAMES_OF_PATCH * BANDS)) + self.places.to(x.dtype)
        for i in range(self.layers):
            h = getattr(self, f"block_{i}")(h, condition)
        return self.end(modulate(h, *self.end_modulation(condition).chunk(2, dim=1))).reshape(x.shape)


def make_mel_dit() -> Velocity:
    return Velocity(MelDiT(), 192)


def draw_sound() -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches of one second of noise."""
    sound = torch.rand(BATCH, SAMPLES, 1) - 0.5
    return lambda: {"audio": sound.to(DEVICE, non_blocking=True)}


def draw_mels() -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches of log-mels and labels, with noise and times."""
    mels, label = torch.randn(64, FRAMES, BANDS), torch.randint(0, CLASSES, (64,))

    def next_batch() -> dict[str, Tensor]:
        x = mels.to(DEVICE, non_blocking=True)
        t = torch.randn(len(x), device=x.device).sigmoid()
        label_seen = drop_labels(label.to(DEVICE, non_blocking=True))
        return {"latent": x, "label": label_seen, "e": torch.randn_like(x), "t": t}

    return next_batch
