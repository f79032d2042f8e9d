"""The recordings of a folder. Classes and splits come from its sub-folders, or from the names of the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data.audio import naming, sound
from gen.data.audio.sources import Source
from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.images.folder import (
    FolderOptions,
    count_between,
    find_root,
    readable,
    split_ends,
    stamp_files,
    unreadable,
)
from gen.data.images.layout import Layout, count_splits, lay_out
from gen.data.images.listing import Listing, describe_left_out, list_files
from gen.errors import UserError

BAD = 0
"""The sample rate that `survey` gives to a file that can't be read."""


class Found(NamedTuple):
    """The sound files of a folder, with the classes and splits that their names or sub-folders give."""

    root: Path
    listing: Listing
    layout: Layout
    options: Mapping[str, str]
    """{"train", "validation" or "test": slice of the layout's splits}."""


class Recordings(NamedTuple):
    """The readable recordings of a folder, not decoded: how to decode them, their classes and splits, and their headers."""

    source: Source
    layout: Layout
    headers: np.ndarray
    """Number of frames, sample rate and channels of each recording, int64 [N, 3]. See `sound.Header`."""
    left_out: str
    """Text that describes the files that were left out."""


def find(name: str, options: Mapping[str, str], pattern: str | None) -> Found:
    """Lists the sound files below "audio:PATH", and finds their classes and splits.

    options: {"train", "validation" or "test": value of this option}, for options that are given.
    pattern: --data.pattern.

    Raises: UserError if there are no sound files, a file name does not fit the pattern, an option names a split or a
    field that does not exist, or the meaning of sub-folders is not clear.
    """
    root = find_root(name)
    listing = list_sounds(root, name)
    paths = [file.path for file in listing.files]
    slices = {field: value for field, value in options.items() if not naming.is_choice(value)}
    if len(slices) < len(options) and pattern is None:
        choice = next(value for value in options.values() if naming.is_choice(value))
        raise UserError(
            f"{choice!r} chooses by a field, and there is no --data.pattern; give one, such as {{label}}_{{speaker}}_*.wav"
        )
    # A choice by a field names no sub-folder, so `lay_out` does not get it.
    layout = lay_out(paths, slices, name) if len(slices) == len(options) else lay_out(paths, {}, name)
    if pattern is None:
        return Found(root, listing, layout, slices)
    return Found(root, listing, *naming.apply_fields(layout, naming.read_fields(pattern, paths, name), options, name))


def list_sounds(root: Path, name: str) -> Listing:
    """Returns the sound files below a folder. name: the --data.name, for errors. Raises: UserError if there are none."""
    listing = list_files(root, sound.ENDINGS)
    if not listing.files:
        others = describe_left_out(listing.left_out)
        raise UserError(
            f"--data.name {name!r}: there are no sound files in it (endings: {' '.join(sorted(sound.ENDINGS))})"
            + (f"; it has {others}" if others else "")
        )
    return listing


def count_files(name: str, options: Mapping[str, str], pattern: str | None) -> dict[str, list[int]]:
    """Returns {split: [number of files]} of "audio:PATH", to suggest slices for the options that are not given.

    Files that an option in `options` chooses by a field, such as "speaker=ann", are a split with the option's name.

    options, pattern: as for `find`. Raises: UserError as `find`.
    """
    if any(map(naming.is_choice, options.values())):
        choices = {field: value for field, value in options.items() if naming.is_choice(value)}
        return {split: [len(positions)] for split, positions in find(name, choices, pattern).layout.splits.items()}
    return count_splits([file.path for file in find(name, {}, None).listing.files], name)


def open_folder(options: FolderOptions, pattern: str | None) -> Recordings:
    """Opens all recordings below a folder. The order within a split is by the SHA-256 of the relative path.

    pattern: --data.pattern. Raises: UserError if there are no sound files, if options, file names or sub-folders don't
    fit each other, or if a file can't be read and options.skip_bad is False.
    """
    return open_found(find(options.name, options.splits, pattern), options)


def open_found(found: Found, options: FolderOptions) -> Recordings:
    """Returns the recordings that are in a split of found.layout, split by split, with their headers.

    Recordings are decoded later, when they are read. With options.skip_bad, each is also decoded once here, and files
    that can't be decoded are left out. found: the files, from `find`.

    Raises: UserError if the header of a file can't be read and options.skip_bad is False, or if no file can be read.
    """
    name, (root, listing, layout, slices) = options.name, found
    used = [i for positions in layout.splits.values() for i in positions]
    stamp = stamp_files(root, listing, used, layout, options)
    paths = [root / listing.files[i].path for i in used]
    # versions() raises if the packages are not installed. Otherwise the survey would report every file as unreadable.
    version = sound.versions()
    key, what = sha256("sound survey 2", stamp.fingerprint, version), f"lengths and rates of the recordings of {name}"
    facts = load_or_make(key, lambda: survey(paths, thorough=options.skip_bad), what, options.whole)
    good = readable(name, paths, facts["rate"] != BAD, options.skip_bad, "recordings", find_reason)
    files = Files([paths[i] for i in good])
    headers = np.stack([facts[field] for field in sound.Header._fields], 1)[good]
    counts = {split: count_between(good, ends) for split, ends in split_ends(layout).items()}
    source = Source(
        name=name,
        splits={split: [n] for split, n in counts.items()},
        seconds=headers[:, 0] / headers[:, 1],
        labels=np.array(layout.labels, np.int32)[good],
        classes=layout.classes,
        options=slices,
        decode=files.decode,
        # The digest has neither times nor the folder's path, so a copy of the folder has the same digest.
        content=sha256(*(stamp.content[i] for i in good), version),
        fingerprint=sha256(stamp.fingerprint, version),
    )
    return Recordings(source, layout, headers, describe_left_out(listing.left_out))


@dataclass(frozen=True)
class Files:
    """Reads sound files by position."""

    paths: Sequence[Path]

    def decode(self, position: int, rate: int, channels: int) -> np.ndarray:
        """Returns the recording at a position, int16 [n, channels]. Raises: UserError if it can't be decoded."""
        try:
            return sound.decode(self.paths[position], rate, channels)
        except ValueError as error:
            raise unreadable(self.paths[position], str(error)) from error


def survey(paths: Sequence[Path], thorough: bool) -> Arrays:
    """Reads the header of each file, in threads. thorough: also decode each file, to be sure that it can be decoded.

    Returns {"frames", "rate", "channels"}, int64 [len(paths)] each. A file that can't be read has the rate BAD.
    """

    def look(path: Path) -> sound.Header:
        try:
            header = sound.read_header(path)
            if thorough:
                sound.decode(path, header.rate, 1)
            return header
        except ValueError:
            return sound.Header(0, BAD, 0)

    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(look, paths)), np.int64)
    return dict(zip(sound.Header._fields, found.T, strict=True))


def find_reason(path: Path) -> str:
    """Returns why a file can't be read."""
    try:
        sound.decode(path, sound.read_header(path).rate, 1)
    except ValueError as error:
        return str(error)
    # The file can be read now. The survey may come from the cache, or the file system may have failed for a moment.
    return "could not be read when the folder was first surveyed"
