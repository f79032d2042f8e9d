"""Sources of sound: recordings that can be decoded by position, and the built-in tones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gen.data.audio.preprocess import to_integers
from gen.data.digest import sha256
from gen.errors import UserError

N_TONES = {"train": 500, "validation": 100, "test": 100}
"""{split: number of built-in sounds}."""
NOTES = {"C": 0, "D": 2, "E": 4, "G": 7, "A": 9}
"""{name of a tone: distance from C4, in half-tones}."""
CHORDS = {
    "C major": (0, 4, 7),
    "D minor": (2, 5, 9),
    "E minor": (4, 7, 11),
    "F major": (5, 9, 12),
    "G major": (-5, -1, 2),
}
"""{name of a chord: distance of each of its tones from C4, in half-tones}."""
C4 = 261.626
"""Frequency of the note C4, in Hz."""
HARMONICS = 4
"""Number of harmonics of a tone, the fundamental included."""
MIN_RATE = 4400
"""Minimum sample rate, in Hz. It is twice the frequency of the highest harmonic."""


class Source(NamedTuple):
    """Recordings that can be decoded by position. Positions count through all splits, one split after the other."""

    name: str
    """The --data.name of the config."""
    splits: Mapping[str, Sequence[int]]
    """{split: [number of recordings]}."""
    seconds: np.ndarray
    """Length of each recording, float64 [N]."""
    labels: np.ndarray
    """Class of each recording, int32 [N]. All are 0 if there are no classes."""
    classes: tuple[str, ...] | None
    """Name of each class. None: there are no labels."""
    options: Mapping[str, str]
    """{"train", "validation" or "test": slice of `splits`}."""
    decode: Callable[[int, int, int], np.ndarray]
    """(position, rate, channels) -> the recording, int16 [n, channels]. Raises: UserError if it can't be decoded."""
    content: str
    """Digest of the recordings, which is the same on every machine. It is part of the digest of the data set."""
    fingerprint: str | None
    """Digest of everything that decides the decoded recordings and their labels, for the key of the cache. None: not cached."""


@dataclass(frozen=True)
class Tones:
    """Synthetic tones and chords, in memory."""

    audio: np.ndarray
    """Samples of each sound, float32 [N, T] in [-1, 1]."""
    rate: int

    def decode(self, position: int, rate: int, channels: int) -> np.ndarray:
        """Returns a tone or a chord, int16 [T, channels]. Raises: UserError if `rate` is not self.rate."""
        if rate != self.rate:
            raise UserError(f"tones are made at {self.rate} Hz, not at {rate}")
        return to_integers(np.repeat(self.audio[position][:, None], channels, axis=1))


def tones(rate: int, seconds: float, slices: Mapping[str, str]) -> Source:
    """Returns 700 synthetic sounds of ten classes: five tones (C, D, E, G, A) and five chords, in a fixed random order.

    Each sound has a random loudness, timbre, attack, decay, tuning and start time. Nothing is downloaded.

    rate: samples per second, at least MIN_RATE. seconds: length of each sound. slices: {"train", "validation" or "test": slice}.

    Raises: UserError if the rate is too low.
    """
    if rate < MIN_RATE:
        raise UserError(f"tones need --data.rate {MIN_RATE} or more, and it is {rate}")
    # A fixed seed: the sounds are a data set, so they are the same in every run.
    rng, n, names = np.random.default_rng(0), sum(N_TONES.values()), (*NOTES, *CHORDS)
    labels = rng.permutation(np.arange(n) % len(names)).astype(np.int32)
    pitches = [(steps,) for steps in NOTES.values()] + list(CHORDS.values())
    audio = np.stack([_play(pitches[label], rate, round(rate * seconds), rng) for label in labels.tolist()])
    played = Tones(audio.astype(np.float32), rate)
    return Source(
        name="tones",
        splits={split: [count] for split, count in N_TONES.items()},
        seconds=np.full(n, seconds),
        labels=labels,
        classes=names,
        options=slices,
        decode=played.decode,
        content=sha256(to_integers(played.audio), labels),
        fingerprint=None,
    )


def _play(steps: Sequence[int], rate: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns tones that sound together, float64 [samples] in [-1, 1]. steps: of each tone, the half-tones above C4."""
    t = np.arange(samples) / rate - rng.uniform(0, 0.1) * samples / rate
    # Random tuning, up to a quarter of a half-tone.
    tuning = 2 ** (rng.uniform(-0.25, 0.25) / 12)
    harmonic = np.arange(1, HARMONICS + 1)
    # Higher harmonics are softer, as in most instruments.
    loudness = rng.uniform(0.2, 1, HARMONICS) / harmonic**1.5
    decay, attack = rng.uniform(1, 6), rng.uniform(0.005, 0.03)
    x = np.zeros(samples)
    for step in steps:
        frequency = C4 * tuning * 2 ** (step / 12) * harmonic
        x += loudness @ np.sin(2 * np.pi * (frequency[:, None] * t + rng.uniform(size=(HARMONICS, 1))))
    # Silence before the beginning, then a short attack and a long decay.
    x *= np.where(t > 0, np.exp(-decay * t) * -np.expm1(-np.maximum(t, 0) / attack), 0)
    x *= rng.uniform(0.3, 0.9) / max(np.abs(x).max(), 1e-9)
    # A little noise, as in every real recording. The log-mels of exact zeros would be far from the log-mels of any recording.
    return x + rng.normal(0, 1e-3, samples)
