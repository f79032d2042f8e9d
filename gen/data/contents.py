"""Hashes of the files of a data set. Each file is read as a whole once. Later starts read only a sample of the content.

The hashes are in the cache (gen.data.cache). The hash of a file is valid as long as the size, the times (mtime and
ctime) and the inode of the file don't change. At each start, SAMPLE_CHUNKS random chunks of 1 MiB of the unchanged
files are compared with the hashes. `--data.check all` compares every byte. If a chunk differs, all files are read
again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data import cache
from gen.data.chunks import SUM_BYTES, FileFacts, chunk_sums, count_chunks, draw_chunks, find_wrong
from gen.data.digest import sha256
from gen.errors import UserError, note
from gen.files import cache_folder

MIN_SAID = 2**30
"""A message is printed before reading more than this number of bytes."""
UNREADABLE = "unreadable"
"""Stands for the hash of a file that can't be read. The code that decodes the data reports such a file."""
MISSING = -1
"""Stands for each of the FileFacts of a file whose hashes are not known."""


class Table(NamedTuple):
    """Known hashes of the N files of a data set."""

    paths: list[str]
    """Paths of the files, relative to the folder of the data set, or absolute."""
    facts: np.ndarray
    """FileFacts of each file when it was read, int64 [N, 4]. MISSING: it was not read."""
    sums: list[bytes]
    """For each file, the SHA-256 of each of its chunks, as from `chunk_sums`. b"": the file was not read."""


def content_sums(
    root: Path, paths: Sequence[str], facts: Sequence[FileFacts], wanted: np.ndarray | None = None, whole: bool = False
) -> list[str]:
    """Returns a hash of the content of each wanted file, in the order of `paths`: in hexadecimal, or UNREADABLE.

    The hash is the SHA-256 of the SHA-256s of the file's chunks. Files that are new or changed are read. The hashes of
    other files come from a table in the cache.

    root: folder of the files, which identifies the table. paths: the N files, relative to root, or absolute.
    facts: current FileFacts of each file. wanted: bool [N], the files whose hashes are returned. The table keeps the
    known hashes of the other files. None: all files are wanted. whole: compare every byte of unchanged files with the
    table, not only a random sample.
    """
    wanted = np.ones(len(paths), bool) if wanted is None else wanted
    now = np.array(facts, np.int64).reshape(-1, len(FileFacts._fields))
    folder = cache_folder() / sha256("contents 1", str(root))
    table = align(read_table(folder, root), list(paths))
    fresh = (table.facts == now).all(1)
    changed = check_sample(root, table, fresh & wanted, whole)
    # A file that changed without a change of its times shows that the times of the other files can't be trusted either.
    if changed:
        fresh = np.zeros_like(fresh)
    stale = np.flatnonzero(~fresh & wanted)
    if len(stale):
        table = read_stale(root, table, now, stale)
        keep_table(folder, root, table)
    elif list(paths) != table.paths:
        # Only the list of files has changed. The new table leaves out the files that are gone.
        keep_table(folder, root, table)
    return [summarize(table, i) for i in np.flatnonzero(wanted).tolist()]


def summarize(table: Table, i: int) -> str:
    """Returns the hash of file i of the table: the SHA-256 of its `sums`, or UNREADABLE if the file was not read."""
    return hashlib.sha256(table.sums[i]).hexdigest() if table.facts[i, 0] != MISSING else UNREADABLE


def check_sample(root: Path, table: Table, fresh: np.ndarray, whole: bool) -> bool:
    """Compares random chunks of unchanged files with their hashes. Returns whether a file differs, and prints which.

    root: folder of the files. fresh: bool [N], the files to compare: their FileFacts are as in the table. whole:
    compare all chunks of these files.
    """
    rows = np.flatnonzero(fresh)
    counts = np.array([len(table.sums[i]) // SUM_BYTES for i in rows.tolist()], np.int64)
    chosen = {i: list(range(n)) for i, n in enumerate(counts.tolist())} if whole else draw_chunks(counts)

    def differs(item: tuple[int, list[int]]) -> str | None:
        path, sums = root / table.paths[rows[item[0]]], table.sums[rows[item[0]]]
        try:
            return None if find_wrong(path, sums, item[1]) is None else str(path)
        except (OSError, UserError):
            return str(path)

    # Threads help, because hashing releases the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        wrong = [path for path in pool.map(differs, chosen.items()) if path is not None]
    if wrong:
        more = f" and {len(wrong) - 1:,} more files have" if len(wrong) > 1 else " has"
        note(f"{wrong[0]}{more} changed without a change of size or time; all files of {root} are read again")
    return bool(wrong)


def read_stale(root: Path, table: Table, now: np.ndarray, stale: np.ndarray) -> Table:
    """Reads the files at the positions `stale`, in threads. Returns the table with their new FileFacts and hashes.

    A file that can't be read gets the facts MISSING. If more than MIN_SAID bytes are read, prints a message first.

    root: folder of the files. now: current FileFacts of all files, int64 [N, 4]. stale: int64 [n].
    """
    size = int(now[stale, 0].sum())
    if size > MIN_SAID:
        note(f"{root}: reading {size / 2**30:,.1f} GiB in {len(stale):,} files once, to hash their content")

    def read(i: int) -> bytes | None:
        try:
            sums = chunk_sums(root / table.paths[i])
        except (OSError, UserError):
            return None
        # If the file is being written, its length differs from its facts. Its hashes stay unknown, so the next start reads it again.
        return sums if len(sums) == count_chunks(int(now[i, 0])) * SUM_BYTES else None

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(read, stale.tolist()))
    facts, sums = table.facts.copy(), list(table.sums)
    for i, each in zip(stale.tolist(), found, strict=True):
        facts[i], sums[i] = (MISSING, b"") if each is None else (now[i], each)
    return Table(table.paths, facts, sums)


def align(table: Table, paths: list[str]) -> Table:
    """Returns a table with these paths, in this order. Files that `table` lacks get facts MISSING and no hashes."""
    if table.paths == paths:
        return table
    row = {path: i for i, path in enumerate(table.paths)}
    at = np.array([row.get(path, -1) for path in paths], np.int64)
    # Files that are not in the table have at = -1: the last row, which is MISSING.
    facts = np.concatenate([table.facts, np.full((1, len(FileFacts._fields)), MISSING)])[at]
    return Table(paths, facts, [table.sums[i] if i >= 0 else b"" for i in at.tolist()])


def read_table(folder: Path, root: Path) -> Table:
    """Returns the table in the cache. It is empty if the cache has none, or a damaged one.

    folder: the table's entry of the cache. root: folder of the data set, for messages.
    """
    # All of it is compared (whole): it is small, and a damaged table would make unchanged data look changed.
    arrays = cache.load_or_say(folder, describe(root), whole=True)
    if arrays is None:
        return Table([], np.empty((0, len(FileFacts._fields)), np.int64), [])
    # A path may hold bytes that are not UTF-8, but no zero byte.
    paths = [os.fsdecode(path) for path in arrays["paths"].tobytes().split(b"\0")]
    content, ends = arrays["sums"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
    sums = [content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return Table(paths, np.array(arrays["facts"]), sums)


def keep_table(folder: Path, root: Path, table: Table) -> None:
    """Writes the table to the cache. If that fails, prints that each start will read all files again.

    folder: the table's entry of the cache. root: folder of the data set, for messages.
    """
    arrays = {
        "paths": np.frombuffer(b"\0".join(map(os.fsencode, table.paths)), np.uint8),
        "facts": table.facts,
        "lengths": np.array([len(each) for each in table.sums], np.int64),
        "sums": np.frombuffer(b"".join(table.sums), np.uint8),
    }
    # Another process may write its table of the same files at the same time. Either table is right.
    try:
        cache.save(folder, arrays, describe(root), replace=True)
    except OSError as error:
        reason = cache.reason_of(error)
        note(f"{describe(root)} can't be kept ({reason}), so all files are read at each start")


def describe(root: Path) -> str:
    """Returns a description of the table of a data set, for messages. root: folder of the data set."""
    return f"sums of the files of {root}"
