"""Manifests of checkpoints: the SHA-256 of each file, which shows whether a file was changed, lost or added.

A checkpoint is written to a folder with a temporary name. Then it is sealed: its manifest is written. Then the folder is renamed to
the step. A checkpoint counts as damaged if it disagrees with its manifest, or was saved at another step or by another run. It is
never used. Orbax itself would restore an array with a flipped bit without an error.
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
"""Suffix of the folder of a checkpoint that is not used any more, because it is damaged or its run had exploded."""
POLL_SECONDS = 0.1
"""Seconds between two searches of `hash_ahead` for new files."""
THREADS = 4
"""Number of files that are hashed at the same time. More than one, because a thread often waits for the disk."""


class _Version(NamedTuple):
    """Identifies the content of a file: if all of these are equal, the file has not been written to. Renames don't change them."""

    device: int
    inode: int
    size: int
    """Bytes."""
    changed: int
    """Time of the last change of the content (mtime), in nanoseconds."""


_hashed: ContextVar[Mapping[_Version, str] | None] = ContextVar(
    "hashed", default=None
)  # {file: SHA-256} that `hash_ahead` has computed in this thread


def seal(path: Path) -> None:
    """Writes the manifest of a complete checkpoint, and waits until all its files are safe on the disk.

    Files that `hash_ahead` has hashed, and that have not changed since, are not read again.
    """
    sums = _sums(path, partial(_sum_once, _hashed.get() or {}))
    text = json.dumps({"format": FORMAT, "sha256": sums}, indent=1)
    # write_bytes renames the file after its content is safe on the disk, so a manifest is complete or missing.
    files.write_bytes(path / MANIFEST, text.encode())
    files.sync_folder(path)


@contextmanager
def hash_ahead(folder: Path, pattern: str) -> Iterator[None]:
    """Hashes the files of a checkpoint in the background, while Orbax writes them. This makes the next `seal` in this thread faster.

    pattern: glob pattern of the checkpoint's folder in `folder`, whose name changes while it is written.
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
    """Returns the files in the folders that match a pattern. []: there are none, or a folder was renamed meanwhile."""
    try:
        return [file for path in folder.glob(pattern) for file in _files(path)]
    except OSError:
        return []


def _version(file: Path) -> _Version:
    facts = file.stat()
    return _Version(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _sum_once(known: Mapping[_Version, str], file: Path) -> str:
    """Syncs a file to the disk, and returns its SHA-256. known: hashes of files that are synced already."""
    return known.get(_version(file)) or _sync_and_sum(file)


def _sync_and_sum(file: Path) -> str:
    """Waits until a file's content is safe on the disk, and returns its SHA-256."""
    with open(file, "rb") as content:
        # Orbax does not sync some of its files, but a sealed checkpoint must survive a crash of the machine.
        os.fsync(content.fileno())
    return _sum(file)


def is_sealed(path: Path) -> bool:
    """Returns whether a checkpoint has a manifest. Its files are not read."""
    return (path / MANIFEST).exists()


def was_sealed(path: Path) -> bool:
    """Returns whether a checkpoint has or had a manifest. A checkpoint that stores its step must have had a manifest.

    Older versions of gen stored no step, and wrote the manifest after the rename. A kill in between left no manifest.
    """
    return os.path.lexists(path / MANIFEST) or owner.read_step(path) is not None


def digest(folder: Path, step: int) -> str:
    """Returns the SHA-256 of a step's manifest, which names each of its files."""
    return hashlib.sha256((folder / str(step) / MANIFEST).read_bytes()).hexdigest()


def damage(folder: Path, step: int) -> str | None:
    """Returns what is wrong with the checkpoint of a step, such as "it is a copy of step 100". None: it is undamaged.

    A checkpoint is undamaged if this run wrote it at this step, and none of its files has changed.
    """
    path = folder / str(step)
    if reason := broken(path):
        return reason
    if (saved := owner.read_step(path)) not in (None, step):
        return f"it is a copy of step {saved}"
    theirs = owner.read_owner(path)
    changed = theirs and owner.changed_file(theirs, folder.parent)
    return f"it was saved with another {changed}" if changed else None


def broken(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files. None: they fit its manifest, whichever run wrote them."""
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
    # Checked before the sums, because a later version of gen may compute them in another way.
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
    """Yields the files of a checkpoint, except the manifest, sorted by path."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and not (file.parent == path and MANIFEST in file.name):
            yield file


def _sums(path: Path, read: Callable[[Path], str]) -> dict[str, str]:
    """Returns {relative path: SHA-256} of all files of a checkpoint, except the manifest. read: computes the SHA-256 of a file."""
    found = list(_files(path))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as pool:
        return dict(zip([file.relative_to(path).as_posix() for file in found], pool.map(read, found), strict=True))


def _sum(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def set_aside(step: Path) -> None:
    """Renames a checkpoint STEP to STEP.unsound, so that nothing uses it. A later save removes it by `remove_aside`."""
    unsound = step.with_name(f"{step.name}{UNSOUND}")
    # os.replace can't replace a folder that is not empty.
    files.remove(unsound)
    os.replace(step, unsound)


def remove_aside(folder: Path, step: int) -> None:
    """Removes the checkpoints of `step` and earlier steps that `set_aside` has renamed, to free disk space."""
    for path in folder.glob(f"*{UNSOUND}"):
        name = path.name.removesuffix(UNSOUND)
        if name.isdecimal() and int(name) <= step:
            files.remove(path)
