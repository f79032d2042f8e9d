"""Errors that a user can cause, exit statuses, and how a command ends."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
USER_ERRNOS += (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)  # of a path that was named


REQUEUE = 75
"""Exit status of a run that was stopped and wants to be started again (EX_TEMPFAIL)."""


class UserError(Exception):
    """A mistake of the person at the terminal: a short message that names the thing and the fix. Exit status 2."""


class Requeue(BaseException):
    """Nobody's mistake: a machine was taken back, or another host is gone. The same command goes on. Exit status REQUEUE. As
    KeyboardInterrupt, it is no Exception: nothing on the way may take it for one."""


def check_positive(**numbers: float) -> None:
    """Raises UserError for the first of the named numbers that is not finite and above zero."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be above 0")


def check_seed(seed: int) -> int:
    """Raises UserError for a seed that is no uint32."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    return seed


def run_command(main: Callable[[], None], leave: Callable[[int], Any] = sys.exit) -> None:
    """Run an entry point: a person's mistake or a full or read-only disk is one line and exit status 2, a bug keeps its
    traceback. leave: how the process ends if it fails."""
    try:
        main()
    except UserError as error:
        leave(_fail(f"error: {error}"))
    except Requeue as stop:
        _fail(str(stop))
        leave(REQUEUE)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(141)
    except MemoryError as error:
        leave(_fail(f"error: out of memory: {error}"))
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint, if there is one")
        leave(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USER_ERRNOS:
            leave(_fail(f"error: {error.filename or 'writing'}: {error.strerror}"))
        traceback.print_exc()
        leave(1)


def _fail(message: str) -> int:
    print(printable(message), file=sys.stderr, flush=True)
    return 2


def printable(text: str) -> str:
    """The text with what would command a terminal (control characters but newline and tab), or can't be encoded, escaped."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
