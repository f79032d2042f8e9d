"""Layers that the PyTorch networks of several benchmarks share. Their parameters have the same names as in gen.

Unlike in benchmarks/peers.py, images and kernels are not mirrored, because no convolution here has odd padding.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPSILON = 1e-5
CLASSES, LEVELS = 10, 17
JOINED = ("query", "key", "value")

Step = Callable[..., list[Tensor]]
"""(batch, noise) -> losses, after a training step."""


class RMSNorm(nn.Module):
    """x over its root mean square, times a scale, over the last axis; channels first: over axis 1."""

    def __init__(self, width: int, channels_first: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_first:
            # Views: with channels_last, nothing is copied.
            return self.normalize(x.movedim(1, -1)).movedim(-1, 1)
        return self.normalize(x)

    def normalize(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)


class Attention(nn.Module):
    """Self-attention with normalized queries and keys, [B, T, D] -> [B, T, D], by PyTorch's fused kernel."""

    def __init__(self, width: int, heads: int, bias: bool, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=bias)
        self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, [B, N, T, H] each."""
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=2))
        return self.query_norm(q), self.key_norm(k), v

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*self.project(x), is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """x + f(x), where f has two convolutions of side 3. conv: nn.Conv1d for sound, nn.Conv2d for images."""

    def __init__(self, conv: type[nn.Conv1d] | type[nn.Conv2d], width: int):
        super().__init__()
        self.Conv_0, self.Conv_1 = (conv(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.Conv_1(F.silu(self.Conv_0(F.silu(x))))


def convert_names(w: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts parameters of `gen` to PyTorch, "net/a/b/kernel" -> "net/a.b.weight". Joins queries, keys and values.

    A convolution is transposed if its module's name has "double".
    """
    named: dict[str, np.ndarray] = {}
    for path, x in w.items():
        *scopes, layer, kind = path.split("/")
        if layer in JOINED:
            if layer == "query":
                parts = [w["/".join([*scopes, name, kind])].T for name in JOINED]
                named[torch_name([*scopes, "qkv", "weight"])] = np.concatenate(parts)
            continue
        if kind == "kernel":
            x = convert_kernel(x, "double" in layer)
        named[torch_name([*scopes, layer, "bias" if kind == "bias" else "weight"])] = x
    return named


def torch_name(scopes: list[str]) -> str:
    """Returns the name of a parameter in the state of its network, after the network's name."""
    network, *inner = scopes
    return f"{network}/{'.'.join(inner)}"


def convert_kernel(x: np.ndarray, transposed: bool = False) -> np.ndarray:
    """[in, out] -> [out, in], [t, in, out] -> [out, in, t], and [h, w, in, out] -> [out, in, h, w], or [in, out, h, w] mirrored if
    transposed."""
    if x.ndim < 4:
        return x.T
    # PyTorch mirrors the kernel of a transposed convolution, and JAX does not.
    return x[::-1, ::-1].transpose(2, 3, 0, 1) if transposed else x.transpose(3, 2, 0, 1)


def draw_images(batch: int) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes batches: random pixels, moved to the device and scaled to [-1, 1], and labels."""
    pixels = torch.randint(0, LEVELS, (batch, 1, 28, 28), dtype=torch.uint8)
    label = torch.randint(0, CLASSES, (batch,))

    def next_batch() -> dict[str, Tensor]:
        x = pixels.to(DEVICE, non_blocking=True).float() * (2 / (LEVELS - 1)) - 1
        return {"image": x, "label": label.to(DEVICE, non_blocking=True)}

    return next_batch


def drop_labels(label: Tensor) -> Tensor:
    """Returns labels [B], a tenth of them replaced by "no label"."""
    return torch.where(torch.rand(label.shape, device=label.device) < 0.1, CLASSES, label)


def moving_average(params: Iterable[Tensor], decay: float = 0.999) -> Callable[[], None]:
    """Returns a function that updates a running average of the parameters after a step."""
    params = list(params)
    average = [p.detach().clone() for p in params]
    steps = count()

    def update() -> None:
        i = next(steps)
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - min(decay, (1 + i) / (10 + i)))  # pyright: ignore

    return update


def descend(loss: Tensor, optimizers: Iterable[Any], params: Sequence[Tensor], clip: float | None = None) -> None:
    """Makes one optimizer step."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(params, clip)
    for optimizer in optimizers:
        optimizer.step()
