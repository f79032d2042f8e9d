"""PyTorch versions of gen's velocity networks of a flow, with their training step and their sampler."""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import (
    CLASSES,
    EPSILON,
    Attention,
    RMSNorm,
    Step,
    descend,
    draw_images,
    drop_labels,
    moving_average,
)

FREQUENCIES, FASTEST = 32, 64.0
STEPS = 20


class Velocity(nn.Module):
    """The velocity at (x, t | label), [B, 1, 28, 28]."""

    def __init__(self, trunk: nn.Module, width: int):
        super().__init__()
        self.trunk = trunk
        self.Dense_1, self.Dense_0 = nn.Linear(4 * FREQUENCIES, width), nn.Linear(width, width)
        self.Embed_0 = nn.Embedding(CLASSES + 1, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        # The network of a mean velocity also reads the length of the interval, which is 0 here.
        times = torch.cat([embed_time(t), embed_time(torch.zeros_like(t))], dim=1)
        condition = self.Dense_0(F.silu(self.Dense_1(times))) + self.Embed_0(label)
        return self.trunk(x, F.silu(condition))


def embed_time(t: Tensor) -> Tensor:
    """Returns sines and cosines of times [B], [B, 2 FREQUENCIES]."""
    return waves(FASTEST * t, FREQUENCIES, 2 * FASTEST)


def waves(x: Tensor, n: int, period: float) -> Tensor:
    """Returns sines and cosines of x [N] at n frequencies from 1 to 1 / period, [N, 2 n]."""
    frequency = torch.exp(-math.log(period) / (n - 1) * torch.arange(n, dtype=x.dtype, device=x.device))
    angle = x[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class UNet(nn.Module):
    """The U-Net of flow_fashion: 64 channels on 14x14 patches, and 128 on 7x7 with attention."""

    def __init__(self, narrow: int = 64, wide: int = 128):
        super().__init__()
        self.begin = nn.Conv2d(4, narrow, 3, padding=1)
        self.down_0_0 = Block(narrow, narrow, 4 * narrow)
        self.halve_1 = nn.Conv2d(narrow, wide, 2, 2)
        self.down_1_0, self.down_1_0_attention = Block(wide, wide, 4 * narrow), ImageAttention(wide)
        self.up_1_0, self.up_1_0_attention = Block(2 * wide, wide, 4 * narrow), ImageAttention(wide)
        self.double_0 = nn.ConvTranspose2d(wide, narrow, 2, 2)
        self.up_0_0 = Block(2 * narrow, narrow, 4 * narrow)
        self.end_norm = RMSNorm(narrow, channels_first=True)
        self.end = nn.Conv2d(narrow, 4, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        high = self.down_0_0(self.begin(F.pixel_unshuffle(x, 2)), condition)
        low = self.down_1_0_attention(self.down_1_0(self.halve_1(high), condition))
        x = self.up_1_0_attention(self.up_1_0(torch.cat([low, low], dim=1), condition))
        x = self.up_0_0(torch.cat([self.double_0(x), high], dim=1), condition)
        return F.pixel_shuffle(self.end(F.silu(self.end_norm(x))), 2)


class Block(nn.Module):
    """x + f(x), where f has two convolutions and the condition scales and shifts the channels between them."""

    def __init__(self, inputs: int, width: int, condition: int):
        super().__init__()
        self.first_norm, self.second_norm = RMSNorm(inputs, channels_first=True), RMSNorm(width, channels_first=True)
        self.first, self.second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * width)
        # A dense layer of the channels of each position.
        self.skip = nn.Linear(inputs, width) if inputs != width else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.second(F.silu(self.second_norm(h) * (1 + scale) + shift))
        if self.skip is not None:
            x = self.skip(x.movedim(1, -1)).movedim(-1, 1)
        return x + h


class ImageAttention(Attention):
    """x + attention(norm(x)) over all positions of an image."""

    def __init__(self, width: int):
        super().__init__(width, 4, bias=True)
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(self.norm(x.flatten(2).transpose(1, 2)))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class DiT(nn.Module):
    """A transformer over 7x7 patches."""

    def __init__(self, layers: int = 6, width: int = 192, heads: int = 3):
        super().__init__()
        self.begin = nn.Linear(16, width)
        row, column = torch.meshgrid(*2 * [torch.arange(7.0, dtype=torch.float64)], indexing="ij")
        places = [waves(axis.flatten(), width // 4, 10_000.0) for axis in (row, column)]
        self.register_buffer("places", torch.cat(places, dim=1), persistent=False)
        self.layers = layers
        for i in range(layers):
            self.add_module(f"block_{i}", DiTBlock(width, heads))
        self.end_modulation, self.end = nn.Linear(width, 2 * width), nn.Linear(width, 16)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.begin(F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2)) + self.places.to(x.dtype)
        for i in range(self.layers):
            x = getattr(self, f"block_{i}")(x, condition)
        x = self.end(modulate(x, *self.end_modulation(condition).chunk(2, dim=1)))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (7, 7)), 4)


class FeedForward(nn.Module):
    """Two dense layers without biases."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """A layer whose norms are scaled and shifted, and whose outputs are scaled, by the condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention, self.feed_forward = Attention(width, heads, bias=False), FeedForward(width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate, scale_2, shift_2, gate_2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate[:, None] * self.attention(modulate(x, scale, shift))
        return x + gate_2[:, None] * self.feed_forward(modulate(x, scale_2, shift_2))


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Returns the normalized x [B, T, D], scaled and shifted."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale[:, None]) + shift[:, None]


def make_unet() -> Velocity:
    return Velocity(UNet(), 256)


def make_dit() -> Velocity:
    return Velocity(DiT(), 192)


def flow(net: nn.Module, adam: Any) -> Step:
    """Returns a step on the flow-matching loss."""
    params = list(net.parameters())
    optimizer, average = adam(params, lr=1e-3), moving_average(params)

    def step(x: Tensor, label: Tensor, e: Tensor, t: Tensor) -> list[Tensor]:
        at = t.view(-1, *[1] * (x.ndim - 1))
        loss = F.mse_loss(net((1 - at) * x + at * e, t, label), e - x)
        descend(loss, [optimizer], params, clip=1.0)
        average()
        return [loss]

    return step


def draw_flow(batch: int) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches of images and labels, with noise and times."""
    draw = draw_images(batch)

    def next_batch() -> dict[str, Tensor]:
        x, label = draw().values()
        t = (1.5 * torch.randn(batch, device=x.device)).sigmoid()
        return {"image": x, "label": drop_labels(label), "e": torch.randn_like(x), "t": t}

    return next_batch


@torch.inference_mode()
def sample(net: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    """Follows the velocity from noise at t = 1 to images at t = 0, by the second-order method of Adams and Bashforth."""
    h, last = -1 / STEPS, None
    for i in range(STEPS):
        v = net(x, torch.full((len(x),), 1 - i / STEPS, dtype=x.dtype, device=x.device), label)
        x = x + h * (v if last is None else 1.5 * v - 0.5 * last)
        last = v
    return x.clamp(-1, 1)
