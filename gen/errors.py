"""Errors that a user can cause, exit statuses, how a command ends, and everything that is printed.

Names of files, classes, tensors and metrics may come from a stranger. So this module alone prints, and escapes every character that
would control the terminal, reorder a line, or begin another one.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from gen.system import explain, open_streams

# Control characters but tab and newline, which could control the terminal; separators of lines; marks that reverse the order of a
# text, so that it reads as another one; and surrogates, which cannot be encoded.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
REQUEUE = 75
"""Exit status of a run that must be started again (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Exit status after a Ctrl-C."""


class UserError(Exception):
    """A mistake that a user can fix. Its message is short: what is wrong, then the fix. The command exits with status 2.

    Each argument is one line of the message. Names in it are escaped, so a name can't add another line.
    """

    def __str__(self) -> str:
        return "\n".join(printable_line(str(line)) for line in self.args)


class Requeue(BaseException):
    """The run must be started again: its machine was taken back, or another host has ended. Exits with status REQUEUE.

    The same command continues the run. It is a BaseException, as KeyboardInterrupt is, so that no `except Exception` stops it.
    """


def check_positive(**numbers: float) -> None:
    """Raises: UserError for the first named number that is not finite or not above 0."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be above 0")


def check_not_negative(**numbers: float) -> None:
    """Raises: UserError for the first named number that is not finite or below 0."""
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} is {value}; it must be at least 0")


def check_finite(**numbers: float) -> None:
    """Raises: UserError for the first named number that is not finite."""
    for name, value in numbers.items():
        if not abs(value) < float("inf"):
            raise UserError(f"{name} is {value}; it must be a finite number")


def check_decay(**numbers: float) -> None:
    """Raises: UserError for the first named number outside [0, 1), the range of decays and of dropout rates."""
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and below 1")


def check_fraction(**numbers: float) -> None:
    """Raises: UserError for the first named number outside [0, 1]."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and at most 1")


def check_seed(seed: int) -> int:
    """Returns the seed. Raises: UserError if it does not fit in 32 unsigned bits."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    return seed


class End(NamedTuple):
    """How a process ends after a failure."""

    status: int
    """Its exit status."""
    message: str | None
    """One short message. None: nobody expected this error, so its traceback is printed."""


def end_of(error: BaseException) -> End:
    """Returns how a process ends after this error."""
    if isinstance(error, UserError):
        return End(2, f"error: {error}")
    if isinstance(error, Requeue):
        return End(REQUEUE, str(error))
    if isinstance(error, KeyboardInterrupt):
        # It has a text of its own if another host was interrupted.
        usual = "interrupted; the same command continues from the last checkpoint, if there is one"
        return End(INTERRUPTED, str(error) or usual)
    # The reader of a pipe, such as `| head`, has closed it. By convention nothing is said.
    if isinstance(error, BrokenPipeError):
        return End(141, "")
    if (line := explain(error)) is not None:
        return End(2, f"error: {line}")
    return End(1, None)


def run_command(main: Callable[[], object], leave: Callable[[int], object] = sys.exit) -> None:
    """Runs the main function of a command, and ends the process with `leave(status)` if it fails.

    A user's mistake and a full or read-only disk print one line (status 2). A bug prints its traceback (status 1). Characters that
    the terminal cannot show are printed as escapes, such as \\u4e16.
    """
    open_streams()
    escape_output()
    try:
        try:
            main()
        except SystemExit:
            _flush()
            raise
        _flush()
    except SystemExit:
        raise
    except BaseException as error:
        leave(_report(error))


def _report(error: BaseException) -> int:
    """Prints how the process ends after this error, and returns its status."""
    status, message = end_of(error)
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        # Another Ctrl-C while Python waits for its threads would print their tracebacks.
        signal.signal(signal.SIGINT, lambda *_: os._exit(status))
    # Nobody may read stderr either.
    with suppress(OSError):
        if message:
            note(*message.split("\n"))
        elif message is None:
            note(*"".join(traceback.format_exception(error)).splitlines())
    _flush(quietly=True)
    return status


def _flush(quietly: bool = False) -> None:
    """Writes what is left for stdout. Raises: OSError if it can't be written, unless `quietly`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes stdout again at its end, and would print a second error.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not quietly:
            raise


class _EscapedRecord(logging.LogRecord):
    """A message that gen or a library logs, escaped for every handler."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0] is not None:
            # Formatters print this text in the place of the traceback.
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return printable(super().getMessage())


_format_warning = warnings.formatwarning


def _format_escaped(*arguments: Any, **named: Any) -> str:
    return printable(_format_warning(*arguments, **named))


def escape_output() -> None:
    """Lets stdout and stderr print an escape for a character that their encoding does not have, instead of failing.

    Messages of libraries, as logs and warnings, are escaped as gen's own lines are.
    """
    for stream in (sys.stdout, sys.stderr):
        # A notebook and some launchers replace them by other objects.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_EscapedRecord)
    warnings.formatwarning = _format_escaped


def say(*lines: str) -> None:
    """Prints lines to stdout, escaped by `printable_line`."""
    print("\n".join(map(printable_line, lines)), flush=True)


def note(*lines: str) -> None:
    """Prints lines to stderr, escaped by `printable_line`, without mixing with the output of a command."""
    print("\n".join(map(printable_line, lines)), file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Prints a text of any number of lines to stdout, such as one that a model wrote, escaped by `printable`."""
    print(printable(text), end=end, flush=True)


def printable_line(text: str) -> str:
    """Returns the text as `printable` does, with newlines escaped too."""
    return printable(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """Returns the text with control characters (except newline and tab), marks of direction and lone surrogates escaped."""

    def escape(match: re.Match[str]) -> str:
        return match[0].encode("unicode_escape").decode()

    return UNPRINTABLE.sub(escape, text)
