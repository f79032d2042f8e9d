"""A small image classifier: strided convolutions if there are any, then fully connected layers."""

from __future__ import annotations

from dataclasses import field

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.dtypes import Dtypes


class Classifier(nn.Module):
    """A classifier with a ReLU after each layer except the last."""

    convolutions: tuple[int, ...]
    """Output channels of each convolution. All have 4x4 kernels and stride 2. (): no convolutions."""
    hidden: tuple[int, ...]
    """Widths of the dense layers before the logits. The outputs of the last one are the features."""
    classes: int
    dtypes: Dtypes = field(default_factory=dict)

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns logits [B, classes] and features [B, D] (not negative) for x [B, H, W, C] in [-1, 1]."""
        for channels in self.convolutions:
            # A convolution as a matrix product: on a CPU, XLA's convolution is 40 times slower inside a scan.
            x = nn.relu(nn.Dense(channels, **self.dtypes)(patches(x, size=4, stride=2)))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, **self.dtypes)(x))
        return nn.Dense(self.classes, **self.dtypes)(x), x


def patches(x: Array, size: int, stride: int) -> Array:
    """Returns, for each output position of a convolution with padding SAME, the pixels that its kernel covers (im2col).

    x: [B, H, W, C]; size: side of the kernel. Returns [B, ceil(H / stride), ceil(W / stride), size * size * C].
    """
    outputs = [-(-side // stride) for side in x.shape[1:3]]
    missing = [max((n - 1) * stride + size - side, 0) for n, side in zip(outputs, x.shape[1:3], strict=True)]
    # As in XLA, an odd number of padding pixels has the extra pixel at the end.
    x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    rows, columns = ((n - 1) * stride + 1 for n in outputs)
    seen = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(seen, axis=-1)
