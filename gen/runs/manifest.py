"""Manifests: SHA-256 sums that tell whether each file of a checkpoint is as it was written.

A checkpoint is written in a folder with another name, sealed by a manifest, and then renamed to its step. A step that disagrees
with its manifest, or was saved at another step or by another run, counts as damaged. It is never used: Orbax itself would restore an
array with a flipped bit silently.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from gen import files
from gen.errors import UserError
from gen.runs import owner

FORMAT = 1
"""Version of manifest.json and of the checkpoint that it seals."""
MANIFEST = "manifest.json"
UNSOUND = ".unsound"
"""Ending of the name of a checkpoint that was set aside."""
POLL_SECONDS = 0.1
"""Seconds between two searches for files that have been written."""
THREADS = 4
"""Files that are hashed at a time. Some of the threads wait for the disk."""


class _Version(NamedTuple):
    """A file that was not written to since it was hashed. A rename of its folder keeps all of these."""

    device: int
    inode: int
    size: int
    changed: int
    """Time of the last change of its content, in nanoseconds."""


_hashed: ContextVar[Mapping[_Version, str] | None] = ContextVar(
    "hashed", default=None
)  # what `hash_ahead` has computed


def seal(path: Path) -> None:
    """Writes the manifest of a checkpoint whose files are all written. In the end all of it is on the disk.

    Files that `hash_ahead` has hashed, and that have not changed since, are not read again.
    """
    sums = _sums(path, partial(_sum_once, _hashed.get() or {}))
    text = json.dumps({"format": FORMAT, "sha256": sums}, indent=1)
    # In one rename, after the content is safe on the disk: a manifest is complete or missing.
    files.write_bytes(path / MANIFEST, text.encode())
    files.sync_folder(path)


@contextmanager
def hash_ahead(folder: Path, pattern: str) -> Iterator[None]:
    """Hashes the files of a checkpoint while they are written, for the next `seal` in this thread.

    pattern: names of the folders, in `folder`, in which it may be written meanwhile.
    """
    hashed: dict[_Version, str] = {}
    _hashed.set(hashed)
    written = Event()

    def hash_one(file: Path) -> None:
        # The file, or its folder, may be renamed at any time.
        with suppress(OSError):
            before = _version(file)
            if not written.is_set() and before not in hashed:
                found = _sync_and_sum(file)
                # A file that is still being written is hashed again later.
                if _version(file) == before:
                    hashed[before] = found

    def work() -> None:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="hash-ahead") as pool:
            while not written.wait(POLL_SECONDS):
                list(pool.map(hash_one, _files_so_far(folder, pattern)))

    thread = Thread(target=work, name="hash-ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        written.set()
        thread.join()


def _files_so_far(folder: Path, pattern: str) -> list[Path]:
    """Returns the files in folders of a pattern. []: such a folder is being renamed."""
    try:
        return [file for path in folder.glob(pattern) for file in _files(path)]
    except OSError:
        return []


def _version(file: Path) -> _Version:
    facts = file.stat()
    return _Version(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _sum_once(known: Mapping[_Version, str], file: Path) -> str:
    """Returns the SHA-256 of a file, which is on the disk then. known: sums of files that are."""
    return known.get(_version(file)) or _sync_and_sum(file)


def _sync_and_sum(file: Path) -> str:
    with open(file, "rb") as content:
        # Orbax leaves some of its files to the system's cache, and a manifest promises that they survive a crash.
        os.fsync(content.fileno())
    return _sum(file)


def is_sealed(path: Path) -> bool:
    """Returns whether a checkpoint has a manifest. Its files are not read."""
    return (path / MANIFEST).exists()


def was_sealed(path: Path) -> bool:
    """Returns whether a checkpoint has, or once had, a manifest.

    Older versions of gen wrote the manifest after the rename, so a kill between the two left a step without one.
    """
    return os.path.lexists(path / MANIFEST) or owner.read_step(path) is not None


def digest(folder: Path, step: int) -> str:
    """Returns the SHA-256 of a step's manifest, which names each of its files."""
    return hashlib.sha256((folder / str(step) / MANIFEST).read_bytes()).hexdigest()


def damage(folder: Path, step: int) -> str | None:
    """Returns what is wrong with a step, or None if it is as it was written, at this step and for this run."""
    path = folder / str(step)
    if reason := broken(path):
        return reason
    if (saved := owner.read_step(path)) not in (None, step):
        return f"it is a copy of step {saved}"
    theirs = owner.read_owner(path)
    changed = theirs and owner.changed_file(theirs, folder.parent)
    return f"it was saved with another {changed}" if changed else None


def broken(path: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, or None if each is as it was written."""
    if not path.is_dir():
        return "there is no such checkpoint"
    try:
        manifest = files.read_json(path / MANIFEST)
        sums, version = manifest["sha256"], manifest["format"]
    except FileNotFoundError:
        return "it has no manifest (the save was interrupted, or the file was lost)"
    except (UserError, KeyError, TypeError):
        return "its manifest is damaged"
    if not (isinstance(sums, dict) and type(version) is int and version > 0):
        return "its manifest is damaged"
    # A later version of gen may have other sums, so this comes before they are compared.
    if version > FORMAT:
        return f"it has format {version}, and this version of gen reads up to {FORMAT}"
    try:
        return _difference(sums, _sums(path, _sum))
    except OSError as error:
        return f"{error.filename or 'a file'} can't be read: {error.strerror}"


def _difference(sums: dict[str, object], found: dict[str, str]) -> str | None:
    for name in sorted(sums.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in sums:
            return f"{name} was added"
        if sums[name] != found[name]:
            return f"{name} has changed"
    return None


def _files(path: Path) -> Iterator[Path]:
    """Yields the files of a checkpoint without the manifest itself, in order of their names."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and not (file.parent == path and MANIFEST in file.name):
            yield file


def _sums(path: Path, read: Callable[[Path], str]) -> dict[str, str]:
    """Returns {file: SHA-256} of all files below a checkpoint, without the manifest itself."""
    found = list(_files(path))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as pool:
        return dict(zip([file.relative_to(path).as_posix() for file in found], pool.map(read, found), strict=True))


def _sum(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def set_aside(step: Path) -> None:
    """Renames a checkpoint, so that nothing uses it. A person may want to look at it, so it stays until a later step is sealed."""
    unsound = step.with_name(f"{step.name}{UNSOUND}")
    files.remove(unsound)
    os.replace(step, unsound)


def remove_aside(folder: Path, step: int) -> None:
    """Removes the checkpoints that were set aside at a step or before it. Each is as large as a checkpoint."""
    for path in folder.glob(f"*{UNSOUND}"):
        name = path.name.removesuffix(UNSOUND)
        if name.isdecimal() and int(name) <= step:
            files.remove(path)
