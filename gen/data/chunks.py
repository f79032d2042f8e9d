"""SHA-256 hashes of the chunks (1 MiB) of a file. With them, a few chunks of a large file can be checked alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.files import check_regular

CHUNK_BYTES = 2**20
"""Bytes of a chunk. The last chunk of a file may be shorter."""
SUM_BYTES = 32
"""Bytes of a SHA-256."""
SAMPLE_CHUNKS = 128
"""Number of random chunks of a cached entry, or of a set of files, that each start compares. Each start draws other chunks."""


class FileFacts(NamedTuple):
    """Size, times and inode of a file, from os.stat. If they are unchanged, very probably the content is unchanged."""

    size: int
    """Number of bytes."""
    changed: int
    """Time of the last change of the content (mtime), in nanoseconds. Programs that copy files can set it."""
    touched: int
    """Time of the last change of the content or of the file's metadata (ctime), in nanoseconds. No program can set it."""
    number: int
    """Inode number."""


def facts_of(stat: os.stat_result) -> FileFacts:
    """Returns the FileFacts in a result of os.stat."""
    return FileFacts(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def count_chunks(size: int) -> int:
    """Returns the number of chunks of a file of `size` bytes. A chunk has CHUNK_BYTES, the last one may have fewer."""
    return -(-size // CHUNK_BYTES)


def chunk_sums(path: Path) -> bytes:
    """Returns the SHA-256 of each chunk of a file, one after the other, SUM_BYTES (32) each.

    Raises: OSError; UserError if it is not a regular file.
    """
    check_regular(path)
    sums = []
    # Without a buffer: each read is a whole chunk already.
    with open(path, "rb", buffering=0) as file:
        while content := file.read(CHUNK_BYTES):
            sums.append(hashlib.sha256(content).digest())
    return b"".join(sums)


def find_wrong(path: Path, sums: bytes, chosen: Iterable[int]) -> int | None:
    """Returns the index of the first of the chosen chunks whose SHA-256 is not as in `sums`. None: no chunk differs.

    sums: expected hashes of all chunks of the file, as from `chunk_sums`. chosen: indices of the chunks to read.

    Raises: OSError; UserError if it is not a regular file.
    """
    check_regular(path)
    # Chunks are read whole and at random places, so a buffer would only read ahead in vain.
    with open(path, "rb", buffering=0) as file:
        for chunk in chosen:
            file.seek(chunk * CHUNK_BYTES)
            sum_ = hashlib.sha256(file.read(CHUNK_BYTES)).digest()
            if sum_ != sums[chunk * SUM_BYTES : (chunk + 1) * SUM_BYTES]:
                return chunk
    return None


def draw_chunks(counts: np.ndarray) -> dict[int, list[int]]:
    """Draws SAMPLE_CHUNKS random chunks from N files together, or takes all chunks if there are fewer.

    Returns {index of a file: sorted indices of its drawn chunks}. Files without drawn chunks are left out.

    counts: number of chunks of each file, int64 [N]. The draw does not depend on the seed of a run, and differs between
    calls.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    # Sorted, so that each file is opened once and read forwards.
    drawn = np.arange(total)
    if total > SAMPLE_CHUNKS:
        drawn = np.sort(np.random.default_rng().choice(total, SAMPLE_CHUNKS, replace=False))
    # Empty files have no chunks: "right" skips them.
    found: dict[int, list[int]] = {}
    for chunk, file in zip(drawn.tolist(), np.searchsorted(ends, drawn, side="right").tolist(), strict=True):
        found.setdefault(file, []).append(chunk - int(ends[file] - counts[file]))
    return found
