"""A small classifier: strided convolutions, if any, then fully connected layers."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array


class Classifier(nn.Module):
    """Relu after each layer but the last."""

    convolutions: tuple[int, ...]
    """Channels of the convolutions, each 4x4 with stride 2."""
    hidden: tuple[int, ...]
    """Widths of the dense layers, at least one: the last is the features."""
    classes: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x: [B, H, W, C] in [-1, 1] -> logits [B, classes], features [B, D] at least 0."""
        for channels in self.convolutions:
            # As a matrix product: inside a scan XLA's convolution takes a CPU 40 times as long.
            x = nn.relu(nn.Dense(channels)(patches(x, size=4, stride=2)))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x), x


def patches(x: Array, size: int, stride: int) -> Array:
    """What each place of a "SAME" convolution sees: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), size size C]."""
    outputs = [-(-side // stride) for side in x.shape[1:3]]
    missing = [max((n - 1) * stride + size - side, 0) for n, side in zip(outputs, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    rows, columns = ((n - 1) * stride + 1 for n in outputs)
    seen = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(seen, axis=-1)
