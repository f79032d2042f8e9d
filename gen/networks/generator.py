"""Generators: latents [B, D], and labels if any, to images [B, H, W, C] in [-1, 1].

A label is concatenated to the latents, or scales and shifts what the normalizations leave (conditional batch norm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_positive
from gen.networks import layers
from gen.networks.layers import ACTIVATIONS, Activation, Conv, Norm, Normalization, SelfAttention, check_attention
from gen.networks.virtual_batch_norm import Referenced

Conditioning = Literal["concatenation", "projection"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a generator is made of. Subclass it to add one."""

    norm: Normalization = "batch"
    """Normalization of hidden layers: batch (over all devices), layer, virtual (by a reference batch) or none."""

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: dict[str, Any]) -> nn.Module:
        """The module `(z [B, D], label [B, classes] or None, train) -> [B, *shape]`.

        Raises: UserError if it can't make images of that shape.
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """Fully connected layers."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    """Units of the hidden layers."""
    activation: Activation = "leaky_relu"

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=1)})

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: dict[str, Any]) -> nn.Module:
        return referenced(self, Dense(self, shape, conditioning, dtypes))

    def tiny(self) -> Perceptron:
        return replace(self, widths=(8,) * len(self.widths))


@dataclass(frozen=True)
class DCGAN(Architecture):
    """A projection to a small image, then transposed convolutions, as Radford et al. 2016: (1024, 512, 256, 128) with
    strides (2, 2, 2, 2) makes their 64x64. The defaults are the 28x28 form of TensorFlow's tutorial."""

    widths: tuple[int, ...] = (256, 128, 64)
    """Channels of the projection, and of each transposed convolution but the last."""
    strides: tuple[int, ...] = (1, 2, 2)
    """Strides of the transposed convolutions."""
    kernel: int = 5
    """Side of their kernels."""
    activation: Activation = "leaky_relu"

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=0), "kernel": self.kernel})
        if len(self.widths) != len(self.strides):
            raise UserError(
                f"the generator has {len(self.widths)} widths and {len(self.strides)} strides; one for each"
            )

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: dict[str, Any]) -> nn.Module:
        small = base(shape, math.prod(self.strides))
        return referenced(self, Transposed(self, shape, small, conditioning, dtypes))

    def tiny(self) -> DCGAN:
        return replace(self, widths=(4,) * len(self.widths), kernel=3)


@dataclass(frozen=True)
class Residual(Architecture):
    """Residual blocks that double the side each, as Miyato et al. 2018, table 4: (256, 256, 256, 256) makes 32x32 from 4x4,
    (256, 256, 256) 28x28 from 7x7, (1024, 512, 256, 128, 64) 64x64."""

    widths: tuple[int, ...] = (256, 256, 256, 256)
    """Channels of the projection, and of each block."""
    attention: tuple[int, ...] = ()
    """Blocks (1 is the first) that self-attention follows."""

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=0)})
        check_attention(self.attention, len(self.widths) - 1)

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: dict[str, Any]) -> nn.Module:
        small = base(shape, 2 ** (len(self.widths) - 1))
        return referenced(self, Blocks(self, shape, small, conditioning, dtypes))

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths))


def base(shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    """The small image that is enlarged by `factor`. Raises: UserError if there is none."""
    height, width, _ = shape
    if height % factor or width % factor:
        side = max(factor, round(min(height, width) / factor) * factor)
        raise UserError(
            f"this generator enlarges by {factor}, which makes no {height}x{width} images; "
            f"the fix: --data.size {side}, or other --model.generator.widths (or strides)"
        )
    return height // factor, width // factor


def referenced(arch: Architecture, generator: nn.Module) -> nn.Module:
    return Referenced(generator) if arch.norm == "virtual" else generator


def entered(z: Array, label: Array | None, conditioning: Conditioning | None) -> tuple[Array, Array | None]:
    """What enters at the bottom, and the label that the normalizations see."""
    if label is None or conditioning == "projection":
        return z, label
    return jnp.concatenate([z, label.astype(z.dtype)], axis=-1), None


class Dense(nn.Module):
    arch: Perceptron
    shape: tuple[int, ...]
    conditioning: Conditioning | None
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        x, label = entered(z, label, self.conditioning)
        for width in self.arch.widths:
            x = layers.Dense(width, use_bias=self.arch.norm == "none", **self.dtypes)(x)
            if self.arch.norm != "none":
                x = Norm(self.arch.norm, self.dtypes)(x, label, train)
            x = ACTIVATIONS[self.arch.activation](x)
        return jnp.tanh(layers.Dense(math.prod(self.shape), **self.dtypes)(x)).reshape(-1, *self.shape)


class Transposed(nn.Module):
    arch: DCGAN
    shape: tuple[int, ...]
    base: tuple[int, int]
    conditioning: Conditioning | None
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        arch, init = self.arch, {"kernel_init": nn.initializers.normal(0.02), **self.dtypes}
        normed = {"use_bias": arch.norm == "none", **init}

        def hidden(x: Array, label: Array | None) -> Array:
            if arch.norm != "none":
                x = Norm(arch.norm, self.dtypes)(x, label, train)
            return ACTIVATIONS[arch.activation](x)

        x, label = entered(z, label, self.conditioning)
        x = layers.Dense(math.prod(self.base) * arch.widths[0], **normed)(x)
        x = hidden(x.reshape(-1, *self.base, arch.widths[0]), label)
        for width, stride in zip(arch.widths[1:], arch.strides, strict=False):
            x = hidden(Conv(width, arch.kernel, stride, transposed=True, **normed)(x), label)
        return jnp.tanh(Conv(self.shape[-1], arch.kernel, arch.strides[-1], transposed=True, **init)(x))


class Blocks(nn.Module):
    arch: Residual
    shape: tuple[int, ...]
    base: tuple[int, int]
    conditioning: Conditioning | None
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        arch, init = self.arch, {"kernel_init": nn.initializers.xavier_uniform(), **self.dtypes}

        def normed(x: Array) -> Array:
            return nn.relu(x if arch.norm == "none" else Norm(arch.norm, self.dtypes)(x, label, train))

        def block(x: Array, width: int) -> Array:
            y = Conv(width, 3, **init)(doubled(normed(x)))
            y = Conv(width, 3, **init)(normed(y))
            return y + doubled(Conv(width, 1, **init)(x))  # 1x1 first: the same, at a quarter of the cost

        x, label = entered(z, label, self.conditioning)
        x = layers.Dense(math.prod(self.base) * arch.widths[0], **init)(x).reshape(-1, *self.base, arch.widths[0])
        for i, width in enumerate(arch.widths[1:], 1):
            x = block(x, width)
            if i in arch.attention:
                x = SelfAttention(False, self.dtypes)(x, train)
        return jnp.tanh(Conv(self.shape[-1], 3, **init)(normed(x)))


def doubled(x: Array) -> Array:
    """[B, H, W, C] -> [B, 2 H, 2 W, C], each pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
