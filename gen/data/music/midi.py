"""Reads and writes MIDI files as rolls, by the optional package mido."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gen.data.music.roll import HELD, REST, pitches_of
from gen.errors import UserError

ENDINGS = {".mid", ".midi", ".smf"}
MAX_FRAMES = 2**20
"""Largest number of frames of a file. A damaged file may have events at any time."""
TICKS_PER_STEP = 120
"""Number of ticks in a frame, in files that gen writes."""
VELOCITY = 80
"""Loudness of all notes, from 0 to 127, in files that gen writes."""
TEMPO = 600_000
"""Microseconds in a quarter note, in files that gen writes: 100 quarter notes per minute."""
DRUMS = 9
"""The channel whose notes are drums. No voice is written to it."""
VOICE = re.compile(r"voice (?P<number>[1-9][0-9]?)")
"""Pattern of the track names in files that gen writes: they hold the number of the voice, from 1. In other files, voices are numbered in
the order of tracks and channels."""
MAX_VOICES = 15
"""A file has 16 channels, and one of them has drums."""


class Note(NamedTuple):
    """A note. start and end are in ticks of a file, or in frames of a roll. pitch is a MIDI number."""

    start: int
    end: int
    pitch: int


def load_mido() -> ModuleType:
    """Returns the package mido. Raises: UserError if it is not installed."""
    try:
        import mido
    except ImportError as error:
        raise UserError(f"MIDI files need mido ({error}): pip install 'gen[music]'") from None
    return mido


def decode(content: bytes, steps: int, voices: int) -> np.ndarray:
    """Converts a MIDI file to a roll with HELD tokens, int16 [frames, voices], as gen.data.music.roll defines it.

    The roll ends where the last note ends. content: bytes of the file. steps: frames of a quarter note. voices: voices
    of the roll. If the file has fewer, the last ones are silent. Tempo, loudness and instruments are left out.

    Raises: ValueError with the reason if the file can't be read, has no notes, has more voices, or is too long. Also if
    a note does not begin and end on the grid of frames, or if notes of one voice overlap.
    """
    file = _parse(content)
    # The notes are checked before the roll is made, because a wrong time could require any amount of memory.
    parts = _find_voices(file)
    if not parts:
        raise ValueError("has no notes")
    if (found := max(parts) + 1) > voices:
        raise ValueError(
            f"has {found} voices (tracks and channels with notes), more than {voices}: remove some, or train with "
            f"--data.voices {found}"
        )
    beat = file.ticks_per_beat
    frames = max(note.end for part in parts.values() for note in part) * steps // beat
    if frames > MAX_FRAMES:
        raise ValueError(f"lasts {frames:,} frames, and at most {MAX_FRAMES:,} can be read: cut it")
    roll = np.full((frames, voices), REST, np.int16)
    for voice, part in parts.items():
        _fill(roll[:, voice], part, steps, beat, voice + 1)
    return roll


def _parse(content: bytes) -> Any:
    """Returns the parsed file, a mido.MidiFile. Raises: ValueError with the reason if it is not a score."""
    mido = load_mido()
    if not content:
        raise ValueError("is empty: it has no bytes")
    try:
        file = mido.MidiFile(file=io.BytesIO(content))
    except Exception as error:
        # Broken files make the parser raise several kinds of errors, some without a text.
        raise ValueError(f"can't be read as MIDI ({str(error) or type(error).__name__})") from error
    if file.type == 2:
        raise ValueError("has MIDI type 2, which holds independent patterns and not a score: save it as type 1")
    # In files with a time code, ticks are parts of a second.
    if file.ticks_per_beat <= 0:
        raise ValueError("counts time in seconds and not in quarter notes, so it has no grid")
    return file


def _find_voices(file: Any) -> dict[int, list[Note]]:
    """Returns {number of the voice from 0: its notes}. Each channel of each track that has notes is a voice."""
    named: dict[int, list[Note]] = {}
    found: list[list[Note]] = []
    for track in file.tracks:
        channels = _read_notes(track)
        # Files that gen writes name their tracks, so that a silent voice is not lost.
        name = VOICE.fullmatch(next((message.name for message in track if message.type == "track_name"), ""))
        if name and len(channels) == 1:
            named[int(name["number"]) - 1] = next(iter(channels.values()))
        found += [channels[channel] for channel in sorted(channels)]
    # The names are used only if all voices have different names.
    return named if len(named) == len(found) else dict(enumerate(found))


def _read_notes(track: Any) -> dict[int, list[Note]]:
    """Returns {channel: notes, in ticks} of a track of a mido.MidiFile. Raises: ValueError if a note does not end."""
    notes: dict[int, list[Note]] = defaultdict(list)
    sounding: dict[tuple[int, int], list[int]] = defaultdict(list)
    tick = 0
    for message in track:
        tick += message.time
        # Other messages, such as pedals, programs and lyrics, are skipped.
        if message.type not in ("note_on", "note_off"):
            continue
        begun = sounding[message.channel, message.note]
        if message.type == "note_on" and message.velocity:
            begun.append(tick)
        elif begun:
            # Ends the oldest note of this pitch: when a note is repeated, it may begin before the previous one has ended.
            notes[message.channel].append(Note(begun.pop(0), tick, message.note))
    if any(sounding.values()):
        raise ValueError("has a note that does not end")
    return notes


def _fill(column: np.ndarray, notes: list[Note], steps: int, beat: int, voice: int) -> None:
    """Writes the notes of a voice, in ticks, into its column of a roll, int16 [frames].

    steps, beat: frames and ticks of a quarter note. voice: number of the voice, for errors. Raises: ValueError if a
    note is not on the grid of frames, or if notes overlap.
    """
    # Notes are sorted by their beginnings, so that comparing neighbours finds all overlaps.
    end = 0
    for note in sorted(notes):
        # Integers, because rounding errors of floats would move some notes off the grid.
        (start, early), (stop, late) = divmod(note.start * steps, beat), divmod(note.end * steps, beat)
        if early or late or start == stop:
            edges = " to ".join(f"{tick * steps / beat:g}" for tick in note[:2])
            raise ValueError(f"is off the grid: voice {voice} has a note from {edges} frames")
        if start < end:
            raise ValueError(f"has notes that sound at once in voice {voice}, in frame {start}")
        end = stop
        column[start:end] = HELD + note.pitch
        column[start] = note.pitch


def encode(roll: np.ndarray, steps: int) -> bytes:
    """Returns the content of a MIDI file with a track for each voice of a roll, int [frames, voices].

    It is the inverse of `decode`, except that `decode` drops rests at the end.

    steps: frames of a quarter note. A HELD token that does not continue a note begins a note.
    """
    mido = load_mido()
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_STEP * steps)
    for voice, column in enumerate(roll.T):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=f"voice {voice + 1}")])
        if voice == 0:
            track.append(mido.MetaMessage("set_tempo", tempo=TEMPO))
        # Each voice has a separate channel, so that a player can give it an instrument.
        channel, now = voice + (voice >= DRUMS), 0
        for note in notes_of(column):
            start, end = (TICKS_PER_STEP * tick for tick in note[:2])
            # MIDI counts the time of an event from the event before it.
            track.append(mido.Message("note_on", channel=channel, note=note.pitch, velocity=VELOCITY, time=start - now))
            track.append(mido.Message("note_off", channel=channel, note=note.pitch, velocity=0, time=end - start))
            now = end
        file.tracks.append(track)
    content = io.BytesIO()
    file.save(file=content)
    return content.getvalue()


def notes_of(column: np.ndarray) -> Iterator[Note]:
    """Yields the notes of one voice of a roll, int [frames]. Their starts and ends count frames.

    A HELD token that does not continue a note begins a note.
    """
    pitch = pitches_of(column)
    begins = (column < HELD) | (np.concatenate([[REST], pitch[:-1]]) != pitch)
    starts = np.append(np.flatnonzero(begins), len(column))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        if pitch[start] != REST:
            yield Note(start, end, int(pitch[start]))
