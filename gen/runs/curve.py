"""Writes and reads metrics.jsonl, the metrics of a run by step.

Each checkpoint holds the file's length and SHA-256. So lost or changed lines are noticed before a resumed run adds more lines.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gen.errors import UserError
from gen.files import no_follow
from gen.runs.manifest import damage
from gen.runs.ranking import Facts, read_facts, steps
from gen.system import name_file

METRICS = "metrics.jsonl"
CHUNK_BYTES = 2**20
"""Bytes that are read at a time to hash the file."""


class Mark(NamedTuple):
    """A position in metrics.jsonl, and a hash of the lines before it."""

    bytes: int = 0
    """Number of bytes before the position."""
    sha256: str | None = None
    """SHA-256 of these bytes. None: unknown."""


class Curve:
    """Appends lines to metrics.jsonl, which must exist, and updates its SHA-256 with each line."""

    def __init__(self, path: Path):
        self.path = path
        self.length = path.stat().st_size
        self.sum = _hash(path, self.length)

    def append(self, record: Mapping[str, object]) -> None:
        """Writes a record as one line of JSON."""
        line = (json.dumps(record) + "\n").encode()
        with name_file(self.path), open(self.path, "ab", opener=no_follow) as file:
            file.write(line)
        self.length += len(line)
        self.sum.update(line)

    def end(self) -> Mark:
        """Waits until all lines are safe on the disk. Returns the length and the SHA-256 of the file."""
        with open(self.path, "rb") as file:
            # Otherwise a crash of the machine could lose lines that the checkpoint counts on.
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
        if size != self.length:
            # Another program has written to the file. That is no reason to end the run, so the file is hashed again.
            self.length, self.sum = size, _hash(self.path, size)
        return Mark(self.length, self.sum.hexdigest())


def truncate(path: Path, length: int) -> None:
    """Cuts metrics.jsonl off after `length` bytes. Creates it if it is missing."""
    path.touch()
    os.truncate(path, length)


def check_unchanged(workdir: Path, step: int, facts: Facts) -> None:
    """Checks that metrics.jsonl begins with the lines that it had when the checkpoint of `step` was saved.

    facts: metadata of this checkpoint, with the length and the SHA-256 of these lines.

    Raises: UserError, with the fix, if the file is missing or shorter, or if these lines have changed.
    """
    path, folder = workdir / METRICS, workdir / "checkpoints"
    wrong = _difference(path, facts)
    if wrong is None:
        return
    fix = "restore it from a copy of the run"
    others = [other for other in steps(folder) if other < step and damage(folder, other) is None]
    # The lines of a deterministic run can be computed again, but that takes time, so the user decides.
    agreed = [other for other in others if _difference(path, read_facts(folder, other)) is None]
    if agreed:
        fix += f"; or remove the checkpoints after {agreed[-1]}, with which it agrees, and training goes on from there"
    raise UserError(f"{path} {wrong} checkpoint {step} was saved; the fix: {fix}")


def _difference(path: Path, facts: Facts) -> str | None:
    """Returns how metrics.jsonl has changed since a checkpoint was saved, such as "is shorter than when". None: not."""
    if not facts.metrics_bytes:
        return None
    if not path.exists():
        return "is missing, and was there when"
    if not path.is_file():
        return "is not a file, as it was when"
    if path.stat().st_size < facts.metrics_bytes:
        return "is shorter than when"
    if facts.metrics_sha256 not in (None, _hash(path, facts.metrics_bytes).hexdigest()):
        return "has changed since"
    return None


def _hash(path: Path, length: int) -> Any:
    """Returns a hashlib.sha256 object that was updated with the first `length` bytes of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(min(CHUNK_BYTES, length)):
            found.update(chunk)
            length -= len(chunk)
    return found


def read_split(path: Path, split: str) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl that are about a split, in their order: [{"step": int, metric: float, ...}].

    path: the metrics.jsonl. A last line that is still being written is left out.

    Raises: FileNotFoundError; UserError if such a line is damaged.
    """
    # The last line may not be complete yet while a run trains.
    text, _, _ = path.read_bytes().rpartition(b"\n")
    # Parsing is slow, and most lines are about another split, so the text is searched first.
    wanted = f'"split": "{split}"'.encode()
    found = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if wanted not in line:
            continue
        try:
            row = json.loads(line)
            if row.pop("split") == split:
                found.append({"step": int(row.pop("step")), **{name: float(value) for name, value in row.items()}})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{path}:{number} is damaged; restore the file, or start in another --workdir") from None
    return found


def read_curve(workdir: Path, split: str) -> list[dict[str, Any]]:
    """Returns the `read_split` of a run's metrics.jsonl, after checking the file against the newest checkpoint.

    Raises: UserError if the file is missing or damaged.
    """
    path, folder = workdir / METRICS, workdir / "checkpoints"
    if not path.is_file():
        raise UserError(f"{workdir} has no {METRICS}; copy it from the original run")
    for step in steps(folder)[-1:]:
        if damage(folder, step) is None:
            check_unchanged(workdir, step, read_facts(folder, step))
    return read_split(path, split)
