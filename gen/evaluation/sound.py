"""Runs that generate sound. Log-mel spectrograms are computed from the waveforms, and scored by the metrics of images."""

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
from gen.metrics.recognizer import Trained, load_recognizer
from gen.networks.spectra import Mel, log_mels

SIDE = 32
"""Largest number of bands of a spectrogram, and approximate number of its frames, for sound of any length."""
LOW, HIGH = -9.0, 3.0
"""Natural logarithms of the amplitudes that are shown as black and as white. The 256 grey levels are 0.05 apart."""


def spectrogram_mel(audio: Feature) -> Mel:
    """Returns settings of log-mels that give about SIDE frames and at most SIDE bands for sound of this feature's length."""
    # A power of 2 near the hop that gives SIDE frames. At least 16, so that a frame has enough frequencies.
    hop = max(16, 2 ** round(math.log2(max(1, audio.shape[0] / SIDE))))
    return Mel(window=2 * hop, hop=hop, bands=min(SIDE, hop // 4))


def to_spectrograms(x: Array, audio: Feature) -> Array:
    """Returns the spectrograms of sound x [B, T, C] as images [B, frames, bands, C] in [-1, 1]: -1 is LOW and 1 is HIGH."""
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

    # Classifiers and baselines are stored under the digest, so it depends on the settings of the spectrograms.
    digest = sha256("spectrograms 1", data.digest, repr((mel, LOW, HIGH)))
    return data._replace(spec={**data.spec, "image": image}, preprocess=preprocess, digest=digest)


@dataclass(frozen=True, eq=False)
class SoundSubject(ImageSubject):
    """A run that generates sound. Its spectrograms are scored as images, so `data` must be from `with_spectrograms`."""

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
    """A run on recordings with texts. If its model reads texts, it generates speech for texts of the held-out split."""

    medium = "sound with texts"

    @cached_property
    def recognizer(self) -> Trained:
        """The speech recognizer that transcribes recordings. It is trained on the run's data."""
        return load_recognizer(self.data)


@dataclass(frozen=True, eq=False)
class SoundReconstructions(SoundSubject, ReconstructionSubject):
    """Reconstructions of n training recordings by a codec or a vocoder."""

    feature = "audio"

    def originals(self, rows: np.ndarray) -> Array:
        first = int(rows[0])
        # `rows` are consecutive, but the last chunk repeats its last row. So each example is read once, then repeated.
        batch = self.data.batch(0, 0, range(first, int(rows[-1]) + 1))
        sound = self.data.preprocess(jax.device_put(batch), jax.random.key(0), False)["audio"]
        return sound[np.minimum(rows - first, len(sound) - 1)]

    def to_pictures(self, made: Array) -> Array:
        return to_spectrograms(made, self.data.spec["audio"])
