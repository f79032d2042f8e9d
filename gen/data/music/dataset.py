"""The data set of scores: its config, splits and baselines. Batches are functions of (seed, step, row)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from gen import core, errors
from gen.data import digest
from gen.data.cache import Arrays, load_or_make
from gen.data.examples import Examples
from gen.data.images.folder import FolderOptions
from gen.data.images.slices import Slices, positions, report_overlap, suggest
from gen.data.music import counting, describe, folder, midi, rolls
from gen.data.music.preprocess import preprocess
from gen.data.music.roll import AXES, STEPS_PER_QUARTER, pitches_of, vocabulary
from gen.data.music.sources import N_CANONS, Source, canons
from gen.data.music.windows import cut
from gen.data.order import permute
from gen.data.readers import SplitReader
from gen.errors import UserError

MAX_STEPS = 96
"""Upper bound on the frames of a quarter note. A MIDI file has at most 32,767 ticks in one."""


@dataclass(frozen=True)
class Music(core.Data):
    """A set of scores as windows of one length: "tokens" int32 [B, frames, voices], "counted" of the same shape, and "label" if any.

    The tokens are those of gen.data.music.roll. "counted" is 0 after the end of a piece, otherwise 1.
    """

    name: str = "canons"
    """canons: built-in canons made by rule; rolls:FILE, a JSON file of splits of pieces, each a list of frames of MIDI numbers, -1 for a
    rest; or midi:PATH, a folder of MIDI files. Its sub-folders are classes, or splits (train, val, test) with a sub-folder for each
    class."""
    voices: int = 4
    """Number of voices of a score. MIDI files may have fewer."""
    steps: int = STEPS_PER_QUARTER
    """Number of frames in a quarter note. MIDI files with notes between frames are refused."""
    frames: int = 512
    """Length of a window. Longer pieces are cut into consecutive windows, and each window is a score of its own."""
    excerpt: int | None = None
    """Number of frames of the random excerpt of each window that a training step reads. An excerpt begins at the beginning of a bar. None:
    steps read whole windows, which is slower if most pieces are shorter than a window."""
    transpose: int = 0
    """Transpose training pieces by a random number of semitones, at most this number up or down. No voice leaves the range that it has
    in the training pieces."""
    onsets: bool = False
    """Use different tokens for held notes and for the beginnings of notes. rolls:FILE does not contain this distinction."""
    train: str | None = None
    """Pieces for training: a slice such as train[:90%]. None, as for the next two: the split that the data have, or a part of the pieces
    that no other option chooses."""
    validation: str | None = None
    """Pieces for choosing a model."""
    test: str | None = None
    """Pieces for the reported numbers."""
    skip_bad: bool = False
    """Skip MIDI files that don't fit, and print how many."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How to look for changed files at later starts. sample: compare a random sample of their content. all: compare every byte."""

    def resolve(self) -> Music:
        """Returns the settings with slices for each of --data.train, ... that is None. Raises: UserError as `build`."""
        check(self)
        given = {split: value for split in Slices._fields if (value := getattr(self, split)) is not None}
        if len(given) == len(Slices._fields):
            return self
        slices = suggest(self._count())._asdict()
        return replace(self, **{split: value for split, value in slices.items() if split not in given})

    def _count(self) -> dict[str, list[int]]:
        if self.name == "canons":
            return {split: [n] for split, n in N_CANONS.items()}
        return folder.count(self.name) if self.name.startswith(folder.PREFIX) else rolls.count(self.name)

    def build(self) -> core.Dataset:
        """Opens the scores. Raises: UserError for a wrong option or score."""
        config = self.resolve()
        source = open_source(config)
        chosen = {name: positions(name, value, source.splits, source.name) for name, value in source.options.items()}
        report_overlap(self.name, chosen)
        windows = cut(source, self.frames, chosen["train"], self.transpose)
        # Splits are made of whole pieces, so that no model is tested on another part of a piece that it was trained on.
        splits = {name: windows.expand(pieces) for name, pieces in chosen.items()}
        if self.name != "canons":
            describe.print_lines(source, windows, {name: len(pieces) for name, pieces in chosen.items()})
        examples = Examples(
            sizes={split: len(found) for split, found in splits.items()},
            read=SplitReader(splits, windows.read, labels=source.classes is not None).read,
            shuffle=permute(len(splits["train"])),
            batch_size=self.batch_size,
        )
        shape = (self.frames, self.voices)
        spec = {"tokens": core.Feature(shape, "int32", vocab=vocabulary(self.onsets), axes=AXES)}
        if source.classes is not None:
            spec["label"] = core.Feature((), "int32", classes=len(source.classes), names=source.classes)
        content = digest.sha256(source.content, f"{shape} {self.transpose} {self.onsets}", *splits.values())
        pieces = {split: [source.pieces[i] for i in found.tolist()] for split, found in chosen.items()}
        return core.Dataset(
            spec=spec,
            sizes=examples.sizes,
            digest=content,
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(preprocess, excerpt=min(self.excerpt or self.frames, self.frames)),
            # Raster order: the voices of a frame, then the next frame. A long piece has several windows, which are independent.
            protocol={"frames": self.frames, "voices": self.voices, "order": "voices of a frame, then time"},
            baselines=partial(baselines, pieces, self.frames, vocabulary(self.onsets), content),
        )


def check(config: Music) -> None:
    """Checks the options that do not depend on the scores. Raises: UserError if one is wrong."""
    counts = {"batch-size": config.batch_size, "steps": config.steps, "frames": config.frames, "voices": config.voices}
    errors.check_positive(**{f"--data.{name}": value for name, value in counts.items()})
    errors.check_not_negative(**{"--data.transpose": config.transpose})
    if config.excerpt is not None:
        errors.check_positive(**{"--data.excerpt": config.excerpt})
    if config.voices > midi.MAX_VOICES:
        raise UserError(f"--data.voices is {config.voices}; a MIDI file has at most {midi.MAX_VOICES}")
    if config.frames > midi.MAX_FRAMES or config.steps > MAX_STEPS:
        raise UserError(
            f"--data.frames is {config.frames:,} and --data.steps {config.steps:,}; they can be at most {midi.MAX_FRAMES:,} and {MAX_STEPS}"
        )
    kinds = tuple(prefix for prefix in (rolls.PREFIX, folder.PREFIX) if config.name.startswith(prefix))
    if config.name in kinds or not (kinds or config.name == "canons"):
        raise UserError(
            f"--data.name {config.name!r} is none of canons, rolls:FILE, midi:PATH; the fix: --data.name midi:PATH"
        )
    if config.onsets and kinds == (rolls.PREFIX,):
        raise UserError("rolls don't tell held notes from repeated ones; leave --data.onsets out, or use midi:PATH")


def open_source(config: Music) -> Source:
    """Opens the scores that a resolved config names. Raises: UserError if they cannot be used."""
    slices = {name: getattr(config, name) for name in Slices._fields}
    if config.name == "canons":
        return canons(config.voices, config.onsets, slices)
    if config.name.startswith(rolls.PREFIX):
        return rolls.open_rolls(config.name, config.voices, slices)
    options = FolderOptions(config.name, slices, skip_bad=config.skip_bad, whole=config.check == "all")
    source = folder.open_folder(options, config.steps, config.voices)
    return source if config.onsets else source._replace(pieces=[pitches_of(piece) for piece in source.pieces])


def baselines(pieces: Mapping[str, Sequence[np.ndarray]], frames: int, vocab: int, key: str) -> dict[str, float]:
    """Returns {"counting_nats_per_token": score of `counting.count_nats` on the test split}, after the training split.

    pieces: {split: rolls}, which are cut into windows as the data are. key: of the cache, for counting takes a while.
    """

    def make() -> Arrays:
        train, test = (cut_piece(pieces[split], frames) for split in ("train", "test"))
        return {"nats": np.array(counting.count_nats(train, test, vocab).mean())}

    # Raise the number in the key if the baseline changes.
    nats = load_or_make(digest.sha256("counting 2", key), make, "counts of notes")["nats"]
    return {"counting_nats_per_token": float(nats)}


def cut_piece(pieces: Sequence[np.ndarray], frames: int) -> list[np.ndarray]:
    """Returns the windows of rolls, without padding."""
    return [piece[start : start + frames] for piece in pieces for start in range(0, len(piece), frames)]
