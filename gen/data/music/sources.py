"""Sources of scores: pieces in memory, and the built-in canons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gen.data.digest import sha256
from gen.data.music.roll import HELD, REST

N_CANONS = {"train": 96, "validation": 24, "test": 24}
BAR = 16
"""Frames of a bar of a canon: four quarter notes of four frames each."""
MAJOR = (0, 2, 4, 5, 7, 9, 11)
"""Semitones of the steps of a major scale above its first."""
CHORDS = (0, 3, 4, 0)
"""Steps of the scale on which the chords of a canon's bars stand. They repeat, so that voices a bar apart fit each other."""
REGISTERS = (72, 65, 57, 48)
"""Approximate middle of the range of each voice, as MIDI numbers. A fifth voice has the range of the first, and so on."""


class Source(NamedTuple):
    """Pieces with random access by position. The splits lie one after the other."""

    name: str
    """The --data.name of the config."""
    splits: Mapping[str, Sequence[int]]
    """{split: [number of pieces]}."""
    pieces: Sequence[np.ndarray]
    """The rolls, int16 [frames, voices]. See gen.data.music.roll."""
    labels: np.ndarray
    """Class of each piece, int32 [N]. All are 0 without classes."""
    classes: tuple[str, ...] | None
    """Name of each class. None: there are no labels."""
    options: Mapping[str, str]
    """{field: value} of --data.train, ... as slices of `splits`."""
    content: str
    """Digest of the pieces. It is the same on every machine."""


def canons(voices: int, onsets: bool, slices: Mapping[str, str]) -> Source:
    """Returns 144 canons of 4 to 8 bars made by rule: each voice repeats the one before it a bar later, in its own register.

    They need no download, and tell whether a model reads other voices and the past. slices: {field: value} of --data.train, ...
    """
    rng, n = np.random.default_rng(0), sum(N_CANONS.values())
    pieces = [_canon(voices, int(rng.integers(4, 9)), rng) for _ in range(n)]
    if not onsets:
        pieces = [np.where(piece >= HELD, piece - HELD, piece).astype(np.int16) for piece in pieces]
    return Source(
        name="canons",
        splits={split: [count] for split, count in N_CANONS.items()},
        pieces=pieces,
        labels=np.zeros(n, np.int32),
        classes=None,
        options=slices,
        content=sha256(*pieces),
    )


def _canon(voices: int, bars: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a canon, int16 [16 bars, voices]."""
    key = int(rng.integers(-3, 4))
    # The tune of each bar: notes of one, two or four beats, and which tone of the bar's chord each beat has.
    lengths, thirds = rng.choice([4, 4, 8, 16], size=bars).tolist(), rng.integers(3, size=(bars, 4)).tolist()
    roll = np.full((bars * BAR, voices), REST, np.int16)
    for voice in range(voices):
        middle = REGISTERS[voice % len(REGISTERS)]
        for bar in range(voice, bars):
            length, chord = lengths[bar - voice], CHORDS[bar % len(CHORDS)]
            for i in range(BAR // length):
                pitch = _near(key + _tone(chord, thirds[bar - voice][i]), middle)
                start = bar * BAR + i * length
                roll[start : start + length, voice] = HELD + pitch
                roll[start, voice] = pitch
    return roll


def _tone(chord: int, third: int) -> int:
    """Returns one of the three tones of a chord, in semitones above the key."""
    step = chord + 2 * third
    return MAJOR[step % len(MAJOR)] + 12 * (step // len(MAJOR))


def _near(semitones: int, middle: int) -> int:
    """Returns the MIDI number of a tone in the octave around `middle`."""
    return middle - 6 + (semitones - middle + 6) % 12
