"""The signals with which a cluster takes its machines back: SIGTERM and SIGUSR1."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gen.core import REQUEUE, Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def noticed(grace: float) -> Iterator[Callable[[], bool]]:
    """Within, a signal ends nothing; the function says whether one has come. If the process is still there `grace` seconds
    after it, it ends as it is, to be requeued."""
    came = threading.Event()

    def overdue() -> None:
        message = f"the {grace:g} s of --parallel.grace-seconds are over before the state was saved; the last checkpoint holds"
        print(message, file=sys.stderr, flush=True)
        os._exit(REQUEUE)

    timer = threading.Timer(grace, overdue)
    timer.daemon = True

    def notice(number: int, frame: FrameType | None) -> None:
        if not came.is_set():
            came.set()
            timer.start()

    with _handled(notice):
        try:
            yield came.is_set
        finally:
            timer.cancel()


@contextmanager
def leaving() -> Iterator[None]:
    """Within, a signal ends the process at once, to be requeued: there is nothing to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Requeue(f"{signal.Signals(number).name}: stopped; the same command goes on from the last checkpoint")

    with _handled(leave):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
