"""Manifests: SHA-256 sums that tell whether each file of a checkpoint is as it was written.

A step without a manifest was not saved completely. One that disagrees with its manifest is damaged. Neither is ever used: Orbax
itself would restore an array with a flipped bit silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from gen import files
from gen.errors import UserError

FORMAT = 1
"""Version of manifest.json and of the checkpoint that it seals."""
MANIFEST = "manifest.json"


def seal(path: Path) -> None:
    """Writes the manifest of a checkpoint whose files are all on the disk."""
    text = json.dumps({"format": FORMAT, "sha256": _sums(path)}, indent=1)
    # In one rename, after the content is safe on the disk: a manifest is complete or missing.
    with open(path / f"{MANIFEST}.tmp", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path / f"{MANIFEST}.tmp", path / MANIFEST)


def is_sealed(path: Path) -> bool:
    """Returns whether a checkpoint has a manifest. Its files are not read."""
    return (path / MANIFEST).exists()


def digest(folder: Path, step: int) -> str:
    """Returns the SHA-256 of a step's manifest, which names each of its files."""
    return hashlib.sha256((folder / str(step) / MANIFEST).read_bytes()).hexdigest()


def damage(folder: Path, step: int) -> str | None:
    """Returns what is wrong with a step, or None if each file is as it was written."""
    path = folder / str(step)
    if not path.is_dir():
        return "there is no such checkpoint"
    try:
        manifest = files.read_json(path / MANIFEST)
        sums, version = manifest["sha256"], manifest["format"]
    except FileNotFoundError:
        return "it has no manifest (the save was interrupted)"
    except (UserError, KeyError, TypeError):
        return "its manifest is damaged"
    if not (isinstance(sums, dict) and isinstance(version, int)):
        return "its manifest is damaged"
    # A later version of gen may have other sums, so this comes before they are compared.
    if version > FORMAT:
        return f"it has format {version}, and this version of gen reads up to {FORMAT}"
    return _difference(sums, _sums(path))


def _difference(sums: dict[str, object], found: dict[str, str]) -> str | None:
    for name in sorted(sums.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in sums:
            return f"{name} was added"
        if sums[name] != found[name]:
            return f"{name} has changed"
    return None


def _sums(path: Path) -> dict[str, str]:
    """Returns {file: SHA-256} of all files below a checkpoint, without the manifest itself."""
    sums = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(MANIFEST):
            with open(file, "rb") as content:
                sums[file.relative_to(path).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return sums


def set_aside(step: Path) -> None:
    """Renames a checkpoint, so that nothing uses it. It is not removed: a person may want to look at it."""
    unsound = step.with_name(f"{step.name}.unsound")
    shutil.rmtree(unsound, ignore_errors=True)
    os.replace(step, unsound)
