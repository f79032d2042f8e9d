"""Discriminators: images [B, H, W, C], and labels if any, to scores [B] and the features [B, F] that they are read from.

A label is concatenated as planes, or scores by its inner product with the features (projection, Miyato and Koyama 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_positive
from gen.networks import layers
from gen.networks.generator import Conditioning
from gen.networks.layers import Conv, MinibatchDiscrimination, Norm, SelfAttention, check_attention, dropout, spectral


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a discriminator is made of. Subclass it to add one."""

    spectral: bool = False
    """Spectral normalization of all layers (Miyato et al. 2018)."""
    dropout: float = 0.0
    """Share of hidden units that are dropped."""
    minibatch: int = 0
    """Kernels of minibatch discrimination over the whole batch (Salimans et al. 2016); 0: none."""

    def __post_init__(self):
        check_positive(**{"the discriminator's width": min(getattr(self, "widths", (1,)), default=1)})
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is a share in [0, 1)")
        if self.minibatch < 0:
            raise UserError(f"minibatch is {self.minibatch}; it counts kernels, 0 for none")

    def couples(self) -> str | None:
        """What makes a score depend on other examples of the batch, if anything does."""
        norm = getattr(self, "norm", "none")
        return "minibatch discrimination" if self.minibatch else "batch normalization" if norm == "batch" else None

    def trunk(self, dtypes: dict[str, Any]) -> nn.Module:
        """The module `(x [B, H, W, C], label planes or None, keys, train) -> features [B, F]`."""
        raise NotImplementedError

    def tiny(self) -> Architecture:
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """Fully connected layers with LeakyReLU."""

    widths: tuple[int, ...] = (1024, 512, 256)
    """Units of the hidden layers."""

    def trunk(self, dtypes: dict[str, Any]) -> nn.Module:
        return Dense(self, dtypes)

    def tiny(self) -> Perceptron:
        return replace(self, widths=(8,) * len(self.widths), minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class DCGAN(Architecture):
    """Strided convolutions with LeakyReLU. The defaults, with dropout 0.3, are the 28x28 form of TensorFlow's tutorial;
    (128, 256, 512, 1024) with norm batch is Radford et al. 2016, whose first layer has none."""

    widths: tuple[int, ...] = (64, 128)
    """Channels of the convolutions, of stride 2."""
    kernel: int = 5
    """Side of their kernels."""
    norm: Literal["batch", "layer", "none"] = "none"
    """Normalization of all layers but the first."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(kernel=self.kernel)

    def trunk(self, dtypes: dict[str, Any]) -> nn.Module:
        return Strided(self, dtypes)

    def tiny(self) -> DCGAN:
        return replace(self, widths=(4,) * len(self.widths), kernel=3, minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class Residual(Architecture):
    """Residual blocks, then the sum over positions, as Miyato et al. 2018, table 4 (there for 32x32, with `spectral`)."""

    widths: tuple[int, ...] = (128, 128, 128, 128)
    """Channels of each block."""
    halvings: int = 2
    """How many of the first blocks halve the side."""
    attention: tuple[int, ...] = ()
    """Blocks (1 is the first) that self-attention follows."""

    def __post_init__(self):
        super().__post_init__()
        check_attention(self.attention, len(self.widths))

    def trunk(self, dtypes: dict[str, Any]) -> nn.Module:
        return Blocks(self, dtypes)

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths), minibatch=min(self.minibatch, 2))


class Discriminator(nn.Module):
    """A trunk, and the score that is read from its features."""

    arch: Architecture
    conditioning: Conditioning | None
    bias: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> tuple[Array, Array]:
        """x: [B, H, W, C]; label: [B, classes] one-hot or None; keys: [B] of dropout's noise, or None for no dropout.

        -> scores [B], features [B, F].
        """
        projected, joined = (label, None) if self.conditioning == "projection" else (None, label)
        features = self.arch.trunk(self.dtypes)(x, joined, keys, train)
        read = features
        if self.arch.minibatch:
            read = MinibatchDiscrimination(self.arch.minibatch, 5, self.dtypes)(features)
        linear = lambda size, bias: spectral(
            layers.Dense(size, use_bias=bias, **self.dtypes), self.arch.spectral, train
        )
        scores = linear(1, self.bias)(read)[:, 0]
        if projected is not None:
            scores += (linear(features.shape[-1], False)(projected.astype(features.dtype)) * features).sum(-1)
        return scores, features


class Dense(nn.Module):
    arch: Perceptron
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        x = x.reshape(x.shape[0], -1)
        if label is not None:
            x = jnp.concatenate([x, label.astype(x.dtype)], axis=-1)
        for i, width in enumerate(self.arch.widths):
            x = spectral(layers.Dense(width, **self.dtypes), self.arch.spectral, train)(x)
            x = dropout(nn.leaky_relu(x, 0.2), keys, i, self.arch.dropout)
        return x


class Strided(nn.Module):
    arch: DCGAN
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        arch, x = self.arch, with_planes(x, label)
        init = {"kernel_init": nn.initializers.normal(0.02)}
        for i, width in enumerate(arch.widths):
            normed = arch.norm != "none" and i > 0
            conv = Conv(width, arch.kernel, 2, use_bias=not normed, **init, **self.dtypes)
            x = spectral(conv, arch.spectral, train)(x)
            if normed:
                x = Norm(arch.norm, self.dtypes)(x, None, train)
            x = dropout(nn.leaky_relu(x, 0.2), keys, i, arch.dropout)
        return x.reshape(x.shape[0], -1)


class Blocks(nn.Module):
    arch: Residual
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        arch, x = self.arch, with_planes(x, label)

        def conv(x: Array, width: int, side: int) -> Array:
            layer = Conv(width, side, kernel_init=nn.initializers.xavier_uniform(), **self.dtypes)
            return spectral(layer, arch.spectral, train)(x)

        for i, width in enumerate(arch.widths, 1):
            shrink = halved if i <= arch.halvings else lambda x: x
            y = conv(nn.relu(x) if i > 1 else x, width, 3)
            y = shrink(conv(nn.relu(y), width, 3))
            same = width == x.shape[-1] and i > arch.halvings
            # 1x1 last in the first block, where the image has few channels; first in the others, as published.
            x = y + (x if same else conv(shrink(x), width, 1) if i == 1 else shrink(conv(x, width, 1)))
            if i in arch.attention:
                x = SelfAttention(arch.spectral, self.dtypes)(x, train)
        return dropout(nn.relu(x).sum((1, 2)), keys, 0, arch.dropout)


def with_planes(x: Array, label: Array | None) -> Array:
    """[B, H, W, C] and [B, classes] -> [B, H, W, C + classes]."""
    if label is None:
        return x
    planes = jnp.broadcast_to(label[:, None, None, :], (*x.shape[:-1], label.shape[-1])).astype(x.dtype)
    return jnp.concatenate([x, planes], axis=-1)


def halved(x: Array) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C], means of 2x2 pixels."""
    return nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
