"""A cache of arrays that take long to compute, such as decoded images.

It is the folder $XDG_CACHE_HOME/gen, by default ~/.cache/gen. Each entry of the cache is a folder in it:

    KEY/NAME.npy     an array
    KEY/sums.json    hashes of all arrays. Its modification time is the last use. Processes that use the arrays lock it
    KEY/seen.json    size, times and inode of each array's file when its whole content was last compared with the hashes

Each time an entry is loaded, the content of its files is compared with the hashes, because a disk or a person may have
changed a file. If the size, the times or the inode of a file have changed, the whole file is compared. Of all other
files together, SAMPLE_CHUNKS random chunks of 1 MiB are compared, which is everything for an entry of up to 128 MiB.
`--data.check all` compares every byte. If an entry is damaged, a message is printed, and the arrays are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen import files
from gen.data import limit
from gen.data.chunks import SUM_BYTES, FileFacts, chunk_sums, count_chunks, draw_chunks, facts_of, find_wrong
from gen.data.limit import SEEN, SUMS, WRITING
from gen.errors import UserError, note
from gen.files import cache_folder, sync_folder, sync_tree, write_bytes, write_json

Arrays = dict[str, np.ndarray]

FORMAT = 1
"""Version of the layout of sums.json."""
MIN_MAPPED = 2**20
"""Array files from this number of bytes on are memory-mapped. Smaller ones are read: a map takes a file descriptor."""


class Damaged(Exception):
    """Raised if an entry of the cache can't be used. The message is the reason."""


class ArraySums(NamedTuple):
    """Size and hashes of an array's file, as stored in sums.json."""

    size: int
    """Number of bytes of the file."""
    chunks: bytes
    """SHA-256 of each chunk (1 MiB) of the file, one after the other, 32 bytes each."""


def load_or_make(key: str, make: Callable[[], Arrays], what: str = "arrays", whole: bool = False) -> Arrays:
    """Returns the arrays {name: array} that the cache has under this key. Otherwise calls `make` and saves its result.

    The arrays are read-only. Arrays from 1 MiB on are memory maps of `$XDG_CACHE_HOME/gen/KEY/NAME.npy` (default
    ~/.cache/gen). If the cache can't be written, a message is printed, and the arrays of `make` are returned as they
    are.

    key: a SHA-256, in hexadecimal, of everything that decides the arrays. make: computes the arrays, {name: array}.
    what: describes the arrays in messages and in `python -m gen.cache`. whole: compare every byte of saved arrays with
    its hash, not only a random sample.
    """
    folder = cache_folder() / key
    # No lock is needed: folders appear whole, by a rename.
    kept = load_or_say(folder, what, whole)
    if kept is not None:
        return kept
    # If the folder exists, it is damaged. Without `replace`, `save` would compare another random sample, which might
    # miss the damage, and would then keep the folder.
    is_damaged = os.path.lexists(folder)
    arrays = make()
    try:
        save(folder, arrays, what, replace=is_damaged)
        return load(folder) or arrays
    except (OSError, Damaged) as error:
        # A full disk or a read-only home only costs time: the arrays are made again by the next process.
        note(f"{what}: the cache {folder} can't be written ({reason_of(error)}), so they are made again at each start")
        return arrays


def load_or_say(folder: Path, what: str, whole: bool = False) -> Arrays | None:
    """Returns the arrays of an entry, as `load` does. If the entry is damaged, prints a message and returns None.

    folder: the entry. It may be missing; then the result is None, too. what: describes the arrays in the message.
    whole: compare every byte with its hash, not only a random sample.
    """
    try:
        return load(folder, whole)
    except Damaged as damage:
        note(f"{what}: the cache is damaged ({damage}); it is made again")
        return None


def load(folder: Path, whole: bool = False) -> Arrays | None:
    """Returns the arrays of an entry, {name: array}, and marks it as used now. None if the folder does not exist.

    folder: the entry. whole: compare every byte with its hash, not only a random sample.

    Raises: Damaged, with the reason, if the entry can't be read or differs from its hashes.
    """
    lock = None
    try:
        if not os.path.lexists(folder):
            return None
        sums = read_sums(folder)
        # Locks the entry before its files are compared, so that no other process removes them in between.
        lock = limit.lock_shared(folder / SUMS)
        check_content(folder, sums, whole)
        arrays = {name: map_array(folder / f"{name}.npy", lock) for name in sums}
        with contextlib.suppress(OSError):  # a read-only cache can be used too
            os.utime(folder / SUMS)
        return arrays
    except (OSError, UserError, ValueError, EOFError) as error:
        if not os.path.lexists(folder):  # another process has removed it meanwhile
            return None
        raise Damaged(reason_of(error)) from None
    finally:
        if lock is not None:
            os.close(lock)


def reason_of(error: Exception) -> str:
    """Returns a short reason for an error, with the path if the error has one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def read_sums(folder: Path) -> dict[str, ArraySums]:
    """Reads the sums.json of an entry. Returns {name of an array: size and hashes of its file}.

    folder: the entry. Raises: OSError or UserError if it is not a folder, or its sums.json is missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is {files.name_kind(folder.lstat().st_mode)}, and not a folder")
    path = folder / SUMS
    try:
        content = files.read_json(path)
    except FileNotFoundError:
        # Older versions of gen wrote no hashes, so their entries can't be distinguished from damaged ones.
        old = any(folder.glob("*.npy"))
        raise UserError(f"{path} is missing" + (", or an older version has made the entry" if old else "")) from None
    try:
        # sums.json has a hash of itself. Without it, a flipped bit in sums.json would be reported as damage of an array.
        sealed = content.pop("sha256")
        found = {name: ArraySums(size, bytes.fromhex(chunks)) for name, (size, chunks) in content["arrays"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged") from None
    if sealed != seal(content) or content["format"] != FORMAT or not found:
        raise UserError(f"{path} is damaged")
    return found


def seal(content: object) -> str:
    """Returns the SHA-256, in hexadecimal, of the JSON object `content`.

    sums.json stores it under the key "sha256". So damage to its other keys, which are `content`, is found.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_content(folder: Path, sums: dict[str, ArraySums], whole: bool) -> None:
    """Compares the files of an entry with their hashes: changed files as a whole, and a random sample of the other files.

    A file counts as changed if its size, times or inode are not as in seen.json, which is updated after the comparison.

    folder: the entry. sums: content of its sums.json, as from `read_sums`. whole: compare all files as a whole.

    Raises: UserError that names the first file with a wrong size or content; OSError.
    """
    seen, found = read_seen(folder), {}
    for name, (size, chunks) in sums.items():
        path = folder / f"{name}.npy"
        if (actual := files.check_regular(path)) != size or len(chunks) != count_chunks(size) * SUM_BYTES:
            raise UserError(f"{path} is empty" if not actual else f"{path} has {actual:,} bytes instead of {size:,}")
        found[name] = facts_of(path.stat())
    # One sample over all files: an entry of many files costs no more than one of a single file.
    names = list(sums)
    counts = np.array([count_chunks(sums[name].size) for name in names], np.int64)
    sample = draw_chunks(counts)
    new = [whole or seen.get(name) != found[name] for name in names]
    for i, name in enumerate(names):
        chosen = range(int(counts[i])) if new[i] else sample.get(i, [])
        wrong = find_wrong(folder / f"{name}.npy", sums[name].chunks, chosen)
        if wrong is not None:
            raise UserError(f"{folder / name}.npy does not match its hash, in MiB {wrong}")
    # Written last: a process that is killed while it compares must not leave facts of files that were not compared.
    if any(new):
        with contextlib.suppress(OSError):
            write_json(folder / SEEN, found)


def read_seen(folder: Path) -> dict[str, FileFacts]:
    """Reads the seen.json of an entry. Returns {name of an array: FileFacts of its file when last compared as a whole}.

    {}: seen.json is missing or damaged.
    """
    try:
        return {name: FileFacts(*facts) for name, facts in files.read_json(folder / SEEN).items()}
    except (OSError, UserError, TypeError, AttributeError):
        return {}


def map_array(path: Path, lock: int) -> np.ndarray:
    """Returns the array in a .npy file, read-only. From MIN_MAPPED bytes on it is a memory map, otherwise in memory.

    lock: file descriptor that locks the entry. A memory map keeps a duplicate of it open, so that the entry stays
    locked as long as the array is used.
    """
    if files.check_regular(path) < MIN_MAPPED:
        # The array is in memory, so later changes of the file can't change it.
        array = np.load(path)
        array.flags.writeable = False
        return array
    mapped = np.load(path, mmap_mode="r")
    # A map of a file that is removed keeps working on a local disk, but not on every network file system.
    weakref.finalize(mapped, os.close, os.dup(lock))
    return np.asarray(mapped)


def save(folder: Path, arrays: Arrays, what: str, replace: bool = False) -> None:
    """Writes an entry of the cache. A reader sees all of its arrays or none.

    The arrays are written to a temporary folder, and then the folder is renamed. If another process has written the same entry
    first, the rename fails, and the other entry is kept. It has the same content, so no error is raised. Then, if the cache is
    larger than its limit, the least recently used entries are removed, but not this one.

    folder: the entry. arrays: {name: array}. what: describes the arrays in messages and in `python -m gen.cache`.
    replace: replace an existing entry in any case. By default it is only replaced if it is damaged.

    Raises: OSError if the files can't be written, or if a damaged entry can't be moved away.
    """
    limit.make_folder(folder.parent, note)
    temporary = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        # The hashes are of the written files. The files are still in the page cache, so reading them again takes no time.
        paths = {name: temporary / f"{name}.npy" for name in arrays}
        sums = {name: (path.stat().st_size, chunk_sums(path).hex()) for name, path in paths.items()}
        content: dict[str, Any] = {"format": FORMAT, "what": what, "arrays": sums}
        write_bytes(temporary / SUMS, json.dumps(content | {"sha256": seal(content)}).encode())
        sync_tree(temporary)
        write_json(temporary / SEEN, {name: facts_of(path.stat()) for name, path in paths.items()})
        # A damaged entry would block the rename.
        if replace or not is_sound(folder):
            limit.clear_away(folder, note)
        with contextlib.suppress(FileExistsError, OSError):  # another process has written the folder first
            temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    limit.trim(cache_folder(), keep=folder)


def keep_file(path: Path, content: bytes) -> None:
    """Writes a file in the cache folder, unless it has this content already. Prints a message if it had other content.

    Raises: UserError if it can't be written.
    """
    try:
        if files.read_bytes(path) == content:
            return
        note(f"{path} has another content than it should have; it is made again")
    except FileNotFoundError:
        pass  # it is written below, for the first time
    except UserError as damage:
        note(f"{damage}; it is made again")
        limit.clear_away(path, note)
    try:
        limit.make_folder(path.parent, note)
        files.write_bytes(path, content)
    except OSError as error:
        raise UserError(f"the cache {path} can't be written: {reason_of(error)}") from None


def is_sound(folder: Path) -> bool:
    """Returns whether `load` can read a folder as an entry of the cache. It compares a random sample of the content."""
    try:
        return load(folder) is not None
    except Damaged:
        return False
