"""The images of a folder. The first level of sub-folders are the classes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen import files as gen_files
from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.images import pixels
from gen.data.images.sources import Record, Source
from gen.errors import UserError, printable
from gen.files import expand_user

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
BAD, GREY, COLOR = 0, 1, 2  # kinds of images in a survey

log = logging.getLogger(__name__)


def open_folder(name: str, size: int | None, skip_bad: bool) -> Source:
    """Opens all images below "folder:PATH" as one split "train". They are RGB unless all of them are grey.

    The order is by the SHA-256 of the relative path: it mixes the classes, and adding an image does not change the order of
    the others. Ignored are names that begin with a dot, linked folders, and links out of the folder.

    size: the --data.size of the config. Without it, all images must have one size.
    skip_bad: skip images that cannot be read and count them in a warning.

    Raises: UserError if there are no images, one cannot be read, or they differ in size.
    """
    root = expand_user(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    # The fingerprint holds the root, so one folder must have one name.
    root = root.resolve()
    paths = find_images(root)
    if not paths:
        raise UserError(f"--data.name {name!r}: there are no images in it (endings: {' '.join(sorted(ENDINGS))})")
    classes = class_names(root, paths)
    stamp = stamp_files(root, paths, skip_bad)
    # Reading every header takes minutes for a large folder, so the result is cached.
    found = load_or_make(sha256("survey 2", stamp.fingerprint), lambda: survey(paths, thorough=skip_bad))
    good = readable(name, paths, found["kind"], skip_bad)

    relative = [paths[i].relative_to(root).parts[0] for i in good]
    labels = [classes.index(folder) if classes else 0 for folder in relative]
    images = FolderImages([paths[i] for i in good], labels)
    height, width = common_size(images.paths, np.stack([found["height"], found["width"]], 1)[good], size)
    return Source(
        name=name,
        splits={"train": [len(images.paths)]},
        shape=(height, width, 1 if (found["kind"][good] == GREY).all() else 3),
        levels=256,
        classes=classes,
        read=images.read,
        unreadable=images.unreadable,
        # Without times and root: a copy of the folder has the same digest.
        content=sha256(*(stamp.content[i] for i in good)),
        fingerprint=stamp.fingerprint,
    )


@dataclass(frozen=True)
class FolderImages:
    """Reads image files by position."""

    paths: list[Path]
    labels: list[int]

    def read(self, positions: Sequence[int]) -> list[Record]:
        """Returns the paths and labels of these positions. The files are opened when they are decoded."""
        return [(self.paths[i], self.labels[i]) for i in positions]

    def unreadable(self, position: int, reason: str) -> UserError:
        """Returns the error for an image that cannot be decoded."""
        return unreadable(self.paths[position], reason)


def unreadable(path: Path, reason: str) -> UserError:
    """Returns the error for a file that cannot be decoded."""
    return UserError(f"{path} {reason}.\nRemove it, or pass --data.skip-bad to skip such images and count them")


def find_images(root: Path) -> list[Path]:
    """Returns the image files below `root`, in the order of the SHA-256 of their relative paths."""
    paths, links = [], 0
    for path in walk(root):
        if not gen_files.is_inside(path, root) or path.is_dir():
            links += 1
        elif path.is_file():  # reading a pipe would never end
            paths.append(path)
    if links:
        log.warning("%s: ignored %d symbolic links to folders or out of the folder", root, links)
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(root).as_posix())).digest())


def walk(root: Path) -> Iterator[Path]:
    """Yields all linked folders and all files with the ending of an image below `root`, without hidden names."""
    for folder, folders, files in os.walk(root):  # os.walk does not enter linked folders
        folders[:] = [each for each in folders if not each.startswith(".")]
        links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
        images = [each for each in files if not each.startswith(".") and Path(each).suffix.lower() in ENDINGS]
        yield from (Path(folder, each) for each in (*links, *images))


def class_names(root: Path, paths: list[Path]) -> tuple[str, ...] | None:
    """Returns the sorted names of the first-level folders with images. None: the images lie directly in `root`.

    Raises: UserError if some images lie in folders and others do not.
    """
    names = sorted({path.relative_to(root).parts[0] for path in paths if path.parent != root})
    loose = [path for path in paths if path.parent == root]
    if names and loose:
        raise UserError(f"{loose[0]} lies next to the class folders such as {names[0]}: move it into one of them")
    return tuple(names) or None


class Stamp(NamedTuple):
    """Facts of the files of a folder that are known without reading them."""

    content: list[str]
    """Relative path and size of each file."""
    fingerprint: str
    """Digest that changes when a file does."""


def stamp_files(root: Path, paths: list[Path], skip_bad: bool) -> Stamp:
    """Returns the stamp of these files."""
    stats = [path.stat() for path in paths]
    relative = [path.relative_to(root).as_posix() for path in paths]
    content = [f"{file} {stat.st_size}" for file, stat in zip(relative, stats, strict=True)]
    times = [str(stat.st_mtime_ns) for stat in stats]
    return Stamp(content, sha256(str(root), *content, *times, str(skip_bad)))


def survey(paths: list[Path], thorough: bool) -> Arrays:
    """Reads the header of each image, in threads.

    thorough: also decode each image, to be sure that it can be decoded.

    Returns {"kind": BAD, GREY or COLOR, "height", "width"}, int32 [len(paths)] each.
    """

    def look(path: Path) -> tuple[int, int, int]:
        try:
            header = pixels.read_header(path, thorough)
        except ValueError:
            return BAD, 0, 0
        return GREY if header.grey else COLOR, header.height, header.width

    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(look, paths)), np.int32)
    return {"kind": found[:, 0], "height": found[:, 1], "width": found[:, 2]}


def readable(name: str, paths: list[Path], kind: np.ndarray, skip_bad: bool) -> np.ndarray:
    """Returns the positions of the readable images. Raises: UserError for the others, unless `skip_bad`, or if none is left."""
    good, bad = np.flatnonzero(kind != BAD), np.flatnonzero(kind == BAD)
    if len(bad):
        first = paths[int(bad[0])]
        if not skip_bad:
            raise unreadable(first, find_reason(first))
        # A file name may hold bytes that are not UTF-8, which a handler of the log could not encode.
        example = printable(str(first))
        log.warning("%s: skipped %d of %d images that cannot be read, such as %s", name, len(bad), len(paths), example)
    if not len(good):
        raise UserError(
            f"--data.name {name!r}: none of its {len(paths)} images can be read; leave out --data.skip-bad to see why"
        )
    return good


def find_reason(path: Path) -> str:
    """Returns why the image cannot be read."""
    try:
        pixels.read_header(path, thorough=True)
    except ValueError as error:
        return str(error)
    # The survey may come from the cache, or the file system may have failed only once.
    return "could not be read when the folder was first surveyed"


def common_size(paths: list[Path], sizes: np.ndarray, size: int | None) -> tuple[int, int]:
    """Returns the (height, width) that all images share. (0, 0): they differ, and will be resized to `size`.

    sizes: height and width of each image, [n, 2]. size: the --data.size of the config.

    Raises: UserError if they differ and `size` is None.
    """
    other = np.flatnonzero((sizes != sizes[0]).any(1))
    if len(other) and size is None:
        a, b = ("{} is {}x{}".format(paths[i], *sizes[i]) for i in (0, int(other[0])))
        raise UserError(f"images differ in size (height x width): {a}, {b}.\nGive them one, such as --data.size 64")
    height, width = sizes[0].tolist()
    return (0, 0) if len(other) else (height, width)
