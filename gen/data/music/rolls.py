"""Reads scores from a JSON file {split: [piece, ...]}. A piece is a list of frames, and a frame has a MIDI number for each voice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gen.data.digest import sha256
from gen.data.images.slices import KINDS, kind_of
from gen.data.music.roll import PITCHES, REST, check_roll
from gen.data.music.sources import Source
from gen.errors import UserError
from gen.files import expand_user, read_json

PREFIX = "rolls:"
SILENCE = -1
"""Number that means a rest in the file."""


def find(name: str) -> Path:
    """Returns the path FILE of "rolls:FILE". Raises: UserError if the file does not exist."""
    path = expand_user(name.removeprefix(PREFIX))
    if not path.is_file():
        raise UserError(f"--data.name {name!r}: there is no such file")
    return path


def read(name: str) -> dict[str, list[Any]]:
    """Returns {split: its pieces, as parsed from JSON}. The order of the splits is train, validation, test, others.

    Raises: UserError if the file can't be read, or is not an object of lists.
    """
    path = find(name)
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(x, list) and x for x in content.values()):
        raise UserError(f'{path} has no splits of pieces; give it {{"train": [[[60, 55, 52, 48], ...], ...], ...}}')
    kinds = (*KINDS, None)
    return {split: content[split] for split in sorted(content, key=lambda split: (kinds.index(kind_of(split)), split))}


def count(name: str) -> dict[str, list[int]]:
    """Returns {split: [number of pieces]} of "rolls:FILE", to suggest slices if no option names a split.

    It is a list, because a folder may also have classes, and then has a number for each. Raises: UserError if the file
    can't be read.
    """
    return {split: [len(pieces)] for split, pieces in read(name).items()}


def open_rolls(name: str, voices: int, slices: Mapping[str, str]) -> Source:
    """Opens the pieces of "rolls:FILE". slices: {"train", "validation" or "test": slice}.

    Raises: UserError if the file can't be read, or if a piece is wrong, such as one with another number of voices.
    """
    splits = read(name)
    pieces = [
        _piece(x, voices, f"{name}: piece {i} of {split}")
        for split, found in splits.items()
        for i, x in enumerate(found)
    ]
    return Source(
        name=name,
        splits={split: [len(found)] for split, found in splits.items()},
        pieces=pieces,
        labels=np.zeros(len(pieces), np.int32),
        classes=None,
        options=slices,
        content=sha256(*pieces),
    )


def _piece(frames: object, voices: int, what: str) -> np.ndarray:
    """Converts a piece from JSON to a roll, int16 [frames, voices]. what: name of the piece, for errors. Raises: UserError if it is wrong."""
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{what} has no frames; give it a list of the notes of each frame")
    for i, frame in enumerate(frames):
        if not isinstance(frame, list) or len(frame) != voices:
            found = len(frame) if isinstance(frame, list) else "no list of"
            raise UserError(
                f"{what}: frame {i} has {found} notes, and the data have {voices} voices; the fix: --data.voices"
            )
        # Rests may also be null. A number such as 60.0 is a note, but 60.5 is an error.
        wrong = [x for x in frame if x is not None and (isinstance(x, bool) or x not in range(SILENCE, PITCHES))]
        if wrong:
            raise UserError(
                f"{what}: frame {i} has {wrong[0]!r}; notes are MIDI numbers from 0 to {PITCHES - 1}, or {SILENCE} for a rest"
            )
    notes = np.array([[SILENCE if x is None else int(x) for x in frame] for frame in frames])
    roll = np.where(notes == SILENCE, REST, notes).astype(np.int16)
    try:
        check_roll(roll)
    except ValueError as error:
        raise UserError(f"{what} {error}; remove it") from None
    return roll
