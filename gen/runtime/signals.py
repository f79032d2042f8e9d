"""The signals with which a cluster takes its machines back: SIGTERM and SIGUSR1."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gen.errors import REQUEUE, Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def exit_on_signal(grace: float) -> Iterator[None]:
    """Within, a signal ends the process, to be requeued: at once, or where Python isn't running (a compilation, an exchange with a
    host that is gone) or within `noticed`, at most `grace` seconds after it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Requeue(f"{signal.Signals(number).name}: stopped; the same command goes on from the last checkpoint")

    with _bounded(grace), _handled(leave):
        yield


@contextmanager
def notice_signals() -> Iterator[Callable[[], bool]]:
    """Within, a signal ends nothing, nor does the first Ctrl-C; the function says whether one has come."""
    came = False

    def notice(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if number == signal.SIGINT:
            if came:
                raise KeyboardInterrupt
            os.write(2, b"\ninterrupted: it is saved first; once more to stop at once\n")
        came = True

    with _handled(notice, (*SIGNALS, signal.SIGINT)):
        yield lambda: came


@contextmanager
def delay_signals() -> Iterator[None]:
    """Within, a signal waits for the end: an event loop makes of what a handler raises an error of its own."""
    came: list[int] = []
    try:
        with _handled(lambda number, frame: came.append(number)):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], signals: tuple[signal.Signals, ...] = SIGNALS
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _bounded(grace: float) -> Iterator[None]:
    """The process ends `grace` seconds after a signal, whatever its main thread does: handlers run between two steps of
    Python only, so another thread listens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended, (heard, told) = threading.Event(), socket.socketpair()
    told.setblocking(False)

    def watch() -> None:
        while number := heard.recv(1):
            if number[0] in SIGNALS and not ended.wait(grace):
                message = f"the {grace:g} s of --parallel.grace-seconds are over before the state was saved"
                print(f"{message}; the last checkpoint holds", file=sys.stderr, flush=True)
                os._exit(REQUEUE)

    before = signal.set_wakeup_fd(told.fileno())
    watcher = threading.Thread(target=watch, name="preemption", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        told.close()
        watcher.join()
        heard.close()
