"""A vocoder: its encoder computes log-mels of sound. Its decoder predicts a spectrum from log-mels, and inverts it. Siuzdak 2023 (Vocos).

All layers of the decoder run at the rate of frames. Only the transforms run at the rate of samples, so the decoder is fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array, Feature
from gen.errors import UserError, check_not_negative, check_positive
from gen.networks.dtypes import Dtypes, widen
from gen.networks.kernels.sums import as_row
from gen.networks.layers import Conv, Dense
from gen.networks.spectra import Mel, correct_mels, istft, log_mels
from gen.networks.tokenizer import Architecture

MAX_LOG_MAGNITUDE = 5.0
"""Upper limit on the natural log of a magnitude, so that its exp does not overflow. Siuzdak 2023 clips magnitudes at 100."""
FIRST_TAPS, TAPS = 7, 5
"""Kernel lengths in frames: of the first convolution, and of the convolution in each block."""


@dataclass(frozen=True)
class SpectralNetwork(Architecture):
    """Base class of vocoders: convolutional blocks (Liu et al. 2022), then an inverse short-time Fourier transform."""

    mel: Mel = Mel()
    """Settings of the log-mels that the encoder computes. The decoder's spectra have the same window and hop."""
    width: int = 128
    """Channels of each block."""
    blocks: int = 4
    """Number of blocks."""
    rate: int | None = None
    """Samples per second. None: the rate of the data."""

    def __post_init__(self):
        check_positive(width=self.width, blocks=self.blocks, rate=1 if self.rate is None else self.rate)

    def grid(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        if len(axes) != 1 or self.rate is None:
            raise UserError("a vocoder makes sound, and the data have none; choose data with sound, or another network")
        return (self.mel.frames(axes[0]),)

    def decoder(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        if shape[-1] != 1:
            raise UserError("a vocoder makes mono sound; the fix: --data.channels 1")
        return Decoder(self, shape[0], dtypes)

    def suit(self, example: Feature) -> Self:
        return replace(self, rate=self.rate or example.sample_rate)

    def tiny(self) -> Self:
        return replace(self, width=8, blocks=1)


@dataclass(frozen=True)
class Vocoder(SpectralNetwork):
    """Encoder: log-mels of mono sound. Decoder: sound from log-mels. Bottleneck: one number per band, `Fixed(40)`."""

    corrections: int = 32
    """Number of rounds that change the decoded sound, so that its log-mels come nearer to the decoder's input."""

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(corrections=self.corrections)

    def encoder(self, outputs: int, dtypes: Dtypes) -> nn.Module:
        if outputs != self.mel.bands:
            raise UserError(
                f"the vocoder has {self.mel.bands} mel bands, and the bottleneck takes {outputs} numbers; the fix: "
                f"--model.bottleneck 'Fixed({self.mel.bands})'"
            )
        assert self.rate is not None, "grid checks it"
        return FrontEnd(self.mel, self.rate)

    def decoder(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        return super().decoder(shape, dtypes).clone(corrections=self.corrections)


@dataclass(frozen=True)
class SpectralCodec(SpectralNetwork):
    """A vocoder whose encoder is learned: convolutional blocks over the log-mels. The bottleneck may have any size.

    The codes of a frame cannot hold its phase at a few kbit/s, so the encoder does not read the phase. Ji et al. 2024
    (WavTokenizer) have this decoder too.
    """

    def encoder(self, outputs: int, dtypes: Dtypes) -> nn.Module:
        assert self.rate is not None, "grid checks it"
        return FrameEncoder(self, outputs, dtypes)


class FrameEncoder(nn.Module):
    """The encoder of a `SpectralCodec`: log-mels, then convolutional blocks and a dense layer."""

    arch: SpectralCodec
    outputs: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps mono sound [B, T, 1] to [B, frames, outputs], at least float32."""
        assert self.arch.rate is not None
        log_mel = FrontEnd(self.arch.mel, self.arch.rate)(x)
        return widen(Dense(self.outputs, **self.dtypes)(apply_blocks(self.arch, self.dtypes, log_mel)))


class FrontEnd(nn.Module):
    """Computes log-mels, shifted so that their mean is near 0. Has no parameters."""

    mel: Mel
    rate: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps mono sound [B, T, 1] to centred log-mels [B, frames, bands], at least float32."""
        return log_mels(widen(x)[..., 0], self.rate, self.mel) - centre(self.mel)


class Decoder(nn.Module):
    """The decoder of a `SpectralNetwork`: predicts log magnitude and phase of each frame, then inverts the spectrum."""

    arch: SpectralNetwork
    samples: int
    dtypes: Dtypes
    corrections: int = 0
    """Number of rounds of `correct_mels` at the end. If above 0, the input must be log-mels, as from `FrontEnd`."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps frames [B, frames, D] to sound [B, samples, 1]."""
        # Widened, because the Fourier transform needs float32, and an angle needs more digits than bfloat16 has.
        x = widen(Dense(2 * self.arch.mel.bins, **self.dtypes)(apply_blocks(self.arch, self.dtypes, z)))
        log_magnitude, phase = jnp.split(x, 2, -1)
        magnitude = jnp.exp(jnp.minimum(log_magnitude, MAX_LOG_MAGNITUDE))
        # cos and sin are periodic, so the network may predict any angle.
        spectrum = magnitude * (jnp.cos(phase) + 1j * jnp.sin(phase))
        sound = istft(spectrum, self.arch.mel.hop, self.samples)
        if self.corrections:
            assert self.arch.rate is not None, "grid checks it"
            sound = correct_mels(
                sound, widen(z) + centre(self.arch.mel), self.arch.rate, self.arch.mel, self.corrections
            )
        return sound[..., None]


def centre(mel: Mel) -> float:
    """Returns log(floor) / 2, the middle of the range of log-mels, which `FrontEnd` subtracts from log-mels."""
    # Log-mels lie between log(floor) and about 0.
    return math.log(mel.floor) / 2


def apply_blocks(arch: SpectralNetwork, dtypes: Dtypes, x: Array) -> Array:
    """Maps frames x [B, frames, D] to [B, frames, width] by a convolution, then `arch.blocks` residual blocks.

    Must be called in an @nn.compact method of a module, which then owns the layers.
    """
    x = nn.LayerNorm(**dtypes)(Conv(arch.width, FIRST_TAPS, **dtypes)(x))
    for _ in range(arch.blocks):
        x = x + Block(arch.width, dtypes)(x)
    return nn.LayerNorm(**dtypes)(x)


class Block(nn.Module):
    """A convolution of each channel over time, then two dense layers. Liu et al. 2022, figure 4."""

    width: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [B, frames, width] for x [B, frames, width]."""
        kernel = self.param("taps", nn.initializers.normal(TAPS**-0.5), (TAPS, self.width), self.dtypes["param_dtype"])
        padded = jnp.pad(x, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
        # The depthwise convolution is a sum of shifted products, because XLA's is slow on a CPU.
        mixed = sum(padded[:, i : i + x.shape[1]] * as_row(kernel[i].astype(x.dtype), x.ndim) for i in range(TAPS))
        hidden = nn.gelu(Dense(3 * self.width, **self.dtypes)(nn.LayerNorm(**self.dtypes)(mixed)))
        return Dense(self.width, kernel_init=nn.initializers.normal(1e-2), **self.dtypes)(hidden)
