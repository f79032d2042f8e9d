"""Discriminators: networks that map images [B, H, W, C], with or without labels, to scores [B] and features [B, F].

With conditioning "concatenation", a label is appended to the image as constant channels. With "projection", the score is
increased by the inner product of the features and an embedding of the label (Miyato and Koyama 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_decay, check_not_negative, check_positive
from gen.networks import layers
from gen.networks.dtypes import Dtypes
from gen.networks.generator import Conditioning
from gen.networks.layers import (
    Conv,
    MinibatchDiscrimination,
    Norm,
    SelfAttention,
    check_attention,
    dropout,
    leaky_relu,
    spectral_norm,
)

MINIBATCH_DIMS = 5
"""Size of the vectors M_i,b whose distances `MinibatchDiscrimination` measures."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Kind and sizes of a discriminator. Subclass it to add a kind."""

    spectral: bool = False
    """Spectral normalization of all layers (Miyato et al. 2018)."""
    dropout: float = 0.0
    """Fraction of hidden units that dropout sets to 0 in training, in [0, 1)."""
    minibatch: int = 0
    """Number of kernels of minibatch discrimination over the global batch (Salimans et al. 2016). 0: none."""

    def __post_init__(self):
        check_decay(dropout=self.dropout)
        if self.minibatch < 0:
            raise UserError(f"minibatch is {self.minibatch}; it must be a number of kernels, or 0 for none")

    def couplings(self) -> dict[str, str]:
        """Returns the layers that make a score depend on other examples of the batch: {layer: the option that avoids it}.

        {}: each score depends only on its own example.
        """
        return {"minibatch discrimination": "minibatch 0"} if self.minibatch else {}

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        """Returns the module `(x [B, H, W, C], label [B, classes] or None, keys, train) -> features [B, F]`.

        label: one-hot, appended to the image; None: no label is appended. keys: [B], for dropout; None: no dropout.
        train: whether batch normalization uses the batch's moments, and spectral normalization stores its power
        iteration.
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        """Returns a discriminator of the same kind with very small layers, for tests."""
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """A discriminator of fully connected layers with LeakyReLU."""

    widths: tuple[int, ...] = (1024, 512, 256)
    """Number of units of each hidden layer."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Dense(self, dtypes)

    def tiny(self) -> Perceptron:
        return replace(self, widths=(8,) * len(self.widths), minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class DCGAN(Architecture):
    """Strided convolutions with LeakyReLU. Radford et al. 2016.

    The defaults with dropout 0.3 are the 28x28 form of TensorFlow's tutorial. Widths (128, 256, 512, 1024) with norm batch are
    the discriminator of the paper.
    """

    widths: tuple[int, ...] = (64, 128)
    """Output channels of each convolution. Each has stride 2."""
    kernel: int = 5
    """Height and width of the kernels, in pixels."""
    norm: Literal["batch", "layer", "none"] = "none"
    """Normalization after each convolution except the first. batch: over the global batch. layer: over each example."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)
        check_positive(kernel=self.kernel)

    def couplings(self) -> dict[str, str]:
        return super().couplings() | ({"batch normalization": "norm layer"} if self.norm == "batch" else {})

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Strided(self, dtypes)

    def tiny(self) -> DCGAN:
        return replace(self, widths=(4,) * len(self.widths), kernel=3, minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class Residual(Architecture):
    """Residual blocks, then a sum over positions. Miyato et al. 2018, table 4 (for 32x32 images, with `spectral`)."""

    widths: tuple[int, ...] = (128, 128, 128, 128)
    """Channels of each block."""
    halvings: int = 2
    """Number of blocks that halve height and width. These are the first blocks."""
    attention: tuple[int, ...] = ()
    """Self-attention follows these blocks, which are numbered from 1. (): no self-attention."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)
        check_attention(self.attention, len(self.widths))
        check_not_negative(halvings=self.halvings)

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Blocks(self, dtypes)

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths), minibatch=min(self.minibatch, 2))


def check_widths(widths: tuple[int, ...]) -> None:
    """Raises: UserError if a width is below 1."""
    check_positive(**{"the discriminator's width": min(widths, default=1)})


class Discriminator(nn.Module):
    """A trunk that maps images to features, and a linear layer that maps the features to a score."""

    arch: Architecture
    conditioning: Conditioning | None
    bias: bool
    """Whether the linear layer that computes the score has a bias."""
    dtypes: Dtypes

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None, keys: Array | None, train: bool, weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns scores [B] and features [B, F].

        x: [B, H, W, C] in [-1, 1]. train: see `Architecture.trunk`. label: one-hot [B, classes], or None without
        labels. keys: dropout keys [B]; None: no dropout. weight: [B], 1 for an example and 0 for padding, which does
        not affect the scores of the examples; None: no padding.
        """
        projected, joined = (label, None) if self.conditioning == "projection" else (None, label)
        features = self.arch.trunk(self.dtypes)(x, joined, keys, train)
        # Only the score sees how close other examples are. Projection and feature matching use the features without it.
        read = features
        if self.arch.minibatch:
            read = MinibatchDiscrimination(self.arch.minibatch, MINIBATCH_DIMS, self.dtypes)(features, weight)
        scores = self.linear(read, 1, self.bias, train)[:, 0]
        if projected is not None:
            embedding = self.linear(projected.astype(features.dtype), features.shape[-1], False, train)
            scores += (embedding * features).sum(-1)
        return scores, features

    def linear(self, x: Array, size: int, bias: bool, train: bool) -> Array:
        """Applies a linear layer to x [B, F], with spectral normalization if `arch.spectral`. Returns [B, size]."""
        return spectral_norm(layers.Dense(size, use_bias=bias, **self.dtypes), self.arch.spectral, train)(x)


class Dense(nn.Module):
    """Trunk of a `Perceptron`: a multilayer perceptron, [B, H, W, C] -> features [B, widths[-1]]."""

    arch: Perceptron
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        x = x.reshape(x.shape[0], -1)
        if label is not None:
            x = jnp.concatenate([x, label.astype(x.dtype)], axis=-1)
        for i, width in enumerate(self.arch.widths):
            x = spectral_norm(layers.Dense(width, **self.dtypes), self.arch.spectral, train)(x)
            x = dropout(leaky_relu(x), keys, i, self.arch.dropout)
        return x


class Strided(nn.Module):
    """Trunk of a `DCGAN`: strided convolutions, [B, H, W, C] -> features [B, F], the flattened output of the last convolution."""

    arch: DCGAN
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        arch, x = self.arch, append_planes(x, label)
        # Radford et al. 2016 draw all weights from N(0, 0.02^2).
        init = nn.initializers.normal(0.02)
        for i, width in enumerate(arch.widths):
            # The first layer has no normalization, so that D sees the range of the pixels (Radford et al. 2016).
            has_norm = arch.norm != "none" and i > 0
            conv = Conv(width, arch.kernel, 2, use_bias=not has_norm, kernel_init=init, **self.dtypes)
            x = spectral_norm(conv, arch.spectral, train)(x)
            if has_norm:
                x = Norm(arch.norm, self.dtypes)(x, None, train)
            x = dropout(leaky_relu(x), keys, i, arch.dropout)
        return x.reshape(x.shape[0], -1)


class Blocks(nn.Module):
    """Trunk of a `Residual`: residual blocks, then a sum over positions, [B, H, W, C] -> features [B, widths[-1]]."""

    arch: Residual
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        x = append_planes(x, label)
        for i in range(1, len(self.arch.widths) + 1):
            x = self.block(x, i, train)
            if i in self.arch.attention:
                x = SelfAttention(self.arch.spectral, self.dtypes)(x, train)
        # A sum over positions instead of a mean, as published.
        return dropout(nn.relu(x).sum((1, 2)), keys, 0, self.arch.dropout)

    def block(self, x: Array, i: int, train: bool) -> Array:
        """Applies residual block i, numbered from 1. Returns [B, H, W, width], or half of H and W if i <= halvings."""
        width, halves = self.arch.widths[i - 1], i <= self.arch.halvings
        # The first block reads pixels. A ReLU before it would lose the negative ones.
        y = self.conv(nn.relu(x) if i > 1 else x, width, 3, train)
        y = self.conv(nn.relu(y), width, 3, train)
        if not halves:
            return y + (x if width == x.shape[-1] else self.conv(x, width, 1, train))
        # The shortcut of the first block halves before its convolution, because an image has few channels. The
        # shortcuts of other blocks convolve first, as published.
        if i == 1:
            return downsample(y) + self.conv(downsample(x), width, 1, train)
        return downsample(y) + downsample(self.conv(x, width, 1, train))

    def conv(self, x: Array, width: int, side: int, train: bool) -> Array:
        """Convolves x [B, H, W, C] with a kernel of side x side pixels. Returns [B, H, W, width]."""
        layer = Conv(width, side, kernel_init=nn.initializers.xavier_uniform(), **self.dtypes)
        return spectral_norm(layer, self.arch.spectral, train)(x)


def append_planes(x: Array, label: Array | None) -> Array:
    """Appends the label [B, classes] to x [B, H, W, C] as constant channels: [B, H, W, C + classes]. None: returns x."""
    if label is None:
        return x
    # A convolution must see the label at each position.
    planes = jnp.broadcast_to(label[:, None, None, :], (*x.shape[:-1], label.shape[-1])).astype(x.dtype)
    return jnp.concatenate([x, planes], axis=-1)


def downsample(x: Array) -> Array:
    """Averages each square of 2x2 pixels: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    return nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
