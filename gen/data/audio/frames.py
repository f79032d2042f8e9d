"""Log-mel frames of recordings, as a model that reads speech sees them."""

from __future__ import annotations

import math

from gen.core import Array, Feature
from gen.networks.spectra import Mel, log_mels

LOUD = 2.0
"""Log amplitude that becomes 1 in log-mel frames. Speech is rarely louder in a band."""


def frames_feature(audio: Feature, mel: Mel) -> Feature:
    """Returns the feature of the log-mel frames of a feature of sound."""
    return Feature((mel.frames(audio.shape[0]), mel.bands), sample_rate=audio.sample_rate, axes=("time", "band"))


def to_frames(audio: Array, rate: int, mel: Mel) -> Array:
    """Returns the log-mel frames [B, frames, bands] of sound [B, T, channels], scaled so that silence is -1. Channels are averaged."""
    low = math.log(mel.floor)
    return (log_mels(audio.mean(2), rate, mel) - low) * 2 / (LOUD - low) - 1
