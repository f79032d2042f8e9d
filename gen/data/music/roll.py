"""Rolls: scores on a grid of time steps and voices, with one token for each step and voice.

A token below REST is the MIDI number of a note that begins. REST is silence. A token HELD + n continues the note with the MIDI number n
from the step before. Rolls without HELD tokens do not distinguish held notes from repeated notes.
"""

from __future__ import annotations

import numpy as np

from gen.errors import UserError

AXES = ("time", "voice")
"""Names of the axes of a roll."""
PITCHES = 128
"""Number of MIDI notes. 60 is the middle C, and each number is a semitone."""
REST = PITCHES
"""The token of silence."""
HELD = REST + 1
"""The token HELD + n continues the note with the MIDI number n."""
STEPS_PER_QUARTER = 4
"""Default number of time steps in a quarter note: each step is a sixteenth."""


def vocabulary(onsets: bool) -> int:
    """Returns the size of the vocabulary of rolls. onsets: whether rolls have HELD tokens, which continue a note."""
    return HELD + PITCHES if onsets else HELD


def pitches_of(roll: np.ndarray) -> np.ndarray:
    """Returns the MIDI number that sounds at each token of a roll, int [...], or REST for silence."""
    return np.where(roll >= HELD, roll - HELD, roll)


def hold(roll: np.ndarray) -> np.ndarray:
    """Returns a roll, int [frames, voices], with HELD tokens in place of repeated notes.

    A run of equal notes becomes one note, which begins in the first frame and is held in the others.
    roll: without HELD tokens.
    """
    # The first frame holds nothing.
    held = np.zeros(roll.shape, bool)
    held[1:] = (roll[1:] == roll[:-1]) & (roll[1:] < REST)
    return np.where(held, roll + HELD, roll)


def check_roll(roll: np.ndarray) -> None:
    """Raises: ValueError with the reason if a HELD token does not continue a note, or if there are no notes."""
    pitch, held = pitches_of(roll), roll >= HELD
    # Silence before the first frame.
    before = np.concatenate([np.full_like(pitch[:1], REST), pitch[:-1]])
    if (wrong := np.argwhere(held & (pitch != before))).size:
        frame, voice = wrong[0].tolist()
        raise ValueError(f"holds a note in frame {frame}, voice {voice}, that does not sound in the frame before")
    if (pitch == REST).all():
        raise ValueError("has no notes")


def span(rolls: list[np.ndarray]) -> np.ndarray:
    """Returns the lowest and the highest pitch of each voice in rolls [frames, voices], int64 [2, voices].

    A voice without notes has the lowest pitch PITCHES and the highest pitch -1.
    """
    pitch = np.concatenate([pitches_of(roll) for roll in rolls])
    # Silence gets values beyond all pitches, so that it changes neither the minimum nor the maximum.
    silent = pitch == REST
    return np.stack([np.where(silent, PITCHES, pitch).min(0), np.where(silent, -1, pitch).max(0)]).astype(np.int64)


def shift_limits(roll: np.ndarray, allowed: np.ndarray, semitones: int) -> tuple[int, int]:
    """Returns the lowest and the highest transposition of a roll, in semitones, that keeps each voice inside of a range.

    allowed: range of each voice, int [2, voices], as from `span`. semitones: largest size of a transposition. The limits always
    include 0, even if the roll is outside of the range.
    """
    low, high = span([roll])
    # A silent voice can be moved anywhere.
    sounding = high >= 0
    down = (allowed[0] - low)[sounding].max(initial=-semitones)
    up = (allowed[1] - high)[sounding].min(initial=semitones)
    # 0 is always allowed: a held-out piece may be outside of the range.
    return min(0, int(down)), max(0, int(up))


def transpose(roll: np.ndarray, semitones: int) -> np.ndarray:
    """Returns a roll with each note moved by a number of semitones. Raises: UserError if a note leaves the range of MIDI."""
    pitch = pitches_of(roll)
    sounding = pitch < REST
    moved = pitch[sounding] + semitones
    if moved.size and not 0 <= moved.min() <= moved.max() < PITCHES:
        raise UserError(f"a transposition by {semitones} semitones leaves the MIDI notes 0 to {PITCHES - 1}")
    return np.where(sounding, roll + semitones, roll)
