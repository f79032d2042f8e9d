"""Loss and metrics of reconstructed sound: differences of log-mels at several scales, signal-to-distortion ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp

from gen.core import Array, Feature
from gen.errors import UserError, check_not_negative, check_positive
from gen.families.tokenizer.reconstruction import Reconstruction
from gen.networks.spectra import Mel, log_mels, mel_filters

MEASURED_SECONDS = 0.032
"""Minimum length in seconds of a frame of the metric `mel_distance`. The number of samples of a frame is rounded up to
a power of 2."""
MIN_POWER = 1e-10
"""Lower bound on the sums of squares in `si_sdr`, so that its dB are finite for silence and for perfect copies."""


@dataclass(frozen=True)
class Spectral(Reconstruction):
    """Loss of sound: the sum of the mean absolute differences of log-mels at several scales, and of the samples.

    A scale is a length of the frames from which log-mels are computed. Kumar et al. 2023, section 3.5.
    """

    windows: tuple[int, ...] = (64, 256, 1024)
    """Number of samples in a frame, for each scale. Frames start every quarter of a frame."""
    bands: tuple[int, ...] = (10, 20, 40)
    """Number of mel bands, for each scale. It has as many entries as `windows`."""
    samples: float = 1.0
    """Weight of the mean absolute difference of samples. It is needed to learn the phase, which log-mels ignore."""
    rate: int | None = None
    """Sample rate in Hz. None: the sample rate of the data."""

    def __post_init__(self):
        check_positive(**{"the smallest of windows": min(self.windows, default=0)})
        check_positive(**{"the smallest of bands": min(self.bands, default=0)})
        check_not_negative(samples=self.samples)
        check_positive(rate=1 if self.rate is None else self.rate)
        if len(self.windows) != len(self.bands):
            raise UserError(
                f"windows has {len(self.windows)} numbers, and bands has {len(self.bands)}; give one of each for a scale"
            )

    def scales(self) -> list[Mel]:
        """Returns the settings of the log-mels of each scale, a pair of `windows` and `bands`."""
        return [Mel(window, window // 4, bands) for window, bands in zip(self.windows, self.bands, strict=True)]

    def loss(self, outputs: Array, x: Array) -> Array:
        assert self.rate is not None
        # Each channel is one waveform: [B, C, T].
        y, x = outputs.swapaxes(1, 2), x.swapaxes(1, 2)
        total = self.samples * jnp.abs(y - x).mean((1, 2))
        for mel in self.scales():
            total += mel_difference(y, x, self.rate, mel)
        return total

    def check(self, feature: Feature) -> None:
        if feature.sample_rate is None:
            raise UserError(
                "the loss Spectral compares sound, and the data have none; the fix: data with sound, or another loss"
            )
        for mel in self.scales():
            mel_filters(feature.sample_rate, mel)

    def suit(self, feature: Feature) -> Spectral:
        return replace(self, rate=self.rate or feature.sample_rate)

    def tiny(self) -> Spectral:
        return replace(self, windows=self.windows[:1], bands=self.bands[:1])


def mel_difference(x: Array, y: Array, rate: int, mel: Mel) -> Array:
    """Returns the mean absolute difference of the log-mels of x and y for each example, [B], in nats.

    x, y: waveforms [B, C, T]. rate: sample rate in Hz. mel: settings of the log-mels.
    """
    return jnp.abs(log_mels(x, rate, mel) - log_mels(y, rate, mel)).mean((1, 2, 3))


def measured_mel(rate: int) -> Mel:
    """Returns the settings of the log-mels of the metric `mel_distance`. rate: sample rate in Hz."""
    window = 2 ** max(4, math.ceil(math.log2(MEASURED_SECONDS * rate)))
    return Mel(window, window // 4, min(40, window // 6))


def mel_distance(x: Array, y: Array, rate: int) -> Array:
    """Returns the metric `mel_distance` of each example, [B]: the mean absolute difference of log-mels, in nats.

    x, y: sound [B, T, C]; rate: sample rate in Hz.
    """
    return mel_difference(x.swapaxes(1, 2), y.swapaxes(1, 2), rate, measured_mel(rate))


def si_sdr(x: Array, y: Array) -> Array:
    """Returns the scale-invariant signal-to-distortion ratio of y in dB, [B]. Le Roux et al. 2019, equation 2.

    x: the original sound; y: its reconstruction, [B, T, C] each. The ratio is computed over all samples of all
        channels.
    """
    x, y = (v.reshape(len(v), -1) for v in (x, y))
    # The target is the projection of y on x.
    scale = (x * y).sum(1) / jnp.maximum(jnp.square(x).sum(1), MIN_POWER)
    target = scale[:, None] * x
    power, distortion = jnp.square(target).sum(1), jnp.square(y - target).sum(1)
    return 10 * jnp.log10(jnp.maximum(power, MIN_POWER) / jnp.maximum(distortion, MIN_POWER))
