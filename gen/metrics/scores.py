"""Statistics of musical scores from the rules of four-part writing: tones, steps of the voices, parallels, doubled leading tones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from gen.data.music.roll import REST, pitches_of

OCTAVE, FIFTH = 12, 7
"""Size of these intervals in semitones."""
MAX_STEP = 12
"""Largest step of a voice with its own bin in the histogram, in semitones. Larger steps count as this step."""
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
"""Profiles of major and minor keys: how well each pitch class fits the key, from the tonic upwards (Krumhansl and Kessler 1982)."""


class Harmony(NamedTuple):
    """Statistics of a set of scores."""

    tones: np.ndarray
    """Fraction of each pitch class among all sounding tokens (frame and voice), [12]."""
    steps: np.ndarray
    """Fraction of each step of a voice from a note to the next, from -MAX_STEP to MAX_STEP semitones, [25]."""
    parallels: float
    """Fraction of parallel fifths, octaves and unisons among all moments in which two voices move at once, in [0, 1]."""
    doubled: float
    """Fraction of frames in which two or more voices have the leading tone of the piece's key, in [0, 1]."""


def measure(rolls: Sequence[np.ndarray]) -> Harmony:
    """Returns the statistics of rolls, int [frames, voices] each. At least one of them must have notes."""
    pitches = [pitches_of(roll) for roll in rolls]
    # Counts are summed over all pieces, so that a short piece counts less than a long one.
    tones = np.sum([count_tones(pitch) for pitch in pitches], axis=0)
    steps = np.sum([count_steps(pitch) for pitch in pitches], axis=0)
    found, moves = np.sum([count_parallels(pitch) for pitch in pitches], axis=0)
    doubled = np.concatenate([doubled_leading(pitch) for pitch in pitches])
    return Harmony(
        tones / max(1, tones.sum()),
        steps / max(1, steps.sum()),
        float(found / max(1, moves)),
        float(doubled.mean()),
    )


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the total variation distance of two histograms, in [0, 1]."""
    return float(np.abs(a - b).sum() / 2)


def count_tones(pitch: np.ndarray) -> np.ndarray:
    """Returns in how many frames each pitch class sounds, summed over voices, int [12]. Index 0 is C.

    A held note counts in each of its frames. pitch: MIDI numbers, int [frames, voices]. REST is silence.
    """
    return np.bincount(pitch[pitch != REST] % OCTAVE, minlength=OCTAVE)


def count_steps(pitch: np.ndarray) -> np.ndarray:
    """Returns how often voices move by each step, from -MAX_STEP to MAX_STEP, int [2 MAX_STEP + 1].

    pitch: int [frames, voices]. A step is between different pitches in consecutive frames. Steps across a rest do not count.
    """
    before, after = pitch[:-1], pitch[1:]
    step = (after - before)[(before != after) & (before != REST) & (after != REST)]
    return np.bincount(np.clip(step, -MAX_STEP, MAX_STEP) + MAX_STEP, minlength=2 * MAX_STEP + 1)


def count_parallels(pitch: np.ndarray) -> tuple[int, int]:
    """Returns (number of parallels, number of moments in which two voices move at once), over all pairs of voices.

    Parallels are fifths, octaves and unisons (modulo octaves) to which both voices move by the same step. pitch: MIDI
    numbers, int [frames, voices]. REST is silence.
    """
    before, after = pitch[:-1], pitch[1:]
    moves = (before != after) & (before != REST) & (after != REST)
    found = both = 0
    for a, b in combinations(range(pitch.shape[1]), 2):
        # Only two voices that move at the same time can be parallel.
        together = moves[:, a] & moves[:, b]
        apart = np.abs(after[:, a] - after[:, b]) % OCTAVE
        # Equal steps keep the interval.
        same = (after - before)[:, a] == (after - before)[:, b]
        found += int((together & same & np.isin(apart, (0, FIFTH))).sum())
        both += int(together.sum())
    return found, both


def doubled_leading(pitch: np.ndarray) -> np.ndarray:
    """Returns for each frame whether two or more voices have the tone a semitone below the tonic, bool [frames]."""
    leading = (find_tonic(pitch) - 1) % OCTAVE
    return ((pitch != REST) & (pitch % OCTAVE == leading)).sum(1) > 1


def find_tonic(pitch: np.ndarray) -> int:
    """Returns the tonic of a piece's key as a pitch class, from 0 (C) to 11.

    The key is the major or minor key whose profile correlates most with how often each pitch class sounds (Krumhansl 1990,
    chapter 4). pitch: MIDI numbers, int [frames, voices]. REST is silence.
    """
    tones = count_tones(pitch).astype(float)
    # Profile k is of the major key on pitch class k, and profile 12 + k of the minor key on k.
    profiles = [np.roll(profile, k) for profile in (MAJOR, MINOR) for k in range(OCTAVE)]
    # A correlation without the norm of the tones, which is the same for all profiles.
    centred = tones - tones.mean()
    fits = [centred @ (profile - profile.mean()) / np.linalg.norm(profile - profile.mean()) for profile in profiles]
    return int(np.argmax(fits)) % OCTAVE
