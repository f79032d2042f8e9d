"""Several processes ("hosts"), each with its devices, that train one run: how they meet, agree, and end.

They share a file system. Only the first host writes the run directory; it tells the others what it finds there.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen.errors import REQUEUE, Requeue, UserError, note
from gen.runtime import failures
from gen.runtime.early import in_cluster
from gen.system import explain

SHUTDOWN_SECONDS = 60
"""How long a host waits at its end for the others."""
FAILURE_SECONDS = 2.0
"""How long the first host stays after a failure, so that the others can print theirs: they lose their connection with it."""
LOST = r"(?i)gloo|connection (closed|reset|refused)|coordination|heartbeat|preempted|unavailable|peer|NCCL|barrier"
"""Regular expression for the messages of a runtime that has lost another host."""


def join(coordinator: str | None, hosts: int | None, host: int | None, startup: int, heartbeat: int) -> None:
    """Makes this process one of several hosts, if the cluster or the arguments say so. Call it before JAX starts.

    coordinator: HOST:PORT of host 0. hosts: number of hosts. host: number of this one, from 0. None: as the cluster says (SLURM,
    Open MPI, Kubernetes, Cloud TPU). startup: seconds to wait for the others. heartbeat: seconds that a host may be silent.

    Raises: UserError if the arguments do not name a host; Requeue if the others do not come.
    """
    if not are_several(coordinator, hosts, host):
        return
    if host is None and coordinator is not None and "JOB_COMPLETION_INDEX" in os.environ:
        host = int(os.environ["JOB_COMPLETION_INDEX"])
    jax.config.update("jax_enable_preemption_service", False)  # gen/runtime/signals.py handles the signals
    here = f"this is host {host}" if host is not None else "this is one of them"
    late = (
        f"the hosts did not meet within {startup} s (--parallel.startup-seconds; {here}); was each of them started, and can it "
        f"reach {coordinator or 'host 0'}?"
    )
    with _exit_if_late(startup, late), failures.catch_abort():
        try:
            jax.distributed.initialize(
                coordinator,
                hosts,
                host,
                initialization_timeout=startup + SHUTDOWN_SECONDS,
                heartbeat_timeout_seconds=heartbeat,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except (ValueError, TypeError) as error:
            raise UserError(
                f"JAX found no cluster that it knows ({error}); the fix: --parallel.coordinator HOST:PORT "
                "--parallel.hosts N --parallel.host 0 (to N - 1)"
            ) from None
        except RuntimeError as error:
            raise Requeue(f"{late} {_first_line(error)}") from error
    failures.watch()


def are_several(coordinator: str | None, hosts: int | None, host: int | None) -> bool:
    """Returns whether the arguments of `join`, or the cluster, say that there are several hosts."""
    return not (coordinator is None and hosts is None and host is None) or in_cluster()


@contextmanager
def _exit_if_late(seconds: float, message: str) -> Iterator[None]:
    """Ends the process after `seconds` with a message, to be started again. The runtime's own time-out aborts with a stack."""

    def leave() -> None:
        note(message)
        os._exit(REQUEUE)

    # A thread, because the main thread is inside the runtime.
    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def count() -> int:
    """Returns the number of hosts."""
    return jax.process_count()


def index() -> int:
    """Returns the number of this host, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Returns whether this is the host that writes."""
    return index() == 0


def barrier(what: str) -> None:
    """Waits until every host has called it. what: a name, the same on all hosts."""
    if count() > 1:
        multihost_utils.sync_global_devices(what)


T = TypeVar("T")


def broadcast(make: Callable[[], T]) -> T:
    """Calls `make` on the first host, and returns its result on every host. The result must be JSON, without tuples.

    Raises: UserError on every host if `make` raises it, or finds the disk full or not writable.
    """
    if count() == 1:
        return make()
    content = json.dumps(_call(make) if is_first() else {}).encode()
    # All hosts must pass arrays of one shape. So the length is sent first, and the content is padded to a power of two.
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(1 << length.bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)[: len(padded)]
    message = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length]))
    if "error" in message:
        raise UserError(*message["error"].split("\n"))
    return message["value"]


def _call(make: Callable[[], object]) -> dict[str, object]:
    """Returns {"value": the result} or {"error": the message of a user's error}."""
    try:
        return {"value": make()}
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else explain(error)
        if message is None:
            raise
        return {"error": message}


def gather(value: T) -> list[T]:
    """Returns the values of all hosts, by host. A value must be JSON, without tuples. All hosts call it."""
    if count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # A gather needs arrays of one shape.
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).ravel()
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(content)] = content
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(bytes(row[:length])) for row, length in zip(found, lengths, strict=True)]


@contextmanager
def requeue_if_lost() -> Iterator[None]:
    """Turns the runtime's error into a Requeue if another host is gone. For code in which hosts work together."""
    try:
        yield
    # JaxRuntimeError is a RuntimeError. Orbax wraps it in all three kinds.
    except (RuntimeError, ValueError, TimeoutError) as error:
        if count() == 1 or not re.search(LOST, str(error)):
            raise
        failure = failures.reason()
        raise (failure.error() if failure else Requeue(failures.LOST)) from error


def disconnect() -> None:
    """Ends the connection with the other hosts. Call it when the run is done: a host that is lost then makes no difference.

    If one is lost, this process ends here, by status 0.
    """
    if not jax.distributed.is_initialized():
        return
    _flush()
    failures.stop_watching()
    try:
        jax.distributed.shutdown()
    except RuntimeError:
        # JAX would try it again at the end of Python, and print a traceback.
        exit_process(0)


def exit_process(status: int) -> None:
    """Ends this process. With several hosts it ends at once: a normal exit would wait for the others."""
    host, number = failures.place()
    if number == 1:
        sys.exit(status)
    _flush()
    # The others lose their connection as soon as the first host ends.
    if host == 0:
        time.sleep(FAILURE_SECONDS)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
