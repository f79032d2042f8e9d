"""Arrays that are slow to make and can always be made again, kept in the user's cache folder and mapped from there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gen.files import cache_folder

Arrays = dict[str, np.ndarray]


def cached(key: str, make: Callable[[], Arrays]) -> Arrays:
    """`make()`, or what it returned when it was last called with this key. A cache that can't be written is no error.

    The arrays are read-only maps of `$XDG_CACHE_HOME/gen/KEY/NAME.npy` (default ~/.cache), paged in as they are used.
    """
    folder = cache_folder() / key
    kept = load(folder)
    if kept is not None:
        return kept
    arrays = make()
    try:
        save(folder, arrays)
    except OSError:
        return arrays
    return load(folder) or arrays


def load(folder: Path) -> Arrays | None:
    try:
        return {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.glob("*.npy"))} or None
    except (OSError, ValueError):  # a file is gone, or cut off by a crash
        return None


def save(folder: Path, arrays: Arrays) -> None:
    """Written aside and renamed: a reader sees all or nothing, and of two writers, who write the same, one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array)
        if load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another writer was there first
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
