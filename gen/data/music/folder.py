"""The MIDI files of a folder. Its sub-folders are classes, or splits whose sub-folders are classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.images.folder import FolderOptions, count_between, find_root, readable, split_ends, stamp_files
from gen.data.images.layout import count_splits, lay_out
from gen.data.images.listing import Listing, describe_left_out, list_files, shorten
from gen.data.music import midi
from gen.data.music.sources import Source
from gen.errors import UserError, note
from gen.files import read_bytes

PREFIX = "midi:"
MAX_BYTES = 2**24
"""Largest size of a MIDI file, in bytes. Usual scores have some kilobytes."""


class Found(NamedTuple):
    """The MIDI files of a folder."""

    root: Path
    listing: Listing


def find(name: str) -> Found:
    """Lists the MIDI files below "midi:PATH". Raises: UserError if there are none."""
    root = find_root(name)
    listing = list_files(root, midi.ENDINGS)
    if not listing.files:
        others = describe_left_out(listing.left_out)
        raise UserError(
            f"--data.name {name!r}: there are no MIDI files in it (endings: {' '.join(sorted(midi.ENDINGS))})"
            + (f"; it has {others}" if others else "")
        )
    return Found(root, listing)


def count(name: str) -> dict[str, list[int]]:
    """Returns {split: [number of files]} of "midi:PATH", to suggest slices if no option names a split.

    Raises: UserError if there are no MIDI files, or if the meaning of sub-folders is not clear.
    """
    return count_splits([file.path for file in find(name).listing.files], name)


def open_folder(options: FolderOptions, steps: int, voices: int) -> Source:
    """Opens all MIDI files below a folder. The order within a split is by the SHA-256 of the relative path.

    steps: frames of a quarter note. voices: voices of a roll. A file doesn't fit if `midi.decode` can't convert it to
    such a roll. With options.skip_bad, these files are left out, and their numbers are printed by reason.

    Raises: UserError if there are no MIDI files or none fits, or if a file does not fit and options.skip_bad is False.
    """
    name = options.name
    root, listing = find(name)
    layout = lay_out([file.path for file in listing.files], options.splits, name)
    used = [i for positions in layout.splits.values() for i in positions]
    stamp = stamp_files(root, listing, used, layout, options)
    paths = [root / listing.files[i].path for i in used]
    version = f"mido {midi.load_mido().version_info}"
    # Parsing takes about ten milliseconds for each file, so the rolls are cached.
    key = sha256("scores 1", stamp.fingerprint, version, f"{steps} {voices}")
    held = load_or_make(key, lambda: read_all(paths, steps, voices), f"scores of {name}", options.whole)
    reasons = held["reasons"].tolist()
    reason_of = dict(zip(paths, reasons, strict=True))
    good = readable(name, paths, held["frames"] > 0, options.skip_bad, "MIDI files", reason_of.__getitem__)
    # `readable` has printed the number of files. The reasons show whether more files would fit another grid.
    if len(good) < len(paths):
        kinds = Counter(kind for reason in reasons if (kind := kind_of(reason)))
        note(f"{name}: skipped: {shorten(f'{n:,} {kind}' for kind, n in kinds.most_common())}")
    # Files that do not fit have 0 frames, so they occupy nothing in the array.
    last = np.cumsum(held["frames"])
    pieces = [
        held["notes"][end - n : end] for end, n in zip(last[good].tolist(), held["frames"][good].tolist(), strict=True)
    ]
    return Source(
        name=name,
        splits={split: [count_between(good, ends)] for split, ends in split_ends(layout).items()},
        pieces=pieces,
        labels=np.array(layout.labels, np.int32)[good],
        classes=layout.classes,
        options=options.splits,
        # The digest has neither times nor the folder's path, so a copy of the folder has the same digest.
        content=sha256(*(stamp.content[i] for i in good), version),
    )


def read_all(paths: Sequence[Path], steps: int, voices: int) -> Arrays:
    """Reads the files as rolls of `steps` frames per quarter note.

    Returns {"notes": all rolls one after the other, int16 [F, voices], "frames": length of each roll, int64 [N],
    "reasons": text [N]}. A file that can't be read as such a roll has 0 frames, and the reason as text. The reasons of
    all other files are "".
    """
    read = [read_file(path, steps, voices) for path in paths]
    rolls = [np.zeros((0, voices), np.int16) if isinstance(found, str) else found for found in read]
    reasons = [found if isinstance(found, str) else "" for found in read]
    return {"notes": np.concatenate(rolls), "frames": np.array([*map(len, rolls)]), "reasons": np.array(reasons)}


def read_file(path: Path, steps: int, voices: int) -> np.ndarray | str:
    """Returns the roll of a file, int16 [frames, voices], or the reason why it can't be read as one.

    steps: frames of a quarter note.
    """
    try:
        return midi.decode(read_bytes(path, MAX_BYTES), steps, voices)
    except ValueError as error:
        return str(error)
    except (UserError, OSError) as error:
        return f"can't be read: {error}"


def kind_of(reason: str) -> str:
    """Returns a reason without its details, to count similar files: "is off the grid" for "is off the grid: ..."."""
    return reason.partition(":")[0].partition("(")[0].partition(", in frame")[0].strip()
