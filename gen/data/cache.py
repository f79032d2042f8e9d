"""A cache of arrays that are slow to make and can always be made again. It lies in the user's cache folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gen.files import cache_folder

Arrays = dict[str, np.ndarray]


def load_or_make(key: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays that the cache holds under this key, or makes and saves them.

    The arrays are read-only memory maps of `$XDG_CACHE_HOME/gen/KEY/NAME.npy` (default ~/.cache/gen). If the cache cannot
    be written, the result of `make` is returned as it is.
    """
    folder = cache_folder() / key
    # No lock is needed: folders appear whole, by a rename.
    kept = load(folder)
    if kept is not None:
        return kept
    arrays = make()
    try:
        save(folder, arrays)
    except OSError:
        # A full disk or a read-only home only costs time: the arrays are made again by the next process.
        return arrays
    return load(folder) or arrays


def load(folder: Path) -> Arrays | None:
    """Returns the arrays in a folder as {file name without .npy: array}. None: the folder has none, or one is damaged."""
    try:
        return {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.glob("*.npy"))} or None
    except (OSError, ValueError):  # a file was removed, or cut short by a crash
        return None


def save(folder: Path, arrays: Arrays) -> None:
    """Writes the arrays to a temporary folder and renames it, so that a reader sees all of them or none.

    If two processes write at the same time, one of them wins. Both write the same content.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        # A folder that cannot be loaded is damaged. It would block the rename.
        if load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process has written the folder first
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
