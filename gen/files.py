"""Reading files that a stranger may have made, writing files in one rename, and the user's cache folder.

A file that is read must be a regular file (a pipe would never end) of a limited size. Nothing is unpickled. No link may
lead out of a folder that is read as a whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.lib.npyio import NpzFile

from gen.errors import UserError

MAX_BYTES = 2**31  # bytes of a file that is read whole, and of what an archive unpacks to


def check_contained(folder: Path) -> None:
    """Raises: UserError for a link out of the folder, and for what is neither file, folder nor link, anywhere in it: whoever
    reads or writes there stays there."""
    root = os.path.realpath(folder)
    for path, link, mode in _entries(root):
        if link and not is_inside(Path(path), folder):
            raise UserError(f"{path} is a link out of {folder}; if that is what you want, put what it leads to there")
        if not link and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{path} is neither a file nor a folder; remove it")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path in the folder stays there, wherever links lead."""
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _entries(folder: str) -> Iterator[tuple[str, bool, int]]:
    """(path, whether it is a link, mode) of all that is below; linked folders are not entered."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.path, entry.is_symlink(), entry.stat(follow_symlinks=False).st_mode
                if entry.is_dir(follow_symlinks=False):
                    yield from _entries(entry.path)
    except (FileNotFoundError, NotADirectoryError):  # another process removes what it has written
        return


def check_fits(shapes: Any, path: Path) -> Any:
    """The shapes of the arrays that a run's config describes. Raises: UserError if this machine can't hold them."""
    check_memory(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)), f"the model of {path}")
    return shapes


def check_memory(needed: int, what: str) -> None:
    """Raises: UserError for more bytes than this machine has: asked for them, it would end processes instead."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(f"{what} needs {needed / 2**30:,.0f} GiB of memory, and this machine has {there / 2**30:,.0f}")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """What is in a file. Raises: FileNotFoundError; UserError if it is no regular file, can't be read or is too large."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{path} is no file")
        if facts.st_size > most:
            raise UserError(f"{path} has {facts.st_size:,} bytes, and at most {most:,} are read")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except (OSError, ValueError) as error:  # no permission; no path at all, with a zero byte in it
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', error)}") from None


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises: as `content`; UserError if it is damaged."""
    try:
        return json.loads(read_bytes(path, 2**28))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in an .npz file; what it says that they unpack to is looked at first.

    Raises: as `content`; UserError if it is damaged, too large, or holds anything else.
    """
    packed = read_bytes(path)
    try:
        with NpzFile(io.BytesIO(packed), allow_pickle=False) as archive:
            assert archive.zip is not None
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, and at most {MAX_BYTES:,} are read")
            found = {name: np.asarray(archive[name]) for name in archive}
    except Exception as error:  # a broken file makes it raise nearly anything
        raise UserError(f"{path} is damaged: {error}") from None
    for name, array in found.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path} is damaged: {name[:80]!r} is {array.dtype}, and no array of numbers")
    return found


def cache_folder() -> Path:
    """Where what can be made again is kept for the user: $XDG_CACHE_HOME/gen, by default ~/.cache/gen."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gen"


def expand_user(path: Path | str) -> Path:
    """The path with ~ as the user's home. Raises: UserError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """A folder aside to write in, which becomes `folder` if nothing is raised. Raises: UserError if something is there."""
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another, or remove it")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made: {error.strerror}") from None
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """In one rename: the file is the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
