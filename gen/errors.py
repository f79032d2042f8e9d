"""Errors that a user can cause, exit statuses, how a command ends, and everything that is printed.

Names of files, classes, tensors and metrics may come from a stranger. So all printing is done by this module. It escapes the
characters that could control the terminal, reorder a line, or begin a new line.
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

# All control characters except tab and newline, because they could control the terminal. Unicode's line separators. Marks that
# change the direction of a text, so that it could be read as another text. Surrogates, which cannot be encoded.
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
    """Checks that each number is finite and above 0. Raises: UserError that names the first number that is not."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}; it must be above 0")


def check_not_negative(**numbers: float) -> None:
    """Checks that each number is finite and at least 0. Raises: UserError that names the first number that is not."""
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} is {value}; it must be at least 0")


def check_finite(**numbers: float) -> None:
    """Checks that each number is finite. Raises: UserError that names the first number that is not."""
    for name, value in numbers.items():
        if not abs(value) < float("inf"):
            raise UserError(f"{name} is {value}; it must be a finite number")


def check_decay(**numbers: float) -> None:
    """Checks that each number is in [0, 1), as decays and dropout rates are. Raises: UserError that names the first that is not."""
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and below 1")


def check_fraction(**numbers: float) -> None:
    """Checks that each number is in [0, 1]. Raises: UserError that names the first number that is not."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must be at least 0 and at most 1")


def check_seed(seed: int) -> int:
    """Returns the seed. Raises: UserError if it is not in [0, 2**32)."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2**32")
    return seed


class End(NamedTuple):
    """How a process ends after a failure."""

    status: int
    """Exit status of the process."""
    message: str | None
    """Message to print. "": nothing is printed. None: the error is a bug, so its traceback is printed."""


def end_of(error: BaseException) -> End:
    """Returns how a process ends after this error."""
    if isinstance(error, UserError):
        return End(2, f"error: {error}")
    if isinstance(error, Requeue):
        return End(REQUEUE, str(error))
    if isinstance(error, KeyboardInterrupt):
        # The error has a text if another host was interrupted, and none after a Ctrl-C.
        usual = "interrupted; the same command continues from the last checkpoint, if there is one"
        return End(INTERRUPTED, str(error) or usual)
    # The reader of a pipe, such as `| head`, has closed it. By convention nothing is printed, and the status is 128 + SIGPIPE.
    if isinstance(error, BrokenPipeError):
        return End(141, "")
    if (line := explain(error)) is not None:
        return End(2, f"error: {line}")
    return End(1, None)


def run_command(main: Callable[[], object], leave: Callable[[int], object] = sys.exit) -> None:
    """Runs the main function of a command. If it fails, prints why, and ends the process with `leave(status)`.

    A user's mistake prints its message, and an error of the system that a user can fix, such as a full disk, prints one line
    (status 2). A bug prints its traceback (status 1). Characters that the terminal cannot show are printed as escapes, such as
    \\u4e16.
    """
    open_streams()
    escape_output()
    try:
        try:
            main()
        except SystemExit:
            _flush()
            raise
        # Inside of the outer `try`: a closed pipe or a full disk may show only when the output is flushed.
        _flush()
    except SystemExit:
        raise
    except BaseException as error:
        leave(_report(error))


def _report(error: BaseException) -> int:
    """Prints the message or the traceback of an error that ends the process, and returns the exit status."""
    status, message = end_of(error)
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        # Without this handler, another Ctrl-C while Python waits for its threads would print their tracebacks.
        signal.signal(signal.SIGINT, lambda *_: os._exit(status))
    # The reader of stderr may be gone, too.
    with suppress(OSError):
        if message:
            note(*message.split("\n"))
        elif message is None:
            note(*"".join(traceback.format_exception(error)).splitlines())
    _flush(quietly=True)
    return status


def _flush(quietly: bool = False) -> None:
    """Writes the text that is still buffered for stdout. Raises: OSError if it can't be written, unless `quietly`."""
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
    """A record of the logging module whose message and traceback are escaped, so that every handler prints escaped text."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        if self.exc_info and self.exc_info[0] is not None:
            # If this text exists, formatters print it instead of the traceback.
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return printable(super().getMessage())


_format_warning = warnings.formatwarning


def _format_escaped(*arguments: Any, **named: Any) -> str:
    return printable(_format_warning(*arguments, **named))


def escape_output() -> None:
    """Makes stdout and stderr print characters that their encoding lacks as escapes. Otherwise printing them would fail.

    From then on, logs and warnings of libraries are also escaped by `printable`.
    """
    for stream in (sys.stdout, sys.stderr):
        # In a notebook, and under some launchers, the streams are objects of other types.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_EscapedRecord)
    warnings.formatwarning = _format_escaped


def say(*lines: str) -> None:
    """Prints lines to stdout, escaped by `printable_line`."""
    print("\n".join(map(printable_line, lines)), flush=True)


def note(*lines: str) -> None:
    """Prints lines to stderr, escaped by `printable_line`. So they do not mix with a command's output on stdout."""
    print("\n".join(map(printable_line, lines)), file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Prints a text, which may have several lines, to stdout, escaped by `printable`. end: printed after the text."""
    print(printable(text), end=end, flush=True)


def printable_line(text: str) -> str:
    """Returns the text as `printable` does, with newlines escaped too."""
    return printable(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """Returns the text with escapes for control characters (except newline and tab), line separators, marks of direction, and
    surrogates.
    """

    def escape(match: re.Match[str]) -> str:
        return match[0].encode("unicode_escape").decode()

    return UNPRINTABLE.sub(escape, text)
