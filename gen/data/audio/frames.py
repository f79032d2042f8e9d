"""Log-mel frames, which models of speech read: converts recordings to frames, and resamples frames."""

from __future__ import annotations

import math

import jax.numpy as jnp

from gen.core import Array, Feature
from gen.networks.spectra import Mel, log_mels

LOUD = 2.0
"""The log amplitude that is scaled to 1 in log-mel frames. In a mel band, speech is rarely louder."""


def frames_feature(audio: Feature, mel: Mel) -> Feature:
    """Returns the `Feature` that describes the log-mel frames of sound, of shape [frames, bands].

    audio: the `Feature` of the sound, of shape [samples, channels]. mel: settings of the frames.
    """
    return Feature((mel.frames(audio.shape[0]), mel.bands), sample_rate=audio.sample_rate, axes=("time", "band"))


def to_frames(audio: Array, rate: int, mel: Mel) -> Array:
    """Returns the log-mel frames [B, frames, bands] of sound [B, T, channels], whose channels are averaged.

    Log amplitudes are scaled linearly: silence (mel.floor) is -1, and LOUD is 1. rate: samples per second.
    """
    low = math.log(mel.floor)
    return (log_mels(audio.mean(2), rate, mel) - low) * 2 / (LOUD - low) - 1


def stretch(x: Array, factor: Array, axis: int) -> Array:
    """Resamples log-mel frames x [F, bands] along an axis, by linear interpolation. The shape stays the same.

    Position i of the result is x at i * factor, so a factor above 1 makes the content shorter. Positions beyond the end of x
    become -1, which is silence. factor: float [].
    """
    at = jnp.arange(x.shape[axis]) * factor
    low = jnp.floor(at).astype(jnp.int32)
    part = (at - low).astype(x.dtype)
    shape = (-1, 1) if axis == 0 else (1, -1)

    def read(index: Array) -> Array:
        return jnp.take(x, index, axis=axis, mode="fill", fill_value=-1)

    return read(low) * (1 - part).reshape(shape) + read(low + 1) * part.reshape(shape)
