"""The lock of a run directory, and the kinds of its entries.

Two things are locked: the folder itself, whose lock lasts even if every file in it is removed, and the file .lock, because a folder
can't be locked on most network file systems.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gen.errors import UserError
from gen.files import no_follow

LOCK = ".lock"
FILES = (LOCK, "config.json", "spec.json", "tokenizer.json", "reference.npz", "evaluation.json")
FILES += ("metrics.jsonl", "telemetry.jsonl")
"""Entries of a run directory that are files."""
FOLDERS = ("checkpoints", "samples", "logs")
"""Entries of a run directory that are folders."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""Errors of a file system that has no locks, or none for folders."""


@contextmanager
def hold_lock(workdir: Path) -> Iterator[None]:
    """Locks a run directory, which exists, for this process.

    Raises: UserError if another process holds the lock, or as `check_entries`.
    """
    check_entries(workdir)
    with ExitStack() as held:
        for descriptor in (_open_file(workdir / LOCK), os.open(workdir, os.O_RDONLY)):
            held.callback(os.close, descriptor)
            _lock(descriptor, workdir)
        yield


def _open_file(path: Path) -> int:
    try:
        # A network file system locks a file only if it was opened for writing.
        return no_follow(str(path), os.O_CREAT | os.O_RDWR)
    except PermissionError:
        # It may belong to another user, who has shared the run.
        return no_follow(str(path), os.O_RDONLY)


def _lock(descriptor: int, workdir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{workdir} is in use by another process; wait for it, or choose another --workdir") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def check_entries(workdir: Path) -> None:
    """Raises: UserError if a folder is in the place of a run's file, or a file in the place of a run's folder."""
    for name in FILES:
        # A file is written under another name first, and renamed.
        for path in (workdir / name, workdir / f".{name}.tmp"):
            if path.is_dir():
                raise UserError(
                    f"{path} is a folder, but a run has a file there; remove it, or choose another --workdir"
                )
    for name in FOLDERS:
        path = workdir / name
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, but a run has a folder there; remove it, or choose another --workdir")
