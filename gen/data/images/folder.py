"""The images of a folder. Its sub-folders are classes, or splits whose sub-folders are classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data.cache import Arrays, load_or_make
from gen.data.contents import content_sums
from gen.data.digest import sha256
from gen.data.images import describe, pixels
from gen.data.images.layout import Layout, count_splits, lay_out
from gen.data.images.listing import ENDINGS, Listing, describe_left_out, list_images
from gen.data.images.sources import Record, Source
from gen.errors import UserError, printable_line
from gen.files import expand_user

BAD, GREY, COLOR = 0, 1, 2  # kinds of images in a survey

log = logging.getLogger(__name__)


class FolderOptions(NamedTuple):
    """The fields of a config that decide how a folder is read."""

    name: str
    """The --data.name of the config, such as folder:PATH."""
    splits: Mapping[str, str]
    """{field: value} of --data.train, --data.validation and --data.test."""
    size: int | None = None
    """--data.size. Without it, all images must have one size."""
    background: str = "white"
    """Name of the colour behind transparent pixels."""
    skip_bad: bool = False
    """Skip files that cannot be read, and print their number in a warning. Otherwise such a file is an error."""
    whole: bool = False
    """Compare every byte of the files with the hashes from their first reading, not only a sample."""


def open_folder(options: FolderOptions) -> Source:
    """Opens all images below a folder. They are RGB unless all of them are grey. Prints a description of the folder.

    The order within a split is by the SHA-256 of the relative path. See `list_images` for the files that are left out, and `lay_out`
    for the meaning of sub-folders.

    Raises: UserError if there are no images, an image cannot be read, images differ in size, or the meaning of sub-folders is not clear.
    """
    name = options.name
    root = find_root(name)
    listing = list_found(root, name)
    return open_listed(root, listing, lay_out([file.path for file in listing.files], options.splits, name), options)


def open_listed(root: Path, listing: Listing, layout: Layout, options: FolderOptions) -> Source:
    """Opens the listed images that are in a split of the layout, split by split. Prints a description of them.

    root: folder of the listing. Raises: UserError if an image can't be read, if images differ in size, or if none can
    be read.
    """
    name = options.name
    used = [i for positions in layout.splits.values() for i in positions]
    stamp = stamp_files(root, listing, used, layout, options)
    paths = [root / listing.files[i].path for i in used]
    # Reading every header takes minutes for a large folder, so the result is cached.
    key, what = sha256("survey 3", stamp.fingerprint), f"sizes and colours of the images of {name}"
    found = load_or_make(key, lambda: survey(paths, thorough=options.skip_bad), what, options.whole)
    good = readable(name, paths, found["kind"] != BAD, options.skip_bad, "images", find_reason)

    images = FolderImages([paths[i] for i in good], [layout.labels[i] for i in good])
    sizes = np.stack([found["height"], found["width"]], 1)[good]
    height, width = common_size(images.paths, sizes, options.size)
    counts = {split: count_between(good, ends) for split, ends in split_ends(layout).items()}
    turned, alpha = found["turned"][good].astype(bool), found["alpha"][good].astype(bool)
    facts = describe.Facts(layout, counts, np.array(images.labels), sizes, int(turned.sum()), int(alpha.sum()))
    describe.print_lines(name, facts, describe_left_out(listing.left_out), options.background)
    # Transparent grey images are grey only on a grey background.
    background = pixels.parse_color(options.background)
    grey = (found["kind"][good] == GREY) & ~(alpha & (len(set(background)) > 1))
    # The digest marks images that are turned upright or get a background. Other images keep the digest of older versions of gen.
    marks = [" upright" * t + f" on {background}" * a for t, a in zip(turned.tolist(), alpha.tolist(), strict=True)]
    return Source(
        name=name,
        splits={split: [n] for split, n in counts.items()},
        shape=(height, width, 1 if grey.all() else 3),
        levels=256,
        classes=layout.classes,
        read=images.read,
        unreadable=images.unreadable,
        # The digest has neither times nor the folder's path, so a copy of the folder has the same digest.
        content=sha256(*(stamp.content[i] + mark for i, mark in zip(good, marks, strict=True))),
        fingerprint=stamp.fingerprint,
        older_content=sha256(*(stamp.names[i] + mark for i, mark in zip(good, marks, strict=True))),
    )


def count_images(name: str) -> dict[str, list[int]]:
    """Returns {split: [number of images]} of "folder:PATH", to suggest slices if no option names a split.

    Raises: UserError if the folder is missing or has no images, or if the meaning of its sub-folders is not clear.
    """
    return count_splits([file.path for file in list_found(find_root(name), name).files], name)


def find_root(name: str) -> Path:
    """Returns the absolute path of the folder in "KIND:PATH", such as "folder:PATH". Raises: UserError if it does not exist."""
    root = expand_user(name.partition(":")[2])
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    # The table of hashes belongs to a path, so the same folder must always have the same path.
    return root.resolve()


def list_found(root: Path, name: str) -> Listing:
    """Lists the images below a folder. name: the --data.name, for errors. Raises: UserError if there are none."""
    listing = list_images(root)
    if not listing.files:
        others = describe_left_out(listing.left_out)
        raise UserError(
            f"--data.name {name!r}: there are no images in it (endings: {' '.join(sorted(ENDINGS))})"
            + (f"; it has {others}" if others else "")
        )
    return listing


@dataclass(frozen=True)
class FolderImages:
    """Reads image files by position."""

    paths: list[Path]
    labels: list[int]

    def read(self, positions: Sequence[int]) -> list[Record]:
        """Returns the path and label of each of these positions. The files are opened later, when they are decoded."""
        return [(self.paths[i], self.labels[i]) for i in positions]

    def unreadable(self, position: int, reason: str) -> UserError:
        """Returns the error for an image that cannot be decoded."""
        return unreadable(self.paths[position], reason)


def unreadable(path: Path, reason: str) -> UserError:
    """Returns the error for a file that cannot be decoded."""
    return UserError(f"{path} {reason}.", "Remove it, or pass --data.skip-bad to skip such files and count them")


class Stamp(NamedTuple):
    """Facts that identify the files of a folder."""

    names: list[str]
    """Relative path and size of each file."""
    content: list[str]
    """Relative path, size and hash of the content of each file."""
    fingerprint: str
    """Digest that changes if a file, a class, a split or options.skip_bad changes."""


def stamp_files(root: Path, listing: Listing, used: Sequence[int], layout: Layout, options: FolderOptions) -> Stamp:
    """Returns texts and a digest that identify the files at the positions `used` of the listing, in this order.

    Reads the content of files that are new or changed. The hashes of other files are in the cache.
    """
    wanted = np.zeros(len(listing.files), bool)
    wanted[used] = True
    paths, facts = [file.path for file in listing.files], [file.facts for file in listing.files]
    sums = dict(
        zip(np.flatnonzero(wanted).tolist(), content_sums(root, paths, facts, wanted, options.whole), strict=True)
    )
    names = [f"{paths[i]} {facts[i].size}" for i in used]
    content = [f"{name} {sums[i]}" for name, i in zip(names, used, strict=True)]
    meaning = str(({split: len(found) for split, found in layout.splits.items()}, layout.classes))
    # Without times and root: a copy of the folder has the same decoded images.
    fingerprint = sha256(*content, meaning, np.array(layout.labels), str(options.skip_bad))
    return Stamp(names, content, fingerprint)


def survey(paths: list[Path], thorough: bool) -> Arrays:
    """Reads the header of each image, in threads.

    thorough: also decode each image, to be sure that it can be decoded.

    Returns {"kind": BAD, GREY or COLOR, "height", "width", "turned", "alpha"}, int32 [len(paths)] each. See pixels.Header.
    """

    def look(path: Path) -> tuple[int, int, int, int, int]:
        try:
            header = pixels.read_header(path, thorough)
        except ValueError:
            return BAD, 0, 0, 0, 0
        return GREY if header.grey else COLOR, header.height, header.width, int(header.turned), int(header.alpha)

    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(look, paths)), np.int32)
    return dict(zip(("kind", "height", "width", "turned", "alpha"), found.T, strict=True))


def split_ends(layout: Layout) -> dict[str, tuple[int, int]]:
    """Returns {split: (its first position, the position after its last)}, where positions count through all splits."""
    ends = np.cumsum([len(found) for found in layout.splits.values()]).tolist()
    return dict(zip(layout.splits, zip([0, *ends[:-1]], ends, strict=True), strict=True))


def count_between(positions: np.ndarray, ends: tuple[int, int]) -> int:
    """Returns the number of positions in [ends[0], ends[1])."""
    return int(((positions >= ends[0]) & (positions < ends[1])).sum())


def readable(
    name: str, paths: list[Path], sound: np.ndarray, skip_bad: bool, what: str, find_reason: Callable[[Path], str]
) -> np.ndarray:
    """Returns the positions of the readable files, int64, and warns of the others.

    sound: bool [len(paths)], whether each file can be read. what: word for the files in messages. find_reason: path -> the reason why
    the file can't be read.

    Raises: UserError if a file can't be read and `skip_bad` is False, or if no file can be read.
    """
    good, bad = np.flatnonzero(sound), np.flatnonzero(~sound)
    if len(bad):
        first = paths[int(bad[0])]
        if not skip_bad:
            raise unreadable(first, find_reason(first))
        # A file name may hold bytes that are not UTF-8, which a handler of the log could not encode.
        example = printable_line(str(first))
        log.warning(
            "%s: skipped %d of %d %s that cannot be read, such as %s", name, len(bad), len(paths), what, example
        )
    if not len(good):
        raise UserError(
            f"--data.name {name!r}: none of its {len(paths)} {what} can be read; leave out --data.skip-bad to see why"
        )
    return good


def find_reason(path: Path) -> str:
    """Returns why the image cannot be read."""
    try:
        pixels.read_header(path, thorough=True)
    except ValueError as error:
        return str(error)
    # The file can be read now. The survey may come from the cache, or the file system may have failed for a moment.
    return "could not be read when the folder was first surveyed"


def common_size(paths: list[Path], sizes: np.ndarray, size: int | None) -> tuple[int, int]:
    """Returns the (height, width) that all images share. (0, 0): they differ, and will be resized to `size`.

    sizes: height and width of each image, [n, 2]. size: the --data.size of the config.

    Raises: UserError if they differ and `size` is None.
    """
    other = np.flatnonzero((sizes != sizes[0]).any(1))
    if len(other) and size is None:
        a, b = ("{} is {}x{}".format(paths[i], *sizes[i]) for i in (0, int(other[0])))
        raise UserError(f"images differ in size (height x width): {a}, {b}.", "Give them one, such as --data.size 64")
    height, width = sizes[0].tolist()
    return (0, 0) if len(other) else (height, width)
