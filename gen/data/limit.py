"""Lists the entries of the user's cache folder (gen.data.cache), and removes entries if it exceeds its size limit.

Only files that gen wrote are removed. An entry whose arrays a running process has memory-mapped is locked, and stays.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gen import files
from gen.errors import UserError

SUMS, SEEN = "sums.json", "seen.json"
"""Files of an entry besides its arrays: see gen.data.cache."""
WRITING = ".writing-"
"""Prefix of folders to which a process is writing an entry."""
LEFT_SECONDS = 86_400
"""Seconds after which a folder with the prefix WRITING counts as left by a process that was killed."""
PROGRAMS, OLD_PROGRAMS = "programs-", "compiled-"
"""Prefixes of the folders of compiled programs. Older versions of gen, in which JAX wrote the files itself, used the second prefix."""
KEY = re.compile(r"[0-9a-f]{64}")
"""Names of the entries that gen makes: a SHA-256. Other programs may call `load_or_make` with other names."""
LIMIT = "limit.json"
"""File in the cache folder with the size limit that the user has set, in bytes."""
DEFAULT_LIMIT = 100 * 10**9
"""Size limit of the cache if the user has set none, in bytes. On small file systems it is half of the file system."""


class Item(NamedTuple):
    """A part of the cache that is removed as a whole: an entry, a compiled program, or an unfinished folder."""

    path: Path
    what: str
    """Description for the user."""
    size: int
    """Bytes."""
    used: float
    """Time of the last use, in seconds since 1970. 0: left unfinished by a process that was killed."""


def read_limit(cache: Path) -> int:
    """Returns the size limit of the cache, in bytes: the user's limit, or the default."""
    with suppress(FileNotFoundError, UserError):
        # The limit is a file and not an option, because all commands and runs of a user share the cache.
        value = files.read_json(cache / LIMIT)
        if isinstance(value, int) and value >= 0:
            return value
    return min(DEFAULT_LIMIT, shutil.disk_usage(cache).total // 2)


def list_items(cache: Path) -> list[Item]:
    """Returns the items that gen has written to the cache, the most recently used first. Other files are left out."""
    found = [item for entry in _scan(cache) for item in _items_of(Path(entry.path))]
    return sorted(found, key=lambda item: -item.used)


def _items_of(path: Path) -> Iterator[Item]:
    """Yields the items of one file or folder that is directly in the cache folder.

    A folder of compiled programs has an item for each program. Yields nothing for files, links, folders that gen did
    not make, and folders that are being written.
    """
    if not path.is_dir() or path.is_symlink():
        return
    if path.name.startswith((PROGRAMS, OLD_PROGRAMS)):
        for entry in _scan(path):
            if is_ours(entry):
                facts = entry.stat(follow_symlinks=False)
                yield Item(Path(entry.path), "a compiled program", facts.st_size, facts.st_mtime)
    elif path.name.startswith(WRITING):
        if time.time() - path.stat().st_mtime > LEFT_SECONDS:
            yield Item(path, "left by a process that was killed", _size(path), 0.0)
    elif what := _describe(path):
        yield Item(path, what, _size(path), _last_use(path))


def _describe(folder: Path) -> str | None:
    """Returns the description in an entry's sums.json, or of its damage. None: gen did not make this folder."""
    known = KEY.fullmatch(folder.name)
    try:
        content = files.read_json(folder / SUMS)
        return str(content["what"]) if known or content.keys() >= {"format", "arrays", "sha256"} else None
    except FileNotFoundError:
        return "arrays that an older version has made" if known else None
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return "a damaged entry" if known else None


def _last_use(folder: Path) -> float:
    path = folder / SUMS
    return (path if path.exists() else folder).stat().st_mtime


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in _scan(folder) if is_ours(entry))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder. []: it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def is_ours(entry: os.DirEntry[str]) -> bool:
    """Returns whether a file or folder in the cache may be removed.

    True if gen wrote it, judged by its name, or if it has no content: an empty folder, a link or a pipe.
    """
    mode = entry.stat(follow_symlinks=False).st_mode
    # A folder is only removed if it is empty.
    if stat.S_ISDIR(mode):
        return not _scan(Path(entry.path))
    ours = entry.name.endswith((".npy", "-cache", "-atime", ".tmp")) or entry.name in (SUMS, SEEN)
    return ours or not stat.S_ISREG(mode)


def lock_shared(path: Path) -> int:
    """Locks an entry against removal by `remove`. Returns a file descriptor. The lock lasts until it is closed.

    Several processes can hold the lock at once. On a file system without locks, nothing is locked.

    path: the sums.json of the entry. Raises: OSError if it can't be opened.
    """
    # Non-blocking, because another program may have replaced the file by a pipe, which would block.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return number


def is_used(item: Item) -> bool:
    """Returns whether a process has locked the item, or this process can't write to it. Only entries can be locked."""
    try:
        # Opened for writing, because network file systems only grant exclusive locks on such files.
        with open(item.path / SUMS, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError:  # locked, or another user's
        return True


def trim(cache: Path, keep: Path | None = None) -> list[Item]:
    """Removes the least recently used items until the cache is within its size limit. Returns the removed items.

    Unfinished folders of killed processes are removed in any case. Entries in use, and the entry with the path `keep`,
    are not removed.
    """
    most, items = read_limit(cache), list_items(cache)
    total, removed = sum(item.size for item in items), []
    for item in reversed(items):
        # Incomplete entries of killed processes are removed in any case.
        if total <= most and item.used > 0:
            break
        if item.path != keep and remove(item):
            total -= item.size
            removed.append(item)
    return removed


def clear(cache: Path) -> tuple[list[Item], list[Item]]:
    """Removes all items that are not in use. Returns (removed items, items that are in use or can't be removed)."""
    items = list_items(cache)
    removed = [item for item in items if remove(item)]
    return removed, [item for item in items if item not in removed]


def remove(item: Item) -> bool:
    """Removes an item unless it is in use. Returns whether it is gone."""
    if is_used(item):
        return False
    with suppress(OSError):
        if item.path.is_dir():
            clear_away(item.path)
        else:
            item.path.unlink(missing_ok=True)
    # Not the success of the removal: another process may have removed the item first.
    return not os.path.lexists(item.path)


def make_folder(folder: Path, say: Callable[[str], None]) -> None:
    """Makes a folder in the cache, and the folders above it. A file or pipe with such a name is first cleared away.

    See `clear_away`. If the cache folder itself is a link, it is kept, even if its target is missing: a disk may not be
    mounted now.

    say: prints a message. Raises: OSError.
    """
    cache = files.cache_folder()
    for path in reversed([folder, *folder.parents]):
        inside = path.is_relative_to(cache) and not (path == cache and path.is_symlink())
        if inside and os.path.lexists(path) and not path.is_dir():
            clear_away(path, say)
    folder.mkdir(parents=True, exist_ok=True)


def clear_away(path: Path, say: Callable[[str], None] | None = None) -> None:
    """Makes a path in the cache free, so that a new entry can have this name.

    A folder loses the files that gen wrote, and is removed if it is empty then. Links and pipes are removed. Otherwise
    (a regular file, or a folder with other files) the path is renamed to "NAME.not-of-gen-TIME".

    say: prints a message about the renamed path. Raises: OSError.
    """
    if not os.path.lexists(path):
        return
    # Renamed first, so that another process never sees a part of an entry. A process that has mapped its files keeps them.
    aside = path.with_name(f"{WRITING}{os.getpid()}-{time.time_ns()}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another process has removed it
        return
    if stat.S_ISDIR(aside.lstat().st_mode):
        for entry in _scan(aside):
            if is_ours(entry):
                _remove_empty(Path(entry.path))
    if not stat.S_ISREG(aside.lstat().st_mode):
        with suppress(OSError):  # something is left in the folder
            _remove_empty(aside)
            return
    kept = path.with_name(f"{path.name}.not-of-gen-{time.time_ns()}")
    aside.rename(kept)
    if say is not None:
        say(f"{kept} holds files that gen did not write; move or remove them")


def _remove_empty(path: Path) -> None:
    """Removes a file, a pipe, a link or an empty folder."""
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()
