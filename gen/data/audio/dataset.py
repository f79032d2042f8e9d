"""The config of sound data sets, and how it opens the recordings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from gen import core, errors, memory
from gen.data import digest
from gen.data.audio import describe, folder, naming
from gen.data.audio.augment import Augmentation
from gen.data.audio.preprocess import preprocess
from gen.data.audio.sources import N_TONES, tones
from gen.data.audio.windows import Long, Windows, cut
from gen.data.examples import Examples
from gen.data.images.folder import FolderOptions
from gen.data.images.slices import Slices, fill_in, positions, report_overlap
from gen.data.order import permute, permute_by_grain
from gen.data.readers import Reader, SplitReader, hold
from gen.errors import UserError

PREFIX = "audio:"


@dataclass(frozen=True)
class Audio(core.Data):
    """A set of recordings, cut into windows of one length.

    Batches have "audio" float32 [B, samples, channels] in [-1, 1) and, if there are classes, "label" int32 [B].
    """

    name: str = "tones"
    """tones: built-in tones and chords; or audio:PATH, a folder of WAV, FLAC, OGG or MP3 files. Its sub-folders are classes, or splits
    (train, val, test) with a sub-folder for each class."""
    rate: int = 8000
    """Samples per second. Recordings with another rate are resampled."""
    seconds: float = 1.0
    """Length of a window in seconds. Shorter recordings are filled up with silence."""
    channels: Literal[1, 2] = 1
    """Mono (1) or stereo (2)."""
    long: Long = "windows"
    """How recordings that are longer than a window are used. windows: cut into consecutive windows; a rest of less than
    half a window is left out. start: only the first window is used, which suits spoken words with a label."""
    pattern: str | None = None
    """Pattern of the file names, such as {label}_{speaker}_*.wav. {label} is the class, and other fields can choose splits. A pattern
    with a slash is compared with the whole path below the folder."""
    augment: Augmentation = Augmentation()
    """Random changes of the training windows. The default changes nothing."""
    train: str | None = None
    """Recordings for training: a slice such as train[:90%], or values of a field of `pattern`, such as "speaker=ann,bob". None: the
    folder's split train if there is one, otherwise a part of the recordings."""
    validation: str | None = None
    """Recordings for choosing a model, written like `train`. None: the folder's split validation, or a part of the recordings."""
    test: str | None = None
    """Recordings for the reported scores, written like `train`. None: the folder's split test, or a part of the recordings."""
    skip_bad: bool = False
    """Skip recordings that cannot be read, and print how many there are. Otherwise such a recording is an error."""
    in_memory: int = 2**31
    """Hold the data in memory if the decoded windows have at most this number of bytes. Larger data are decoded when needed, a whole
    file at a time, and are shuffled in a different order."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How each later start looks for changed files. sample: it compares a random sample of their content. all: it compares every byte."""

    @property
    def samples(self) -> int:
        """Number of samples of a window, for each channel."""
        return round(self.rate * self.seconds)

    def resolve(self) -> Audio:
        """Returns the config with slices in place of None for train, validation and test.

        Raises: UserError if an option is wrong, or if there are no recordings.
        """
        check(self)
        given = {split: getattr(self, split) for split in Slices._fields}
        if None not in given.values():
            return self
        return replace(self, **fill_in(given, self._count(given), self.name))

    def _count(self, given: dict[str, str | None]) -> dict[str, list[int]]:
        if self.name == "tones":
            return {split: [n] for split, n in N_TONES.items()}
        options = {split: value for split, value in given.items() if value is not None}
        return folder.count_files(self.name, options, self.pattern)

    def build(self) -> core.Dataset:
        """Returns the data set. Decodes all windows now if they fit into `in_memory`; otherwise when they are needed.

        Raises: UserError for a wrong option or recording.
        """
        config = self.resolve()
        slices = {name: getattr(config, name) for name in Slices._fields}
        windows = open_windows(self, slices)
        source = windows.source
        chosen = {name: positions(name, value, source.splits, source.name) for name, value in source.options.items()}
        report_overlap(self.name, chosen)
        # Splits are made of whole recordings, so that no model is tested on another part of a recording that it was trained on.
        splits = {name: windows.expand(recordings) for name, recordings in chosen.items()}
        reader = open_reader(self, windows, splits)
        examples = Examples(
            sizes={split: len(positions) for split, positions in splits.items()},
            read=SplitReader(splits, reader.read, labels=source.classes is not None).read,
            shuffle=reader.shuffle,
            batch_size=self.batch_size,
        )
        spec = {"audio": core.Feature((self.samples, self.channels), sample_rate=self.rate)}
        if source.classes is not None:
            spec["label"] = core.Feature((), "int32", classes=len(source.classes), names=source.classes)
        return core.Dataset(
            spec=spec,
            sizes=examples.sizes,
            digest=digest.sha256(reader.content, *splits.values()),
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(preprocess, augmentation=self.augment, rate=self.rate),
        )


def check(config: Audio) -> None:
    """Checks the options, as far as possible without opening the recordings. Raises: UserError if one is wrong."""
    positive = {"batch-size": config.batch_size, "rate": config.rate, "seconds": config.seconds}
    errors.check_positive(**{f"--data.{name}": value for name, value in positive.items()})
    errors.check_not_negative(**{"--data.in-memory": config.in_memory})
    if config.name == PREFIX or not (config.name == "tones" or config.name.startswith(PREFIX)):
        raise UserError(f"--data.name {config.name!r} is neither tones nor audio:PATH; the fix: --data.name audio:PATH")
    if config.name == "tones" and (config.pattern or any(naming.is_choice(getattr(config, s)) for s in Slices._fields)):
        raise UserError(
            "the built-in tones have no file names, so --data.pattern and choices by its fields have no effect; leave them out"
        )
    size = config.samples * config.channels
    if not config.samples >= 2 or size > core.MAX_SIZE:
        raise UserError(
            f"windows of {config.seconds:g} s at {config.rate} Hz have {size:,} samples; change --data.seconds"
        )
    # A batch that does not fit would end the process without a message.
    memory.check_memory(4 * config.batch_size * size, f"a batch of {config.batch_size} windows")


def open_windows(config: Audio, slices: dict[str, str]) -> Windows:
    """Opens the recordings that the config names, and cuts them into windows. Prints a description of a folder.

    slices: {"train", "validation" or "test": value of this option}. Raises: UserError if the recordings cannot be used.
    """
    shape = config.rate, config.samples, config.channels, config.long
    if config.name == "tones":
        return cut(tones(config.rate, config.seconds, slices), *shape)
    options = FolderOptions(config.name, slices, skip_bad=config.skip_bad, whole=config.check == "all")
    recordings = folder.open_folder(options, config.pattern)
    windows = cut(recordings.source, *shape)
    describe.print_lines(recordings, windows)
    return windows


def open_reader(config: Audio, windows: Windows, splits: dict[str, np.ndarray]) -> Reader:
    """Returns a reader of decoded windows by position.

    If the windows of all splits fit into `config.in_memory`, they are decoded now and held in memory. Otherwise
    recordings are decoded whenever their windows are read.

    splits: {split: positions of its windows, int64}.
    """
    # Splits may overlap, and may leave recordings out. Each window that is in a split is decoded once.
    used, source, n = np.unique(np.concatenate(list(splits.values()))), windows.source, len(splits["train"])
    shape = f"{config.rate} {config.samples} {config.channels} {config.long}"
    if 2 * len(used) * config.samples * config.channels <= config.in_memory:
        key = digest.sha256("windows 1", source.fingerprint, shape, used) if source.fingerprint else None
        held = hold(windows.read, used, key, f"decoded windows of {source.name}", config.check == "all")
        return Reader(held.read, held.content, permute(n))
    # The digest is of the files. A digest of the decoded samples would need to decode all recordings before the first step.
    return Reader(windows.read, source.content + digest.sha256(shape), permute_by_grain(n))
