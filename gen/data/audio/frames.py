"""Converts recordings to the log-mel frames that a model of speech reads."""

from __future__ import annotations

import math

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
