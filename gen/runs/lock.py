"""Locks a run directory for one process, and checks which of its entries are files and which are folders.

Both the folder itself and the file .lock in it are locked. The folder's lock lasts even if every file in it is removed. The file
is needed because most network file systems can't lock folders.
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
"""Names in a run directory that must be files if they exist."""
FOLDERS = ("checkpoints", "samples", "logs")
"""Names in a run directory that must be folders if they exist."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""Error numbers of a file system that can't lock files, or can't lock folders. They are ignored."""


@contextmanager
def hold_lock(workdir: Path) -> Iterator[None]:
    """Locks an existing run directory for this process, until the context ends.

    Raises: UserError if another process holds the lock, or if the directory has a folder where a run has a file, or a file
    where a run has a folder.
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
        # The file may belong to another user, who has shared the run.
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
