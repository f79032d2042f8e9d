"""The medium of scores: MIDI files, a sheet of piano rolls, sound of a small synthesizer, and a page with players."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import tyro
from PIL import Image

from gen.core import Given, Medium, Request, RunView, Shown, Spec
from gen.data.music import midi
from gen.data.music.roll import AXES, HELD, REST, STEPS_PER_QUARTER, hold, pitches_of, vocabulary
from gen.errors import UserError
from gen.families.labels import class_names
from gen.files import read_bytes
from gen.media.arrays import FILES, name_samples
from gen.media.audio import encode_wav, make_page
from gen.media.gap import Gap, parse_gap

MAX_DRAWN = 16
"""Maximum number of samples on the sheet."""
FRAME, PITCH, BORDER = 2, 3, 6
"""Sizes on the sheet, in pixels: width of a frame, height of a semitone, and space between two samples. A frame is a
time step."""
COLORS = ((196, 50, 40), (40, 120, 190), (60, 150, 60), (120, 70, 150), (200, 140, 20), (90, 90, 90))
"""Color of each voice: red, green and blue. More voices use the same colors again."""
BAR = 4
"""Number of quarter notes between two vertical lines of the sheet."""
RATE = 11_025
"""Samples per second of the rendered sound. Half of it is above the highest note of a piano, 4,186 Hz. Higher rates
make larger files."""
HARMONICS = np.array([1, 0.5, 0.3, 0.15, 0.08])
"""Relative amplitudes of a tone and its overtones."""
ATTACK, RELEASE, DECAY = 0.01, 0.05, 1.2
"""In seconds: duration of the fade-in and the fade-out of a note, and time in which its amplitude falls to 1 / e."""
A4, A4_HERTZ = 69, 440.0
"""The MIDI number of the tuning tone, and its frequency in Hz."""
MAX_BYTES = 2**20
"""Largest size of the file of --midi, in bytes. The manifest of the samples stores its content."""


def parse(gap: str) -> Gap:
    """Returns the part of a score that --gap names as FROM:TO, in quarter notes. Raises: UserError, as `parse_gap`."""
    return parse_gap(gap, "quarter notes", "8:16")


@dataclass(frozen=True)
class ScoreOptions:
    """The score to continue, harmonize or fill in, and the part of it to write."""

    midi: Path | None = None
    """A MIDI file to continue, harmonize or fill in, see --mode. The samples keep a part of it."""
    write: tuple[int, ...] = ()
    """Numbers of the voices to write, counted from 1. The other voices are kept. Default: all voices, or with --mode
    harmonize all but the first."""
    gap: str | None = None
    """For --mode inpaint: the part to write, in quarter notes: FROM:TO, such as 8:16. 8: is the part from 8 to the end.
    The rest is kept."""
    content: tyro.conf.Suppress[str] = ""
    """Content of the file of --midi in base64, for the manifest of the samples."""

    def __post_init__(self):
        if self.gap is not None:
            parse(self.gap)


@dataclass(frozen=True)
class Scores(Medium):
    """Scores of music as tokens, int32 [n, frames, voices]. Frames are time steps. See gen.data.music.roll."""

    features: ClassVar[Mapping[str, int]] = {"tokens": 2}
    options: ClassVar[type] = ScoreOptions

    def read_options(self, options: ScoreOptions) -> ScoreOptions:
        """Returns the options with the content of --midi.

        Raises: UserError if it can't be read, or mido is not installed.
        """
        # Samples are written as MIDI files. If the package is missing, this should fail before they are generated.
        midi.load_mido()
        if options.midi is None:
            return options
        try:
            content = read_bytes(options.midi, MAX_BYTES)
        except FileNotFoundError:
            raise UserError(f"--midi {options.midi}: No such file or directory") from None
        except OSError as error:
            raise UserError(f"--midi {options.midi}: {error.strerror}") from None
        # Empty content means "no file", so an empty file would have no effect.
        if not content:
            raise UserError(f"--midi {options.midi} is empty: it has no bytes")
        return replace(options, midi=None, content=base64.b64encode(content).decode())

    def complete(self, options: ScoreOptions, request: Request, run: RunView) -> ScoreOptions:
        """Returns the options. With --mode harmonize and without --write, `write` becomes all voices but the first."""
        if getattr(request, "mode", "generate") != "harmonize" or options.write:
            return options
        return replace(options, write=tuple(range(2, run.spec["tokens"].shape[1] + 1)))

    def check(self, options: ScoreOptions, request: Request, run: RunView) -> None:
        """Raises: UserError if --midi, --write or --gap do not fit the request's mode, or the voices of the model."""
        mode = getattr(request, "mode", "generate")
        voices = run.spec["tokens"].shape[1]
        if mode == "generate":
            if options.content or options.write or options.gap:
                raise UserError(
                    f"--midi, --write and --gap need --mode {', '.join(request.scores) or 'of another model'}"
                )
            return
        if not options.content:
            raise UserError(f"mode {mode} needs a score: give --midi FILE")
        if wrong := [voice for voice in options.write if not 1 <= voice <= voices]:
            raise UserError(f"--write {wrong[0]}: the model has the voices 1 to {voices}")
        if mode == "continue" and (options.write or options.gap):
            raise UserError(
                "mode continue keeps the whole score; leave --write and --gap out, or choose --mode inpaint"
            )
        if mode == "harmonize" and options.gap:
            raise UserError("mode harmonize writes whole voices; leave --gap out, or choose --mode inpaint")
        if mode == "harmonize" and not options.write:
            raise UserError("the model has one voice, so a melody has no other ones; choose another --mode")
        if mode == "inpaint" and not (options.write or options.gap):
            raise UserError("mode inpaint needs the part to write: give --write VOICES, --gap FROM:TO, or both")

    def give(self, options: ScoreOptions, run: RunView) -> Given:
        """Returns the given score as "tokens", int32 [1, frames, voices], and "known", bool, whether a token is kept.

        The result also has the other features of validation examples, such as captions, which a model may need. Without
        a score, it is the validation examples.

        Raises: UserError if the file has notes off the grid of the run, is too long, or if nothing is left to write.
        """
        reference = run.reference()
        if not options.content:
            return Given(reference)
        roll, shape = read_score(options, run), run.spec["tokens"].shape
        tokens = np.full((1, *shape), REST, np.int32)
        tokens[0, : len(roll)] = roll
        known = find_known(options, len(roll), shape, _steps(run))
        return Given({**reference, "tokens": tokens, "known": known[None]})

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: ScoreOptions | None = None) -> Shown:
        """Returns samples.png, a sheet of piano rolls, and samples.wav, the first sample as sound.

        If `options` is not None, also returns each sample as a .mid and a .wav file in the folder samples, and
        samples.html, a page that plays them. If voices or a gap of a given score were written, samples are cut to its
        length.
        """
        made, steps = np.asarray(samples["samples"]), _steps(run)
        rolls = made.reshape(-1, *run.spec["tokens"].shape)
        if options is not None and options.content and (options.write or options.gap):
            rolls = rolls[:, : len(read_score(options, run))]
        # Without HELD tokens, equal consecutive tokens are one note.
        if not _has_held_tokens(run):
            rolls = np.stack([hold(roll) for roll in rolls])
        files = {
            "samples.png": draw_sheet(rolls[:MAX_DRAWN], steps),
            "samples.wav": encode_wav(render(rolls[0], steps), RATE),
        }
        if options is None:
            return Shown(files)
        labels, names = samples.get("labels"), class_names(run.spec)
        stems = name_samples(len(rolls), labels, names)
        for stem, roll in zip(stems, rolls, strict=True):
            files[f"{FILES}/{stem}.mid"] = midi.encode(roll, steps)
            files[f"{FILES}/{stem}.wav"] = encode_wav(render(roll, steps), RATE)
        files["samples.html"] = make_page(stems, 4, "piano rolls").encode()
        arrays = {"label_names": np.array(names)} if names and labels is not None else {}
        return Shown(files, arrays)


SCORES = Scores()


def is_score(spec: Spec) -> bool:
    """Returns whether the tokens of the data are scores: rolls of gen.data.music."""
    tokens = spec.get("tokens")
    # The vocabulary is compared too, because other data may have the same axes.
    return tokens is not None and tokens.axes == AXES and tokens.vocab in (vocabulary(False), vocabulary(True))


def _steps(run: RunView) -> int:
    """Returns the number of frames in a quarter note of the run's data."""
    return getattr(run.data, "steps", STEPS_PER_QUARTER)


def _has_held_tokens(run: RunView) -> bool:
    """Returns whether the run's data have HELD tokens, which distinguish held notes from repeated notes."""
    return (run.spec["tokens"].vocab or 0) > HELD


def read_score(options: ScoreOptions, run: RunView) -> np.ndarray:
    """Returns the given score as a roll of the run's data, int16 [frames, voices], with frames up to the score's end.

    Raises: UserError if the file can't be read, or does not fit the grid, the voices or the length of the run.
    """
    frames, voices = run.spec["tokens"].shape
    try:
        roll = midi.decode(base64.b64decode(options.content), _steps(run), voices)
    except ValueError as error:
        raise UserError(f"--midi: the file {error}") from None
    if len(roll) > frames:
        raise UserError(f"--midi: the file has {len(roll):,} frames, and the model's windows have {frames:,}; cut it")
    return roll if _has_held_tokens(run) else pitches_of(roll)


def find_known(options: ScoreOptions, n: int, shape: tuple[int, ...], steps: int) -> np.ndarray:
    """Returns whether each token of a window is kept, bool [frames, voices]. A model writes the other tokens.

    With --write or --gap, these voices or this part of the score are written. Otherwise all frames after the score are.

    n: frames of the given score. shape: (frames, voices) of the model's window. steps: frames of a quarter note.

    Raises: UserError if nothing is left to write.
    """
    frame, voice = np.arange(shape[0])[:, None], np.arange(1, shape[1] + 1)[None]
    if options.write or options.gap:
        # Frames after the score count as known rests, and `show` cuts them off.
        written = (frame < n) & np.isin(voice, options.write or voice)
        if options.gap:
            start, end = (quarters * steps for quarters in parse(options.gap))
            written &= (frame >= start) & (frame < end)
    else:
        written = np.broadcast_to(frame >= n, shape)
    if not written.any():
        raise UserError("--midi: nothing is left to write; give another --gap, or a shorter file")
    return ~written


def draw_sheet(rolls: np.ndarray, steps: int) -> bytes:
    """Returns a PNG of piano rolls, one below the other, all with the same range of pitches.

    rolls: tokens, int [n, frames, voices]. steps: number of frames per quarter note.
    """
    # All samples have the same range of pitches, so that they can be compared.
    pitch = pitches_of(rolls)
    sounding = pitch[pitch < REST]
    low, high = (int(sounding.min()), int(sounding.max())) if sounding.size else (60, 72)
    strips = [draw_roll(roll, low, high, steps) for roll in rolls]
    content = io.BytesIO()
    Image.fromarray(np.concatenate(strips)).save(content, format="PNG")
    return content.getvalue()


def draw_roll(roll: np.ndarray, low: int, high: int, steps: int) -> np.ndarray:
    """Draws a roll, int [frames, voices], as an image uint8 [height, width, 3]. Time goes to the right.

    low, high: MIDI numbers of the lowest and the highest pitch that is drawn. steps: frames of a quarter note.
    """
    height, width = (high - low + 1) * PITCH, len(roll) * FRAME
    picture = np.full((height + BORDER, width, 3), 255, np.uint8)
    picture[:height, :: BAR * steps * FRAME] = 225
    # The first voice is drawn last, since it is the melody.
    for voice in reversed(range(roll.shape[1])):
        for note in midi.notes_of(roll[:, voice]):
            top = (high - note.pitch) * PITCH
            # A note ends a pixel early, so that repeated notes do not look like one long note.
            picture[top : top + PITCH, note.start * FRAME : note.end * FRAME - 1] = COLORS[voice % len(COLORS)]
    return picture


def render(roll: np.ndarray, steps: int) -> np.ndarray:
    """Returns a roll, int [frames, voices], as sound, float64 [samples, 1] in [-1, 1], RATE samples per second.

    Each note is a sum of decaying sines. steps: frames of a quarter note.
    """
    # Duration of a frame, in seconds.
    frame = midi.TEMPO / 1e6 / steps
    # The last note fades out after the last frame.
    x = np.zeros(round((len(roll) * frame + RELEASE) * RATE) + 1)
    for column in roll.T:
        for note in midi.notes_of(column):
            start, tone = round(note.start * frame * RATE), play(note.pitch, (note.end - note.start) * frame)
            x[start : start + len(tone)] += tone[: len(x) - start]
    # Chords may exceed 1, so loud samples are scaled down. Quiet samples are not scaled up.
    return (x / max(np.abs(x).max(), 1.0))[:, None]


def play(pitch: int, seconds: float) -> np.ndarray:
    """Returns the sound of a note, float64 [samples]: `seconds`, and RELEASE seconds more to fade out.

    pitch: MIDI number.
    """
    t = np.arange(round((seconds + RELEASE) * RATE)) / RATE
    hertz = A4_HERTZ * 2 ** ((pitch - A4) / 12) * np.arange(1, len(HARMONICS) + 1)
    # Overtones above half of the rate are left out, because they would sound as other tones (aliasing).
    loud = 0.2 * HARMONICS * (hertz < RATE / 2)
    envelope = np.minimum(t / ATTACK, 1) * np.exp(-t / DECAY) * np.clip((seconds + RELEASE - t) / RELEASE, 0, 1)
    return envelope * (loud @ np.sin(2 * np.pi * hertz[:, None] * t))
