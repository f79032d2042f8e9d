"""Handles the signals SIGTERM and SIGUSR1, by which a cluster announces that it will stop the process."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gen.errors import REQUEUE, Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SOON = 3.0
"""Seconds after a signal until a process that has nothing to save is ended."""


_saves = False
"""Whether the process is inside `notice_signals`, so that it saves its state after a signal."""


@contextmanager
def exit_on_signal(grace: float) -> Iterator[None]:
    """Inside this context, SIGTERM or SIGUSR1 raises Requeue, which ends the process.

    Python cannot raise an exception while a compilation or an exchange with a lost host is running. So the process is
    ended `SOON` seconds after the signal in any case. Inside `notice_signals`, a signal raises nothing, so that the
    state can be saved, and the process is ended `grace` seconds after the signal.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Requeue(f"{signal.Signals(number).name}: stopped; the same command continues from the last checkpoint")

    with _exit_after(grace), _handle(leave):
        yield


@contextmanager
def notice_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM, SIGUSR1 or Ctrl-C has come inside this context.

    SIGTERM and SIGUSR1 raise nothing, and neither does a first Ctrl-C, so that the state can be saved. A Ctrl-C after any of
    these signals raises KeyboardInterrupt.
    """
    global _saves
    came = False

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if number == signal.SIGINT:
            if came:
                raise KeyboardInterrupt
            # print() is not safe in a signal handler: the main thread may hold the lock of stderr.
            os.write(2, b"\ninterrupted: saving first; press Ctrl-C again to stop at once\n")
        came = True

    with _handle(notice, (*SIGNALS, signal.SIGINT)):
        _saves = True
        try:
            yield lambda: came
        finally:
            _saves = False


@contextmanager
def delay_signals() -> Iterator[None]:
    """Delays SIGTERM and SIGUSR1 until the end of this context.

    Use it around an event loop, which would turn a handler's Requeue into another error.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    try:
        with _handle(remember):
            yield
    finally:
        # The previous handlers are installed again, so they receive the signals.
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _handle(
    handler: Callable[[int, FrameType | None], None], signals: tuple[signal.Signals, ...] = SIGNALS
) -> Iterator[None]:
    # Python runs signal handlers in the main thread only, and lets only that thread set them.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _exit_after(grace: float) -> Iterator[None]:
    """Ends the process after a signal, even if its main thread is blocked: after `grace` seconds, or `SOON` if it saves nothing.

    Python runs signal handlers only between two instructions of Python, but writes the number of a signal to a socket at once. So a
    thread reads this socket.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, (heard, sent) = threading.Event(), socket.socketpair()
    # Required by set_wakeup_fd: the handler must never wait.
    sent.setblocking(False)

    def watch() -> None:
        while number := heard.recv(1):
            name, seconds = signal.Signals(number[0]).name, grace if _saves else SOON
            if number[0] in SIGNALS and not ended.wait(seconds):
                over = (
                    f"the {grace:g} s of --parallel.grace-seconds are over, and the state is not saved"
                    if _saves
                    else "stopped"
                )
                # Not print(): the main thread may hold the lock of stderr.
                os.write(2, f"{name}: {over}; the same command continues from the last checkpoint\n".encode())
                os._exit(REQUEUE)

    before = signal.set_wakeup_fd(sent.fileno())
    watcher = threading.Thread(target=watch, name="preemption", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        # Closing the sending end makes `recv` return nothing, so the watcher ends by itself.
        ended.set()
        sent.close()
        watcher.join()
        heard.close()
