"""Encoders of tokenizers map examples [B, *axes, C] to vectors on a coarser grid, and decoders map them back.

An example has one axis (sound), two (images) or three (video). A config chooses the layers with an `Architecture`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn

from gen.core import Array, Feature
from gen.errors import UserError, check_positive
from gen.networks.dtypes import Dtypes, widen
from gen.networks.layers import ACTIVATIONS, Activation, Conv
from gen.networks.vae_trunks import Block


@dataclass(frozen=True)
class Architecture:
    """The kind and the sizes of the layers of an encoder and a decoder. Subclass it to add a kind."""

    def grid(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the number of positions of the encoder's output on each axis.

        axes: length of each axis of an example. Raises: UserError if the layers do not suit such examples.
        """
        raise NotImplementedError

    def encoder(self, outputs: int, dtypes: Dtypes) -> nn.Module:
        """Returns the module that maps x [B, *axes, C] to h [B, *self.grid(axes), outputs], at least float32."""
        raise NotImplementedError

    def decoder(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        """Returns the module that maps z [B, *grid, D] to outputs [B, *shape], at least float32.

        shape: (*axes, number of outputs at each point of an example).
        """
        raise NotImplementedError

    def suit(self, example: Feature) -> Architecture:
        """Returns this architecture with settings filled in from the feature of the data, such as the sample rate."""
        return self

    def tiny(self) -> Architecture:
        """Returns the same architecture with the smallest sizes, for tests."""
        raise NotImplementedError


@dataclass(frozen=True)
class Residual(Architecture):
    """An encoder and a decoder of convolutions in stages, with residual blocks (He et al. 2016).

    They are the networks of Esser et al. 2021, appendix A, without attention and norms.
    """

    widths: tuple[int, ...] = (32, 64)
    """Channels of each stage of the encoder. The decoder has them in reverse order."""
    strides: tuple[int, ...] = (2, 2)
    """Factor by which each stage shortens every axis. With (2, 2), images of 28x28 become 7x7. With (2, 2, 2), images of 64x64 become
    8x8."""
    blocks: int = 1
    """Residual blocks in each stage."""
    activation: Activation = "silu"
    """Activation before each convolution of a block."""

    def __post_init__(self):
        check_positive(**{"the smallest of widths": min(self.widths, default=0), "blocks": self.blocks})
        check_positive(**{"the smallest of strides": min(self.strides, default=0)})
        if len(self.strides) != len(self.widths):
            raise UserError(
                f"strides has {len(self.strides)} numbers, and widths has {len(self.widths)}; give one of each for each stage"
            )

    def sizes(self, axes: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns a list of axis lengths: of the encoder's input, which is `axes`, then of the output of each stage."""
        found = [axes]
        for stride in self.strides:
            found.append(tuple(-(-n // stride) for n in found[-1]))
        return found

    def grid(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        grid = self.sizes(axes)[-1]
        if max(grid) < 2:
            size = "x".join(map(str, axes))
            raise UserError(f"strides {self.strides} make one place of {size}; the fix: fewer or smaller strides")
        return grid

    def encoder(self, outputs: int, dtypes: Dtypes) -> Encoder:
        return Encoder(self, outputs, dtypes)

    def decoder(self, shape: tuple[int, ...], dtypes: Dtypes) -> Decoder:
        return Decoder(self, shape, dtypes)

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths), blocks=1)


class Encoder(nn.Module):
    """The encoder of a `Residual`: in each stage a strided convolution, then residual blocks."""

    arch: Residual
    outputs: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, *axes, C] to [B, *grid, outputs], at least float32."""
        for width, stride in zip(self.arch.widths, self.arch.strides, strict=True):
            # No activation here: the blocks begin with one, and there is at least one block.
            x = Conv(width, side(stride), stride, **self.dtypes)(x)
            for _ in range(self.arch.blocks):
                x = Block(self.arch.activation, self.dtypes)(x)
        return widen(Conv(self.outputs, 1, **self.dtypes)(ACTIVATIONS[self.arch.activation](x)))


class Decoder(nn.Module):
    """The decoder of a `Residual`: in each stage residual blocks, then a transposed convolution."""

    arch: Residual
    shape: tuple[int, ...]
    """(*axes, outputs): shape of one decoded example."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps z [B, *grid, D] to [B, *shape], at least float32."""
        arch, (*axes, outputs) = self.arch, self.shape
        # The sizes of the encoder in reverse order, without the smallest, which is the input of the decoder.
        sizes = arch.sizes(tuple(axes))[-2::-1]
        widths = (*arch.widths[-2::-1], outputs)
        # The first convolution combines neighbouring positions, because the vector of one position has only a few numbers.
        x = Conv(arch.widths[-1], 3, **self.dtypes)(z)
        for size, width, stride in zip(sizes, widths, arch.strides[::-1], strict=True):
            for _ in range(arch.blocks):
                x = Block(arch.activation, self.dtypes)(x)
            x = ACTIVATIONS[arch.activation](x)
            x = Conv(width, side(stride), stride, transposed=True, **self.dtypes)(x)
            # A transposed convolution multiplies the size by the stride: where the encoder had 7 -> 4, this gives 4 -> 8. So the
            # output is cropped.
            x = x[(slice(None), *map(slice, size))]
        return widen(x)


def side(stride: int) -> int:
    """Returns the kernel length for a stride: larger than the stride, so that neighbouring outputs share inputs."""
    return max(3, 2 * stride)
