"""Several processes ("hosts") that train one run together, each with its devices: how they connect, exchange values, and end.

They share a file system. Only the first host writes the run directory, and sends its content to the others where they need it.
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
"""Seconds that a host waits for the others when it ends."""
FAILURE_SECONDS = 2.0
"""Seconds that the first host waits before it ends after a failure. The others lose their connection when it ends, and must print their
reasons before."""
LOST = r"(?i)gloo|connection (closed|reset|refused)|coordination|heartbeat|preempted|unavailable|peer|NCCL|barrier"
"""Regular expression that matches the error messages of the runtime if it has lost another host."""


def join(coordinator: str | None, hosts: int | None, host: int | None, startup: int, heartbeat: int) -> None:
    """Makes this process one of several hosts, if the cluster or the arguments say so. Call it before JAX starts.

    coordinator: HOST:PORT of host 0. hosts: number of hosts. host: number of this host, from 0. None: the value is read from the cluster
    (SLURM, Open MPI, Kubernetes, Cloud TPU). startup: seconds to wait for the other hosts. heartbeat: seconds that a host may be silent
    before it counts as lost.

    Raises: UserError if neither the arguments nor a cluster give these values; Requeue if the other hosts can't be reached.
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
                # Longer than `_exit_if_late` waits, so that its message comes first.
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
    """Returns whether there are several hosts: an argument of `join` is given, or a cluster started this process as one of several."""
    return not (coordinator is None and hosts is None and host is None) or in_cluster()


@contextmanager
def _exit_if_late(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with a message and status REQUEUE if the block takes longer than `seconds`.

    The time-out of the runtime itself would abort the process with a stack trace.
    """

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
    """Returns whether this is host 0, the only host that writes the run directory."""
    return index() == 0


def barrier(what: str) -> None:
    """Waits until every host has called this function. what: name of the barrier, the same on all hosts."""
    if count() > 1:
        multihost_utils.sync_global_devices(what)


T = TypeVar("T")


def broadcast(make: Callable[[], T]) -> T:
    """Calls `make` on the first host, and returns its result on every host. Call it on all hosts.

    The result must consist of JSON values, without tuples.

    Raises: UserError on every host if `make` raises a UserError, or an error of the system such as a full disk.
    """
    if count() == 1:
        return make()
    content = json.dumps(_call(make) if is_first() else {}).encode()
    # All hosts must pass arrays of the same shape. So the length is sent first, and the content is padded to a power of two.
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(1 << length.bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)[: len(padded)]
    message = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length]))
    if "error" in message:
        raise UserError(*message["error"].split("\n"))
    return message["value"]


def _call(make: Callable[[], object]) -> dict[str, object]:
    """Returns {"value": result of `make`}, or {"error": message} for an error that is explained to the user."""
    try:
        return {"value": make()}
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else explain(error)
        if message is None:
            raise
        return {"error": message}


def gather(value: T) -> list[T]:
    """Returns the values of all hosts, in their order. Call it on all hosts. A value must consist of JSON values, without tuples."""
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
    """Turns an error of JAX's runtime about a lost host into the error with which that host failed.

    If that host gave no reason, raises Requeue instead. Other errors pass unchanged.
    """
    try:
        yield
    # JaxRuntimeError is a RuntimeError. Orbax may raise it as any of these three.
    except (RuntimeError, ValueError, TimeoutError) as error:
        # Not `count`, which starts JAX if it has not started yet.
        if failures.place()[1] == 1 or not re.search(LOST, str(error)):
            raise
        failure = failures.reason()
        raise (failure.error() if failure else Requeue(failures.LOST)) from error


def disconnect() -> None:
    """Ends the connection with the other hosts. Call it when the run is done.

    If another host is lost by now, this process ends here with status 0, because the run is complete.
    """
    if not jax.distributed.is_initialized():
        return
    _flush()
    failures.stop_watching()
    try:
        jax.distributed.shutdown()
    except RuntimeError:
        # At the exit of Python, JAX would try to shut down again, and print a traceback.
        exit_process(0)


def exit_process(status: int) -> None:
    """Ends this process with an exit status. With one host it exits normally.

    With several hosts it ends without the normal exit, which would wait for the other hosts. The first host waits
    FAILURE_SECONDS before.
    """
    host, number = failures.place()
    if number == 1:
        sys.exit(status)
    _flush()
    # The others lose their connection as soon as the first host ends, so it waits until they have printed their reasons.
    if host == 0:
        time.sleep(FAILURE_SECONDS)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
