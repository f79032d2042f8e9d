"""Images of a folder. The first level of sub-folders are the classes."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gen import files as gen_files
from gen.data.cache import Arrays, cached
from gen.data.digest import sha256
from gen.data.images import pixels
from gen.data.images.sources import Source
from gen.errors import UserError
from gen.files import expand_user

ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
BAD, GREY, COLOR = 0, 1, 2

log = logging.getLogger(__name__)


def source(name: str, size: int | None, skip_bad: bool) -> Source:
    """All images below "folder:PATH" as one split "train", in the order of the SHA-256 of their relative paths, which
    mixes the classes and survives additions. RGB, unless all are greyscale.

    Names that begin with a dot, linked folders and links out of the folder are ignored. Raises UserError if the folder
    or images are missing, if an image can't be read (with `skip_bad` it is skipped, and counted in a warning), or if
    sizes differ while `size` is None.
    """
    root = expand_user(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    root = root.resolve()
    paths = listing(root)
    if not paths:
        raise UserError(f"--data.name {name!r}: there are no images in it (endings: {' '.join(sorted(ENDINGS))})")
    classes = class_names(root, paths)

    stats = [path.stat() for path in paths]
    relative = [path.relative_to(root).as_posix() for path in paths]
    content = [f"{file} {stat.st_size}" for file, stat in zip(relative, stats, strict=True)]
    times = [str(stat.st_mtime_ns) for stat in stats]
    fingerprint = sha256(str(root), *content, *times, str(skip_bad))
    found = cached(sha256("survey", fingerprint), lambda: survey(paths, thorough=skip_bad))

    good = np.flatnonzero(found["kind"] != BAD)
    if len(good) < len(paths):
        first = paths[int(np.flatnonzero(found["kind"] == BAD)[0])]
        if not skip_bad:
            raise unreadable(first, reason(first))
        bad, n = len(paths) - len(good), len(paths)
        log.warning("%s: skipped %d of %d images that can't be read, such as %s", name, bad, n, first)
    if not len(good):
        raise UserError(f"--data.name {name!r}: none of its {len(paths)} images can be read")
    files = [paths[i] for i in good]
    labels = [classes.index(relative[i].split("/")[0]) if classes else 0 for i in good]
    shapes = np.stack([found["height"], found["width"]], 1)[good]
    other = np.flatnonzero((shapes != shapes[0]).any(1))
    if len(other) and size is None:
        a, b = ("{} is {}x{}".format(files[i], *shapes[i]) for i in (0, int(other[0])))
        raise UserError(f"images differ in size (height x width): {a}, {b}.\nGive them one, such as --data.size 64")

    height, width = (0, 0) if len(other) else map(int, shapes[0])
    return Source(
        name=name,
        splits={"train": [len(files)]},
        shape=(height, width, 1 if (found["kind"][good] == GREY).all() else 3),
        levels=256,
        classes=classes,
        read=lambda positions: [(files[i], labels[i]) for i in positions],
        unreadable=lambda position, why: unreadable(files[position], why),
        content=sha256(*(content[i] for i in good)),
        fingerprint=fingerprint,
    )


def unreadable(path: Path, why: str) -> UserError:
    return UserError(f"{path} {why}.\nRemove it, or pass --data.skip-bad to skip such images and count them")


def listing(root: Path) -> list[Path]:
    """The image files below `root`, in the order of the SHA-256 of their relative paths."""
    paths, links = [], 0
    for folder, folders, files in os.walk(root):  # does not enter linked folders
        folders[:] = [each for each in folders if not each.startswith(".")]
        links += sum(os.path.islink(os.path.join(folder, each)) for each in folders)
        for file in files:
            path = Path(folder, file)
            if file.startswith(".") or path.suffix.lower() not in ENDINGS:
                continue
            if not gen_files.is_inside(path, root):
                links += 1
            elif path.is_file():  # a pipe would never end
                paths.append(path)
    if links:
        log.warning("%s: ignored %d symbolic links to folders or out of the folder", root, links)
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.relative_to(root).as_posix())).digest())


def class_names(root: Path, paths: list[Path]) -> tuple[str, ...] | None:
    """Sorted names of the first-level folders that hold images; None if the images lie directly in `root`."""
    names = sorted({path.relative_to(root).parts[0] for path in paths if path.parent != root})
    loose = [path for path in paths if path.parent == root]
    if names and loose:
        raise UserError(f"{loose[0]} lies beside the class folders such as {names[0]}: move it into one")
    return tuple(names) or None


def survey(paths: list[Path], thorough: bool) -> Arrays:
    """{"kind": BAD, GREY or COLOR, "height", "width"}, int32 [len(paths)] each."""

    def look(path: Path) -> tuple[int, int, int]:
        try:
            height, width, grey = pixels.header(path, thorough)
        except ValueError:
            return BAD, 0, 0
        return GREY if grey else COLOR, height, width

    with ThreadPoolExecutor() as pool:
        found = np.array(list(pool.map(look, paths)), np.int32)
    return {"kind": found[:, 0], "height": found[:, 1], "width": found[:, 2]}


def reason(path: Path) -> str:
    try:
        pixels.header(path, thorough=True)
    except ValueError as error:
        return str(error)
    return "could not be read when the folder was first surveyed"
