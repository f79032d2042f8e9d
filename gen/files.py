"""Files: reading files that a stranger may have made, writing files in one rename, and the user's cache folder.

A file is read only if it is a regular file (a pipe would never end) of limited size. Nothing is unpickled. In a run directory,
no link may lead out of the folder, and nothing is written through a link.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile

from gen.errors import UserError
from gen.system import name_file

MAX_BYTES = 2**31
"""Largest size of a file that is read as a whole, and of an unpacked archive, in bytes."""
MAX_JSON_BYTES = 2**26
"""Largest size of a JSON file, in bytes."""
MAX_JSON_VALUES = 2**22
"""Largest number of values in a JSON file, about. It bounds the memory: a value of two bytes in the file takes 70 bytes."""

T = TypeVar("T")


class _Entry(NamedTuple):
    """A file, folder or symbolic link in a folder. mode: its st_mode, for a link the mode of the link itself."""

    path: str
    link: bool
    mode: int


def check_contained(folder: Path) -> None:
    """Checks that reading and writing below a folder stays in it.

    Raises: UserError if it holds, at any depth, a link that leads out of it, a pipe or a device.
    """
    for entry in _entries(os.path.realpath(folder)):
        if entry.link and not is_inside(Path(entry.path), folder):
            raise UserError(f"{entry.path} is a link out of {folder}; the fix: replace it by the file that it leads to")
        if not entry.link and not (stat.S_ISREG(entry.mode) or stat.S_ISDIR(entry.mode)):
            raise UserError(f"{entry.path} is neither a file nor a folder; the fix: remove it")


def is_inside(path: Path, folder: Path) -> bool:
    """Returns False if `path`, a path in the folder, is a link that leads out of the folder. Otherwise True."""
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_targets(folder: Path, names: Iterable[str]) -> None:
    """Checks that `write_bytes` would write files with these relative paths below a folder, and to no other place.

    The folder itself may be a link. Raises: UserError if something on the way is a link, a pipe, or a file instead of a folder.
    """
    for name in names:
        path = folder / name
        inner = [folder.joinpath(*Path(name).parts[: i + 1]) for i in range(len(Path(name).parts) - 1)]
        for each in (*inner, path.with_name(f".{path.name}.tmp")):
            if each.is_symlink() or (each.exists() and not (each.is_dir() if each in inner else each.is_file())):
                raise UserError(f"{each} is in the way: it is a link, or of the wrong kind; the fix: remove it")


def no_follow(path: str, flags: int) -> int:
    """Opens a file for `open(path, opener=no_follow)`, and returns its descriptor.

    Raises: UserError if it is a link. One may have been made after `check_contained` had checked the folder.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link, and nothing is written through a link; the fix: remove it") from None


def _entries(folder: str) -> Iterator[_Entry]:
    """Yields all files, folders and links below a folder, at any depth. Links to folders are not followed."""
    # Another process, such as a training, may remove files at the same time.
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            yield _Entry(entry.path, entry.is_symlink(), entry.stat(follow_symlinks=False).st_mode)
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)


def check_regular(path: Path) -> int:
    """Returns the size of a regular file in bytes. Call it before opening a file, because opening a pipe could wait for ever.

    Raises: UserError if it is a pipe, a device, a socket or a folder; FileNotFoundError or another OSError as `Path.stat`.
    """
    try:
        facts = path.stat()
    except ValueError as error:  # a zero byte in the path, for instance from a JSON file
        raise UserError(f"{path} can't be read: {error}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} is {name_kind(facts.st_mode)}, and not a regular file; give a file")
    return facts.st_size


def name_kind(mode: int) -> str:
    """Returns the kind of an entry of a folder, such as "a pipe". mode: its st_mode."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Returns the content of a file of at most `most` bytes.

    Raises: FileNotFoundError; UserError if it is not a regular file, cannot be read, or is too large.
    """
    try:
        size = check_regular(path)
        if size > most:
            raise UserError(f"{path} has {size:,} bytes; the limit is {most:,}")
        return path.read_bytes()
    # Many callers catch this error, and say what to do about a missing file.
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except (OSError, ValueError) as error:  # no permission; a path with a zero byte
        raise UserError(f"{path} can't be read: {getattr(error, 'strerror', error)}") from None


def read_json(path: Path, content: bytes | None = None) -> Any:
    """Returns the value in a JSON file. content: the bytes of the file, if they were read already.

    Raises: FileNotFoundError; UserError if it cannot be read, is too large, or is damaged.
    """
    content = read_bytes(path, MAX_JSON_BYTES) if content is None else content
    # Every value except the first comes after a comma or an opening bracket, so this counts them before they take memory.
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise UserError(f"{path} is damaged: it has more than {MAX_JSON_VALUES:,} values")
    try:
        return json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dict. Raises: ValueError if a name occurs twice: programs read different values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def read_arrays(path: Path, most: int = MAX_BYTES, packed: bytes | None = None) -> dict[str, np.ndarray]:
    """Returns {name: array} of an .npz file. The unpacked size that the archive claims is checked before it is unpacked.

    most: largest size in bytes, both packed and unpacked. packed: the bytes of the file, if they were read already.

    Raises: FileNotFoundError; UserError if it is damaged, too large, or holds anything but numbers.
    """
    packed = read_bytes(path, most) if packed is None else packed
    try:
        with NpzFile(io.BytesIO(packed), allow_pickle=False) as archive:
            assert archive.zip is not None
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > most:
                raise ValueError(f"it unpacks to {size:,} bytes; the limit is {most:,}")
            found = {name: np.asarray(archive[name]) for name in archive}
    except Exception as error:  # numpy and zipfile raise nearly anything for a broken file
        raise UserError(f"{path} is damaged: {error}") from None
    for name, array in found.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{path} is damaged: {name[:80]!r} has dtype {array.dtype}, which is not a number")
    return found


def cache_folder() -> Path:
    """Returns the folder for files that can be made again: $XDG_CACHE_HOME/gen, by default ~/.cache/gen."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gen"


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Returns the path with ~ or ~USER replaced by a home folder. Raises: UserError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from None


def expand_paths(options: T) -> T:
    """Returns a command's options, a frozen dataclass, with ~ replaced in each Path that they hold, at any depth.

    A shell replaces a ~ at the start of a word only, not in --out=~/x. Raises: UserError for an unknown user.
    """
    if isinstance(options, Path):
        return expand_user(options)  # pyright: ignore[reportReturnType]
    if isinstance(options, tuple):
        return tuple(expand_paths(each) for each in options)  # pyright: ignore[reportReturnType]
    if not is_dataclass(options) or isinstance(options, type):
        return options
    held = {f.name: getattr(options, f.name) for f in fields(options)}
    expanded = {name: expand_paths(value) for name, value in held.items()}
    # Only changed fields are replaced, because `replace` runs the checks of a dataclass again.
    changed = {name: value for name, value in expanded.items() if value != held[name]}
    return replace(options, **changed) if changed else options


def remove(path: Path) -> None:
    """Removes a file, a link (not its target), or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def create_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write in. It is renamed to `folder` at the end, and removed if anything is raised.

    Raises: UserError if the folder exists and is not empty, or cannot be made.
    """
    # In the same parent folder, so that the rename does not cross file systems.
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; choose another folder, or remove it")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made: {error.strerror}") from None
    try:
        yield temporary
        sync_tree(temporary)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Waits until all files below a folder, and the folder itself, are on the disk. Call it before the folder is renamed."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in (*(each for each in folder.rglob("*") if each.is_dir() and not each.is_symlink()), folder):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Waits until the names of the files in a folder are on the disk, if its file system supports that."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file as `write_bytes` does."""
    write_bytes(path, encode_json(value))


def encode_json(value: object) -> bytes:
    """Returns the content of the file that `write_json` writes."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_bytes(path: Path, content: bytes, wait: bool = True) -> None:
    """Writes a file, and gives it its name in one rename. After a crash, the path has the old content or the new, never a part.

    wait: wait until the file is on the disk. False is much faster for many files, but they may be empty after a machine crash.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with name_file(path):
        with open(temporary, "wb", opener=no_follow) as file:
            file.write(content)
            file.flush()
            if wait:
                # The content must be on the disk before the rename is.
                os.fsync(file.fileno())
        os.replace(temporary, path)
    if wait:
        sync_folder(path.parent)
