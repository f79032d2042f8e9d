"""Explains errors of the operating system that a user can fix, and opens the standard streams of a process."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or ask for a larger quota",
    errno.EROFS: "make it writable, or choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n 1024)",
    errno.ENFILE: "close other programs, since this machine has no more open files",
    errno.ENOMEM: "use less memory, or raise its limit (ulimit -v)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the link that leads to itself",
    errno.ENOTDIR: "remove the file that has the name of a folder",
    errno.EISDIR: "remove the folder that has the name of a file",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the file system again",
    errno.ENOLCK: "choose a place on a file system with locks",
}
"""{number of an error of the operating system that a user can fix: the fix}."""
# Orbax and tensorstore report such an error only in a text: "... "/a/file" No space left on device [os_error_code='28']".
NUMBER_IN_TEXT = re.compile(r"(?:\[OS error |\[Errno |os_error_code=')(\d+)")
PATH_IN_TEXT = re.compile(r"[\"'](/[^\"'\n]+)[\"']")
PHRASES = {
    "can't start new thread": errno.EAGAIN,
    "disk quota exceeded": errno.EDQUOT,
    "cannot allocate memory": errno.ENOMEM,
    "file too large": errno.EFBIG,
    "no space left": errno.ENOSPC,
    "permission denied": errno.EACCES,
    "read-only file system": errno.EROFS,
    "too many open files": errno.EMFILE,
}
"""{lower-case text in the messages of other libraries: number of the error that it names}."""


@contextmanager
def name_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to an OSError in this context that names no file, such as the error of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def explain(error: BaseException) -> str | None:
    """Returns a line about an error that a user can fix: the file, what is wrong, and the fix. None: the error is of another kind.

    The error is an error of the operating system, an error of a library that has one as its cause or in its text, or a lack of
    memory on the host or on an accelerator.
    """
    found = _find_system_error(error)
    if found is not None:
        number, file = found
        return f"{f'{file}: ' if file else ''}{os.strerror(number)}; the fix: {FIXES[number]}"
    # The first line is enough: accelerators list each buffer in the lines after it.
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text):
        return f"out of memory: {text}; the fix: a smaller batch or model, or more devices"
    return None


def _find_system_error(error: BaseException | None) -> tuple[int, object] | None:
    """Returns (number, file or None) of an error of the operating system that a user can fix.

    Searches the error, its cause, and the errors of a group. Returns None if none of them is such an error.
    """
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return (error.errno, error.filename) if error.errno in FIXES else None
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for other in (*inner, error.__cause__):
        if (found := _find_system_error(other)) is not None:
            return found
    # These types come from bugs. Their texts are not searched, because they may quote any text.
    if isinstance(error, TypeError | AttributeError | KeyError | AssertionError):
        return None
    text = str(error)
    match, path = NUMBER_IN_TEXT.search(text), PATH_IN_TEXT.search(text)
    numbers = [int(match[1])] if match else [number for phrase, number in PHRASES.items() if phrase in text.lower()]
    return next(((number, path and path[1]) for number in numbers if number in FIXES), None)


def open_streams() -> None:
    """Opens /dev/null as stdin, stdout and stderr if the process was started without them.

    Otherwise the next file that is opened, such as a log, would get the number of stderr, and messages of other libraries would be
    written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        # It stays open until the process ends.
        setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
