"""Runs that generate sound, scored as images are: by their log-mel spectrograms, computed anew from the waveforms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Batch, Dataset, Feature, Key
from gen.data.digest import sha256
from gen.evaluation.captions import CaptionedSubject
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.reconstructions import ReconstructionSubject
from gen.networks.spectra import Mel, log_mels

SIDE = 32
"""Bands of a spectrogram, and about the number of its frames, whatever the length of the sound is."""
LOW, HIGH = -9.0, 3.0
"""Logs of the amplitudes that are black and white. Between them, 8 bits have steps of 0.05 nats."""


def spectrogram_mel(audio: Feature) -> Mel:
    """Returns how spectrograms of a feature are computed."""
    # A power of 2 near the hop that gives SIDE frames, but not so short that a frame has no frequencies.
    hop = max(16, 2 ** round(math.log2(max(1, audio.shape[0] / SIDE))))
    return Mel(window=2 * hop, hop=hop, bands=min(SIDE, hop // 4))


def to_spectrograms(x: Array, audio: Feature) -> Array:
    """Returns the spectrograms of sound x [B, T, C] as images [B, frames, bands, C] in [-1, 1]."""
    assert audio.sample_rate is not None
    found = log_mels(x.swapaxes(1, 2), audio.sample_rate, spectrogram_mel(audio))
    scaled = (2 * found - (LOW + HIGH)) / (HIGH - LOW)
    return jnp.moveaxis(scaled.clip(-1, 1), 1, -1)


def with_spectrograms(data: Dataset) -> Dataset:
    """Returns data of sound whose batches also have the spectrograms, as the feature "image"."""
    audio = data.spec["audio"]
    mel = spectrogram_mel(audio)
    image = Feature((mel.frames(audio.shape[0]), mel.bands, audio.shape[1]), levels=256)

    def preprocess(batch: Batch, key: Key, training: bool) -> Batch:
        seen = data.preprocess(batch, key, training)
        return {**seen, "image": to_spectrograms(seen["audio"], audio)}

    # Classifiers and baselines are kept under the digest, and another spectrogram is another image.
    digest = sha256("spectrograms 1", data.digest, repr((mel, LOW, HIGH)))
    return data._replace(spec={**data.spec, "image": image}, preprocess=preprocess, digest=digest)


@dataclass(frozen=True, eq=False)
class SoundSubject(ImageSubject):
    """A run that generates sound. Its data have the spectrograms of `with_spectrograms`."""

    medium = "sound"

    def to_images(self, made: Mapping[str, Array]) -> Mapping[str, Array]:
        shown = super().to_images(made)
        return {**shown, "samples": to_spectrograms(shown["samples"], self.data.spec["audio"])}

    @cached_property
    def _data_protocol(self) -> dict[str, object]:
        mel = asdict(spectrogram_mel(self.data.spec["audio"]))
        return super()._data_protocol | {"spectrograms": mel | {"black": LOW, "white": HIGH}}


@dataclass(frozen=True, eq=False)
class CaptionedSound(SoundSubject, CaptionedSubject):
    """A run on recordings with texts. If its model reads texts, it speaks the held-out ones."""

    medium = "sound with texts"


@dataclass(frozen=True, eq=False)
class SoundReconstructions(SoundSubject, ReconstructionSubject):
    """Reconstructions of n training recordings by a codec or a vocoder."""

    feature = "audio"

    def originals(self, rows: np.ndarray) -> Array:
        first = int(rows[0])
        # `rows` are consecutive, and the last one fills up the last chunk.
        batch = self.data.batch(0, 0, range(first, int(rows[-1]) + 1))
        sound = self.data.preprocess(jax.device_put(batch), jax.random.key(0), False)["audio"]
        return sound[np.minimum(rows - first, len(sound) - 1)]

    def to_pictures(self, made: Array) -> Array:
        return to_spectrograms(made, self.data.spec["audio"])
