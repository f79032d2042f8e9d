"""If a host fails, ends all other hosts at once, with one line that gives the reason, and with the same exit status.

A host that fails writes its reason to the key-value store of JAX's distributed runtime. On each other host, a thread looks for it.
If a host becomes silent instead, because it was killed, stalled, or cut off, JAX's runtime would abort the other processes with stack
traces of its C++ code. `catch_abort` makes them end with status 75 instead.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn

from jax._src import distributed
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from gen.errors import INTERRUPTED, REQUEUE, Requeue, UserError, end_of, printable

KEY = "gen/failure"
LOST = "another host has ended, or can't be reached; the same command on all hosts continues from the last checkpoint"
WAIT_SECONDS = 1.0
"""Seconds that a host waits to send its own failure, or to receive the reason of a host that it has lost."""
OWN_SECONDS = 10.0
"""Seconds in which a host that knows of another host's failure may end by itself: it may fail for the same reason, or have files to
close."""
POLL_SECONDS = 0.5
"""Minimum seconds between two requests of a host for the reason of a failure."""
MAX_REQUESTS = 400
"""Largest number of requests for the reason of a failure per second, of all hosts together."""


class Failure(NamedTuple):
    """Why a host failed: the record that it stores for the other hosts. Not an exception."""

    host: int
    status: int
    """Exit status. 2: a mistake that the user must correct. REQUEUE or INTERRUPTED: the run can continue."""
    message: str

    def error(self) -> BaseException:
        """Returns the error that ends this host for the same reason."""
        kinds = {REQUEUE: Requeue, INTERRUPTED: KeyboardInterrupt}
        return kinds.get(self.status, UserError)(f"host {self.host}: {self.message}")


class _Shared:
    """Facts about failures that the threads of this process share."""

    def __init__(self):
        self.failure: Failure | None = None
        self.known = threading.Event()
        # Whether this process has ended without a failure.
        self.ended = threading.Event()
        self.watcher: threading.Thread | None = None
        # The first thread that ends the process takes this lock and keeps it, so that only one reason is printed.
        self.ending = threading.Lock()


_shared = _Shared()


def reason() -> Failure | None:
    """Waits up to WAIT_SECONDS for the failure of another host, and returns it. None: no host gave a reason."""
    _shared.known.wait(WAIT_SECONDS)
    return _shared.failure


@contextmanager
def tell_failure() -> Iterator[None]:
    """Sends an error that leaves this context to the other hosts as the reason of a failure. With one host, it does nothing."""
    try:
        yield
    except BaseException as error:
        client = _client()
        if client is None or isinstance(error, SystemExit):
            raise
        if not _shared.ending.acquire(blocking=False):
            # Another thread has printed the reason, and ends the process.
            time.sleep(OWN_SECONDS)
        status, message = end_of(error)
        if message is None:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
        short = message.removeprefix("error: ") or "its output was closed"
        _publish(client, Failure(place()[0], status if status in (REQUEUE, INTERRUPTED) else 2, short))
        raise


def _publish(client: Any, failure: Failure) -> None:
    """Writes the failure of this host to the key-value store, unless another host has failed before."""

    def publish() -> None:
        # A key is written once: the first failure is the reason of the others.
        with suppress(Exception):
            client.key_value_set(KEY, json.dumps(failure))

    # The store is on the first host. If that host is gone, the request would wait for it, so it runs in a thread.
    writer = threading.Thread(target=publish, daemon=True)
    writer.start()
    writer.join(WAIT_SECONDS)


def place() -> tuple[int, int]:
    """Returns (number of this host from 0, number of hosts). Unlike jax.process_index(), it does not start JAX's backend."""
    return distributed.global_state.process_id, distributed.global_state.num_processes


def watch() -> None:
    """Starts a thread that looks for the failure of another host.

    After a failure, this process has OWN_SECONDS to end by itself. Then the thread ends it, for the same reason.
    """
    _shared.watcher = threading.Thread(target=_watch, name="failures", daemon=True)
    _shared.watcher.start()
    atexit.register(stop_watching)


def stop_watching() -> None:
    """Ends the thread of `watch`. If another host is lost after this, this process ends with status 0.

    Call it before JAX frees its client, because the thread uses the client.
    """
    _shared.ended.set()
    if _shared.watcher is not None:
        _shared.watcher.join()


def _watch() -> None:
    client = _client()
    # The requests of all hosts go to the first host, so with many hosts each asks less often.
    pause = max(POLL_SECONDS, place()[1] / MAX_REQUESTS)
    while not _shared.ended.wait(pause):
        # Usually there is no such key, and the request raises an error. If the connection is lost, the runtime ends this process.
        with suppress(Exception):
            failure = Failure(*json.loads(client.key_value_try_get(KEY)))
            break
    else:
        return
    if failure.host == place()[0]:
        return
    _shared.failure = failure
    _shared.known.set()
    if not _shared.ended.wait(OWN_SECONDS):
        end = end_of(failure.error())
        _end(end.status, end.message)


def _end(status: int, message: str | None) -> NoReturn:
    """Prints the message and ends the process, from a thread that is not the main thread.

    If another thread is ending the process already, waits OWN_SECONDS first, so that only that thread prints a reason.
    """
    if not _shared.ending.acquire(blocking=False):
        time.sleep(OWN_SECONDS)
    if message is not None:
        with suppress(OSError):
            os.write(2, f"{printable(message)}\n".encode(errors="backslashreplace"))
    os._exit(status)


def _client() -> Any:
    """Returns the client of JAX's distributed runtime, None if there is one host."""
    return distributed.global_state.client


@contextmanager
def catch_abort() -> Iterator[None]:
    """Makes this process end with status 75 if it loses another host, also after the context.

    JAX's distributed runtime must be started inside the context. By default it aborts the process when it loses a host. It
    accepts a callback instead, but a Python function can't be called: its argument has a C++ type without a Python type. The call
    raises std::bad_cast in a thread of the runtime, where nothing catches it, so C++ calls its terminate handler. So this handler
    is replaced, and ends the process.
    """
    # A later version of JAX may have another name for this function. Then the process is aborted, as without this context.
    start: Callable[..., Any] | None = getattr(_jax, "get_distributed_runtime_client", None)
    if start is None or not _handle_bad_cast():
        yield
        return
    _jax.get_distributed_runtime_client = partial(start, missed_heartbeat_callback=_lost)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = start


def _lost(*status: object) -> None:
    """Ends the process because the runtime has lost another host. It runs in a thread of the runtime."""
    if _shared.ended.is_set():
        _end(0, None)
    # If the lost host has sent a reason, it says more than LOST.
    failure = reason()
    end = end_of(failure.error() if failure else Requeue(LOST))
    _end(end.status, end.message)


_Handler = ctypes.CFUNCTYPE(None)
_kept: list[object] = []
"""References that keep handlers alive. C++ keeps only the address of a handler."""


def _handle_bad_cast() -> bool:
    """Makes C++ call `_lost` for an uncaught std::bad_cast. Returns whether that is possible with this C++ library."""
    library = "libc++abi.dylib" if sys.platform == "darwin" else "libstdc++.so.6"
    try:
        cpp = ctypes.CDLL(library)
        set_terminate, type_of_exception = cpp["_ZSt13set_terminatePFvvE"], cpp["__cxa_current_exception_type"]
    except (OSError, AttributeError):
        return False
    set_terminate.argtypes, set_terminate.restype = [_Handler], ctypes.c_void_p
    type_of_exception.restype = ctypes.POINTER(ctypes.c_char_p)

    def handle() -> None:
        # A std::type_info has the pointer to its functions, then the pointer to its name.
        found = type_of_exception()
        if found and found[1] == b"St8bad_cast":
            _lost()
        before()

    handler = _Handler(handle)
    before = _Handler(set_terminate(handler))
    # ctypes frees a callback that nothing refers to, and C++ would then call freed memory.
    _kept.append(handler)
    # Python code can't run any more when the process has ended.
    atexit.register(set_terminate, before)
    return True
