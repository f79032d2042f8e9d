"""The cache of compiled programs. JAX reads and writes it through this class, which stores a hash with each program.

JAX's own cache writes files in place and without hashes. If a process is killed while it writes, the incomplete file is never
replaced. A program with a flipped byte may be run, and a pipe blocks the reader. Here a file appears whole, by a rename, and a program
is compared with its hash when it is read. If a program is damaged, a message is printed, and the program is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from gen import files
from gen.data import limit
from gen.data.cache import reason_of
from gen.errors import UserError, note

SUM_BYTES = 32
"""Bytes of the SHA-256 in front of a program."""


class Programs:
    """A folder of compiled programs, with the methods that JAX calls. A file KEY-cache holds the SHA-256 of a program, then the program."""

    def __init__(self, folder: Path):
        self._path = folder  # the name that JAX declares
        self._is_trimmed = False

    def get(self, key: str) -> bytes | None:
        """Returns a program. None: the program is not in the cache, or it is damaged. A damaged program is removed, with a message."""
        path = self._path / f"{key}-cache"
        try:
            content = files.read_bytes(path)
            sum_, program = content[:SUM_BYTES], content[SUM_BYTES:]
            if hashlib.sha256(program).digest() != sum_:
                raise UserError(f"{path} does not match its hash" if content else f"{path} is empty")
        except FileNotFoundError:
            return None
        except (OSError, UserError) as error:
            note(f"the cache of compiled programs is damaged ({reason_of(error)}); the program is compiled again")
            with contextlib.suppress(OSError):
                _remove_program(path)
            return None
        with contextlib.suppress(OSError):  # the modification time is the time of the last use
            os.utime(path)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Writes a program to the cache. If the cache can't be written, nothing happens, and the next start compiles it again."""
        with contextlib.suppress(OSError):
            limit.make_folder(self._path, note)
            files.write_bytes(self._path / f"{key}-cache", hashlib.sha256(value).digest() + value)
            if not self._is_trimmed:
                # Once in a process: listing the cache takes longer than writing a small program.
                self._is_trimmed = True
                limit.trim(self._path.parent)


def _remove_program(path: Path) -> None:
    """Removes a damaged program, or whatever else is in its place. Raises: OSError."""
    if path.is_file() and not path.is_symlink():
        # A file of this name is a program that gen wrote, so it is not kept under another name.
        path.unlink()
    else:
        limit.clear_away(path, note)


def keep_programs(folder: Path) -> None:
    """Makes JAX read and write its compilation cache through `Programs` if the cache is in `folder`.

    For a cache in another folder, or if this version of JAX lacks the function that is replaced here, JAX's own cache
    is used, without hashes.
    """
    try:
        # A private module, but the only place where JAX makes its cache.
        from jax._src import compilation_cache

        original = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return

    def get_file_cache(path: str) -> Any:
        return (Programs(folder), path) if path == str(folder) else original(path)

    compilation_cache.get_file_cache = get_file_cache
