"""Recordings with texts, such as the words that are spoken. All recordings of a group are in the same split.

A group is named in the .jsonl file of the texts. If it is not, recordings with the same text are a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from gen import core
from gen.data import captions, digest
from gen.data.audio import describe, folder
from gen.data.audio.augment import Augmentation
from gen.data.audio.dataset import Audio, check, open_reader
from gen.data.audio.folder import Found, Recordings
from gen.data.audio.preprocess import preprocess
from gen.data.audio.sources import Source
from gen.data.audio.windows import cut
from gen.data.captions import Caption, CaptionOptions
from gen.data.examples import Examples
from gen.data.images.folder import FolderOptions
from gen.data.images.layout import WHOLE, Layout
from gen.data.text import tokenizers
from gen.errors import UserError, note

RECORDING = captions.Kind("audio", "recording")


@dataclass(frozen=True)
class Transcribed(CaptionOptions, core.Data):
    """Recordings with texts: "audio" float32 [B, samples, channels] in [-1, 1), and "caption" int32 [B, length], padded with the
    end token.

    Batches also have "group" int32 [B], a number that is equal for recordings of the same group (see `name`). Models don't read it.
    """

    name: str = "captions:recordings"
    """captions:FOLDER. Each recording PATH.wav has its text in PATH.txt. Or one .jsonl file in the folder has a line {"audio": path in
    the folder, "text": text} for each recording. A line may also have "group", a text that variants of a
    recording share. Without it, recordings with the same text are a group."""
    rate: int = 8000
    """Samples per second. Recordings with another rate are resampled."""
    seconds: float = 4.0
    """Length of each example in seconds. Shorter recordings are filled up with silence. Longer recordings are left out, because a part of one does not contain
    the whole text."""
    channels: Literal[1, 2] = 1
    """Mono (1) or stereo (2)."""
    augment: Augmentation = Augmentation()
    """Random changes of the training recordings. The default changes nothing."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How each later start looks for changed files. sample: it compares a random sample of their content. all: it compares every byte."""

    def build(self) -> core.Dataset:
        """Reads the texts and the recordings. Raises: UserError for a wrong option, recording or text, or for a
        recording without a text, or a text without a recording.
        """
        sound = self.sound()
        check(sound)
        captions.check(self)
        root = captions.find_root(self.name, RECORDING)
        recordings, pairs = open_recordings(self, root)
        # The text describes the whole recording, so a later window with this text would be a wrong example.
        windows = cut(recordings.source, self.rate, sound.samples, self.channels, "start")
        describe.print_lines(recordings, windows)
        texts = captions.encode_pairs(self, pairs, self.name)
        reader = open_reader(sound, windows, texts.splits)
        examples = Examples(
            sizes={split: len(positions) for split, positions in texts.splits.items()},
            read=partial(texts.read, reader.read),
            shuffle=reader.shuffle,
            batch_size=self.batch_size,
        )
        return core.Dataset(
            spec={
                "audio": core.Feature((sound.samples, self.channels), sample_rate=self.rate),
                "caption": texts.feature(),
            },
            sizes=examples.sizes,
            digest=digest.sha256(reader.content, texts.digest()),
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(preprocess, augmentation=self.augment, rate=self.rate),
            files={tokenizers.FILE: texts.dump()},
            protocol=texts.protocol(self),
        )

    def sound(self) -> Audio:
        """Returns the settings of the recordings, without the captions, as an `Audio`."""
        return Audio(
            name=f"audio:{self.name.removeprefix(captions.PREFIX)}",
            rate=self.rate,
            seconds=self.seconds,
            channels=self.channels,
            long="start",
            check=self.check,
            batch_size=self.batch_size,
        )


def open_recordings(config: Transcribed, root: Path) -> tuple[Recordings, list[Caption]]:
    """Returns (recordings, texts) of the recordings below `root` that last at most `config.seconds`.

    They are one split without classes. Raises: UserError for a recording or a text that can't be read, or if all
    recordings are longer.
    """
    listing = folder.list_sounds(root, config.name)
    pairs = captions.pair_up(root, [file.path for file in listing.files], config.name, RECORDING)
    # .txt and .jsonl files hold the texts, so they are not reported as left out.
    others = {reason: n for reason, n in listing.left_out.items() if reason not in (".txt", ".jsonl")}
    # One split and no classes: the texts decide the splits, and sub-folders have no meaning.
    layout = Layout({WHOLE: list(range(len(pairs)))}, None, [0] * len(pairs))
    options = FolderOptions(config.name, {}, skip_bad=False, whole=config.check == "all")
    recordings = folder.open_found(Found(root, listing._replace(left_out=others), layout, {}), options)
    # A part of a recording does not contain the whole text.
    fits = np.flatnonzero(recordings.source.seconds <= config.seconds)
    if not len(fits):
        raise UserError(
            f"{config.name}: every recording is longer than {config.seconds:g} s; the fix: --data.seconds "
            f"{np.ceil(10 * recordings.source.seconds.max()) / 10:g}"
        )
    if long := len(pairs) - len(fits):
        note(f"{config.name}: {long:,} recordings are longer than {config.seconds:g} s and left out (--data.seconds)")
    source = choose(recordings.source, fits)
    return recordings._replace(source=source, headers=recordings.headers[fits]), [pairs[i] for i in fits]


def choose(source: Source, positions: np.ndarray) -> Source:
    """Returns a source with one split, which has only the recordings at `positions`.

    positions: int64 [n], indices into the recordings of `source`, counted through all its splits.
    """
    return source._replace(
        splits={WHOLE: [len(positions)]},
        seconds=source.seconds[positions],
        labels=source.labels[positions],
        decode=lambda i, rate, channels: source.decode(int(positions[i]), rate, channels),
        content=digest.sha256(source.content, positions),
        fingerprint=source.fingerprint and digest.sha256(source.fingerprint, positions),
    )
