"""Lists the files of a folder that have known endings, and counts everything that is left out, with the reason."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gen.data.chunks import FileFacts, facts_of
from gen.data.images.pixels import AVIF

JPEG_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi"}
ENDINGS = JPEG_ENDINGS | {".apng", ".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
ENDINGS |= {".avif"} if AVIF else set()
# Folders that file servers and operating systems make: thumbnails, waste baskets, and metadata.
SYSTEM_FOLDERS = {"@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
MAX_ENDING = 12  # characters of an ending that is printed; longer ones are not endings


class ListedFile(NamedTuple):
    """A file with one of the endings that `list_files` was asked for."""

    path: str
    """Relative to the listed folder, with slashes."""
    facts: FileFacts
    """Size, times and inode of the file. For a link, of the file that it leads to."""


class Listing(NamedTuple):
    """The result of `list_files`: the files with one of the endings, and the numbers of all other entries."""

    files: list[ListedFile]
    """Sorted by the SHA-256 of their paths. This order mixes the classes, and a new file does not change the order of the other files."""
    left_out: Mapping[str, int]
    """{reason: number of entries} for all other entries, such as {".heic": 12, "links to folders": 3}."""


def list_images(root: Path) -> Listing:
    """Lists the image files below a folder, and counts the files that are left out. See `list_files`."""
    return list_files(root, ENDINGS)


def list_files(root: Path, endings: Container[str]) -> Listing:
    """Lists the files below a folder that have one of the endings (with a dot, in lower case), and counts all other entries.

    A link to a regular file counts as that file, wherever it is. Left out are links to folders (they may lead in a circle),
    hidden and system folders and files, other endings, and everything that is not a regular file.
    """
    files: list[ListedFile] = []
    left_out: Counter[str] = Counter()
    folders = [""]
    # os.scandir and strings: with Path objects, a folder of 100,000 images takes several times as long.
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
        except OSError:
            left_out["folders that cannot be opened"] += 1
            continue
        for entry in entries:
            _visit(entry, folder + entry.name, endings, files, folders, left_out)
    files.sort(key=lambda file: hashlib.sha256(os.fsencode(file.path)).digest())
    return Listing(files, left_out)


def _visit(
    entry: os.DirEntry[str],
    path: str,
    endings: Container[str],
    files: list[ListedFile],
    folders: list[str],
    left_out: Counter[str],
) -> None:
    """Adds an entry of a folder to `files`, to `folders` (still to be visited), or to the counts in `left_out`.

    path: of the entry, relative to the listed folder.
    """
    is_folder = entry.is_dir(follow_symlinks=False)
    hidden = entry.name.startswith(".") or entry.name.lower() in (SYSTEM_FOLDERS if is_folder else SYSTEM_FILES)
    if is_folder and not hidden:
        folders.append(path + "/")
        return
    if hidden:
        left_out[f"{entry.name}/" if is_folder else "hidden files"] += 1
        return
    ending = os.path.splitext(entry.name)[1].lower()
    try:
        facts = entry.stat()  # of the file that a link leads to
    except OSError:
        left_out["links to nothing" if entry.is_symlink() else "files that cannot be opened"] += 1
        return
    if stat.S_ISDIR(facts.st_mode):
        left_out["links to folders"] += 1
    elif not stat.S_ISREG(facts.st_mode):  # reading a pipe would never end
        left_out["pipes or devices"] += 1
    elif ending in endings:
        files.append(ListedFile(path, facts_of(facts)))
    else:
        left_out[ending if 1 < len(ending) <= MAX_ENDING else "files without an ending"] += 1


def shorten(texts: Iterable[str], most: int = 10) -> str:
    """Returns the first `most` texts, separated by commas, and the number of the others: "a, b and 3 more"."""
    texts = list(texts)
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Returns the reasons and numbers of left-out files as text, the most frequent first: "12 .heic, 3 links to folders"."""
    return shorten(f"{n:,} {reason}" for reason, n in sorted(left_out.items(), key=lambda item: (-item[1], item[0])))
