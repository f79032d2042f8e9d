"""A U-Net for images (Ronneberger et al. 2015; Ho et al. 2020), with a condition in each block, and self-attention in chosen stages.

Height and width can be any numbers. An odd number of rows or columns is rounded up when it is halved, and the extra row or
column is cropped after it is doubled: 28, 14, 7, 4 on the way down, and 4, 8 -> 7, 14, 28 on the way up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp

from gen.axis import shard_examples
from gen.core import Array, Rules
from gen.errors import UserError, check_not_negative, check_positive
from gen.networks.attention import attend
from gen.networks.dtypes import Dtypes
from gen.networks.layers import Conv, Dense
from gen.networks.transformer.layers import Linear, Norm, linear
from gen.networks.velocity import Architecture, modulate

NEAR_ZERO = nn.initializers.variance_scaling(1e-4, "fan_in", "normal")
"""Initializer of the last layer. It makes the first outputs nearly 0. With weights of exactly 0, the layers before it would have no
gradient."""


@dataclass(frozen=True)
class UNet(Architecture):
    """A U-Net. Each stage but the first halves the resolution on the way down, and doubles it on the way up."""

    widths: tuple[int, ...] = (64, 128)
    """Channels of each stage."""
    blocks: int = 1
    """Residual blocks of each stage, on the way down and again on the way up."""
    attention: tuple[int, ...] = ()
    """Stages, numbered from 1, whose blocks are followed by self-attention. It is affordable in stages of up to 16x16 positions."""
    heads: int = 4
    """Number of heads of the self-attention. The widths of the stages with attention must be multiples of it."""
    patch: int = 1
    """Joins squares of patch x patch pixels to one position before the first stage. 2 takes a quarter of the time of 1."""
    fourier: tuple[int, ...] = ()
    """Adds inputs sin(2^n pi x), cos(2^n pi x) for each exponent n, which differ much between neighbouring grey levels.
    For bytes, 7 and 8 lower bits_per_dim (Kingma et al. 2021, appendix C)."""

    def __post_init__(self):
        check_positive(**{"the smallest of widths": min(self.widths, default=0), "blocks": self.blocks})
        check_positive(heads=self.heads, patch=self.patch)
        check_not_negative(**{"the smallest exponent of fourier": min(self.fourier, default=0)})
        for stage in self.attention:
            if not 1 <= stage <= len(self.widths):
                raise UserError(f"attention is in stage {stage}, and there are stages 1 to {len(self.widths)}")
            if (width := self.widths[stage - 1]) % self.heads:
                raise UserError(
                    f"width {width} of stage {stage} can't be shared by {self.heads} heads; make it a multiple of them"
                )

    @property
    def condition(self) -> int:
        return 4 * self.widths[0]

    @property
    def rules(self) -> Rules:
        # The second layer of a pair is sharded by its input channels, so the activations between the two layers are not communicated.
        return ((r"(second|out)/kernel$", -2),)

    def trunk(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        if len(shape) != 3:
            raise UserError(
                f'a UNet takes images, and an example has the shape {shape}; the fix: --model.network "DiT()"'
            )
        if min(shape[:2]) < self.patch * 2 ** (len(self.widths) - 1):
            raise UserError(
                f"{shape[0]}x{shape[1]} pixels are too small for {len(self.widths)} stages: each but the first halves them; "
                "use fewer widths"
            )
        return Trunk(self, shape, dtypes)

    def tiny(self) -> UNet:
        stages = min(2, len(self.widths))
        return replace(self, widths=(8,) * stages, blocks=1, attention=(stages,) * bool(self.attention), heads=2)


class Trunk(nn.Module):
    """The layers of a UNet: down to the last stage, then up again. Blocks on the way up also read the outputs of the way down."""

    config: UNet
    shape: tuple[int, int, int]
    """Height, width and channels of the output."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Returns [B, *shape] for images x [B, height, width, C] and conditions [B, D]."""
        config, last = self.config, len(self.config.widths) - 1
        height, width, channels = self.shape
        # Neighbouring grey levels are nearly equal inputs. Their waves differ much, so a convolution can tell them apart.
        waves = [wave(2**n * jnp.pi * x) for n in config.fourier for wave in (jnp.sin, jnp.cos)]
        x = space_to_depth(jnp.concatenate([x, *waves], axis=-1), config.patch)
        x = Conv(config.widths[0], 3, name="begin", **self.dtypes)(x)
        # Outputs of the blocks on the way down. The blocks on the way up read them in reverse order.
        skips: list[Array] = []
        for i, features in enumerate(config.widths):
            if i:
                x = Conv(features, 2, 2, name=f"halve_{i}", **self.dtypes)(x)
            for j in range(config.blocks):
                x = self.block(x, condition, i, f"down_{i}_{j}")
                skips.append(x)
        for i, features in reversed(list(enumerate(config.widths))):
            if i < last:
                x = Conv(features, 2, 2, transposed=True, name=f"double_{i}", **self.dtypes)(x)
                # An odd side was rounded up when it was halved, so the doubled side is cropped.
                x = x[:, : skips[-1].shape[1], : skips[-1].shape[2]]
            for j in range(config.blocks):
                x = self.block(jnp.concatenate([x, skips.pop()], axis=-1), condition, i, f"up_{i}_{j}")
        x = nn.silu(norm(x, self.dtypes, "end_norm"))
        x = Conv(channels * config.patch**2, 3, kernel_init=NEAR_ZERO, name="end", **self.dtypes)(x)
        # `space_to_depth` padded height and width to multiples of the patch. The padding is cropped.
        return depth_to_space(x, config.patch)[:, :height, :width]

    def block(self, x: Array, condition: Array, stage: int, name: str) -> Array:
        x = Block(self.config.widths[stage], self.dtypes, name=name)(shard_examples.get()(x), condition)
        if stage + 1 in self.config.attention:
            x = Attention(self.config.heads, self.dtypes, name=f"{name}_attention")(x)
        return x


class Block(nn.Module):
    """Computes x + f(x). f has two 3x3 convolutions, and the condition scales and shifts the channels between them.

    Dhariwal and Nichol 2021, section 3.1, with RMS norms over channels.
    """

    features: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Returns [B, H, W, features] for x [B, H, W, C] and conditions [B, D]."""
        h = Conv(self.features, 3, name="first", **self.dtypes)(nn.silu(norm(x, self.dtypes, "first_norm")))
        scale, shift = jnp.split(Dense(2 * self.features, name="modulation", **self.dtypes)(condition), 2, axis=-1)
        h = nn.silu(modulate(norm(h, self.dtypes, "second_norm"), scale, shift))
        # f is 0 at step 0, so that a deep stack of blocks begins as the identity.
        h = Conv(self.features, 3, kernel_init=nn.initializers.zeros, name="second", **self.dtypes)(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, name="skip", **self.dtypes)(x)
        return x + h


class Attention(nn.Module):
    """Computes x + attention(norm(x)) over all positions."""

    heads: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [B, H, W, C] for x [B, H, W, C]."""
        b, *_, channels = x.shape
        positions = norm(x, self.dtypes, "norm").reshape(b, -1, channels)
        layers = [Linear(channels, False, self.dtypes, name=name) for name in ("query", "key", "value")]
        query, key, value = (y.reshape(*y.shape[:2], self.heads, -1) for y in linear(positions, *layers))
        # Queries and keys are normalized, which bounds the attention scores (Dehghani et al. 2023).
        query, key = norm(query, self.dtypes, "query_norm"), norm(key, self.dtypes, "key_norm")
        read = attend(query, key, value, None, None).reshape(x.shape)
        return x + Dense(channels, name="out", **self.dtypes)(read)


def norm(x: Array, dtypes: Dtypes, name: str) -> Array:
    """Returns x [..., C] divided by the root mean square of its channels, times a trained scale."""
    return Norm(False, False, dtypes, name=name)(x)


def space_to_depth(x: Array, side: int) -> Array:
    """Moves each square of side x side pixels to the channels of one position.

    x [B, H, W, C] -> [B, ceil(H / side), ceil(W / side), side^2 * C]. The image is padded with zeros to multiples of
    the side.
    """
    b, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    x = x.reshape(b, -(-height // side), side, -(-width // side), side, channels)
    # [B, h, side, w, side, C] -> [B, h, w, side, side, C]
    return x.swapaxes(2, 3).reshape(b, x.shape[1], x.shape[3], -1)


def depth_to_space(x: Array, side: int) -> Array:
    """Turns the channels of each position into a square of pixels, the inverse of `space_to_depth`.

    x [B, h, w, side^2 * C] -> [B, side * h, side * w, C].
    """
    b, h, w, channels = x.shape
    return x.reshape(b, h, w, side, side, -1).swapaxes(2, 3).reshape(b, side * h, side * w, channels // side**2)
