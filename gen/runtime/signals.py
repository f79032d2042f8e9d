"""Signals by which a cluster announces that it takes a machine back: SIGTERM and SIGUSR1."""

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
"""Seconds after a signal in which a process ends that has nothing to save."""


_saves = False
"""Whether a signal is noticed, and the state is saved."""


@contextmanager
def exit_on_signal(grace: float) -> Iterator[None]:
    """Inside this context, a signal raises Requeue.

    Python cannot raise while a compilation or an exchange with a lost host is running. So the process ends `SOON` seconds after the
    signal in any case. `notice_signals` holds the signal back, to save the state. There it has `grace` seconds.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Requeue(f"{signal.Signals(number).name}: stopped; the same command continues from the last checkpoint")

    with _exit_after(grace), _handle(leave):
        yield


@contextmanager
def notice_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether a signal or a Ctrl-C has come. Only a second Ctrl-C ends the process."""
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
    """Inside this context, signals wait for its end. An event loop would turn the Requeue of a handler into another error."""
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
    """Ends the process `grace` seconds after a signal, whatever its main thread does.

    Handlers run between two instructions of Python. So another thread listens: Python writes the number of each signal to the
    socket at once.
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
