"""The content of the user's cache folder, the bound on its size, and the removal of entries.

Only files that gen wrote are removed. An entry that a running process has mapped is locked, and stays.
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
WRITING = ".writing-"
"""Prefix of the folders that are being written."""
LEFT_SECONDS = 86_400
"""A folder with this prefix that is older was left by a process that was killed."""
PROGRAMS, OLD_PROGRAMS = "programs-", "compiled-"
"""Prefixes of the folders of compiled programs. The second is from older versions of gen, in which JAX wrote the files itself."""
KEY = re.compile(r"[0-9a-f]{64}")
"""Names of the entries that gen makes. Other programs may call `load_or_make` with other names."""
LIMIT = "limit.json"
DEFAULT_LIMIT = 100 * 10**9
"""Bytes of the cache, but at most half of its file system."""


class Item(NamedTuple):
    """A part of the cache that is removed as a whole."""

    path: Path
    what: str
    size: int
    """Bytes."""
    used: float
    """Time of the last use, in seconds since 1970."""


def read_limit(cache: Path) -> int:
    """Returns the bound on the size of the cache, in bytes."""
    with suppress(FileNotFoundError, UserError):
        # A file instead of an option: all commands and runs of a user share the cache.
        value = files.read_json(cache / LIMIT)
        if isinstance(value, int) and value >= 0:
            return value
    return min(DEFAULT_LIMIT, shutil.disk_usage(cache).total // 2)


def list_items(cache: Path) -> list[Item]:
    """Returns what gen has written to the cache, the last used first. Other files are left out."""
    found = [item for entry in _scan(cache) for item in _items_of(Path(entry.path))]
    return sorted(found, key=lambda item: -item.used)


def _items_of(path: Path) -> Iterator[Item]:
    """Yields the items at a path directly in the cache folder."""
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
    """Returns what an entry holds, in the words of the process that wrote it. None: gen did not make this folder."""
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
    """Returns whether gen wrote a file in the folder of an entry or of programs, or whether it has no content that can be lost."""
    mode = entry.stat(follow_symlinks=False).st_mode
    # A folder is only removed if it is empty.
    if stat.S_ISDIR(mode):
        return not _scan(Path(entry.path))
    ours = entry.name.endswith((".npy", "-cache", "-atime", ".tmp")) or entry.name in (SUMS, SEEN)
    return ours or not stat.S_ISREG(mode)


def lock_shared(path: Path) -> int:
    """Returns a descriptor of a sums.json, which is locked against removal until the descriptor is closed. Raises: OSError."""
    # Non-blocking: another program may have put a pipe there since the sums were read.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return number


def is_used(item: Item) -> bool:
    """Returns whether a running process has mapped an entry."""
    try:
        # To be written to: network file systems grant no other exclusive locks.
        with open(item.path / SUMS, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError:  # locked, or another user's
        return True


def trim(cache: Path, keep: Path | None = None) -> list[Item]:
    """Removes the items that were not used for the longest time until the cache has its size. Returns them.

    Entries in use stay, and so does `keep`.
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
    """Removes all items that are not in use. Returns the removed items, and the items in use."""
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
    return not os.path.lexists(item.path)


def make_folder(folder: Path, say: Callable[[str], None]) -> None:
    """Makes a folder of the cache. If a file or a pipe has its name, or the name of a folder above it, that is cleared away.

    If the whole cache is a link, the link is kept: its disk may be missing only now. Raises: OSError.
    """
    cache = files.cache_folder()
    for path in reversed([folder, *folder.parents]):
        inside = path.is_relative_to(cache) and not (path == cache and path.is_symlink())
        if inside and os.path.lexists(path) and not path.is_dir():
            clear_away(path, say)
    folder.mkdir(parents=True, exist_ok=True)


def clear_away(path: Path, say: Callable[[str], None] | None = None) -> None:
    """Removes an entry of the cache, of any kind. If gen did not write it, it is renamed instead, and a line says so.

    Raises: OSError.
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
