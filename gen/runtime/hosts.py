"""Several processes, each with devices of its own, that train one run: how they meet, who writes, and how they part.

They share a file system. The first host alone writes the run directory; what it finds there it tells the others.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gen.errors import REQUEUE, USER_ERRNOS, Requeue, UserError

GOOGLE = "0x1ae0"  # who makes TPUs, on the PCI bus
SHUTDOWN = 60  # seconds that a host waits at its end for the others
LAST_WORDS = 2.0  # seconds that the first host stays after a failure, so that the others can say theirs
LOST = r"(?i)gloo|connection (closed|reset|refused)|coordination|heartbeat|preempted|unavailable|peer|NCCL|barrier"


def join(coordinator: str | None, hosts: int | None, host: int | None, startup: int, heartbeat: int) -> None:
    """Become one of several hosts, if the cluster or the arguments say so; call it before JAX starts. `coordinator`: HOST:PORT of
    host 0, `hosts`: how many there are, `host`: which this is; None: as the cluster says (SLURM, Open MPI,
    Kubernetes, Cloud TPU). In seconds, `startup` is waited for the others, and `heartbeat` is how long one may be silent.

    Raises: UserError if the arguments don't name a host; Requeue if the others don't come.
    """
    if coordinator is None and hosts is None and host is None and not in_cluster():
        return
    if host is None and coordinator is not None and "JOB_COMPLETION_INDEX" in os.environ:
        host = int(os.environ["JOB_COMPLETION_INDEX"])
    jax.config.update("jax_enable_preemption_service", False)  # gen/runtime/signals.py has the signals
    here = f"this is host {host}" if host is not None else "this is one of them"
    late = (
        f"the hosts did not meet within {startup} s (--parallel.startup-seconds; {here}); is each of them started, and does it "
        f"reach {coordinator or 'host 0'}?"
    )

    def overdue() -> None:
        print(late, file=sys.stderr, flush=True)
        os._exit(REQUEUE)

    timer = threading.Timer(startup, overdue)  # the runtime's own end is an abort, with its stack
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            hosts,
            host,
            initialization_timeout=startup + SHUTDOWN,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"no cluster that JAX knows was found ({error}); the fix: --parallel.coordinator HOST:PORT "
            "--parallel.hosts N --parallel.host 0 (to N - 1)"
        ) from None
    except RuntimeError as error:
        raise Requeue(f"{late} {_first_line(error)}") from error
    finally:
        timer.cancel()


def in_cluster() -> bool:
    """Whether a launcher started this process as one of several."""
    tasks = lambda name: int(os.environ.get(name) or 1) > 1
    slurm = "SLURM_PROCID" in os.environ and tasks("SLURM_STEP_NUM_TASKS")  # of srun; a batch script's shell is alone
    vendors = (file.read_text().strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor"))
    tpu = importlib.util.find_spec("libtpu") and GOOGLE in vendors
    pods = "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes")
    return slurm or tasks("OMPI_COMM_WORLD_SIZE") or bool(pods) or bool(tpu)


def count() -> int:
    return jax.process_count()


def index() -> int:
    return jax.process_index()


def is_first() -> bool:
    """Whether this is the host that writes."""
    return index() == 0


def barrier(what: str) -> None:
    """Wait until every host is here."""
    if count() > 1:
        multihost_utils.sync_global_devices(what)


def broadcast(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first host, where alone it is called: JSON, known to every host. So is a UserError."""
    if count() == 1:
        return make()
    message: dict[str, Any] = {}
    if is_first():
        try:
            message = {"value": make()}
        except UserError as error:
            message = {"error": str(error)}
        except OSError as error:
            if error.errno not in USER_ERRNOS:
                raise
            message = {"error": f"{error.filename or 'writing'}: {error.strerror}"}
    content = json.dumps(message).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(1 << length.bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)[: len(padded)]
    message = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length]))
    if "error" in message:
        raise UserError(message["error"])
    return message["value"]


def check_agree(what: str, value: str) -> None:
    """Raises: UserError on every host, unless all have the same."""
    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    if count() > 1 and (np.asarray(multihost_utils.process_allgather(own)) != own[None]).any():
        raise UserError(f"the hosts have different {what}; start each with the same")


@contextmanager
def requeue_if_lost() -> Iterator[None]:
    """Where hosts work on one thing. Raises: Requeue in place of the runtime's error, if one of them is gone."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is one; Orbax wraps it in others
        if count() == 1 or not re.search(LOST, str(error)):
            raise
        raise Requeue(
            f"another host has ended, or can't be reached ({_first_line(error)}); the same command on all of them goes on from "
            "the last checkpoint"
        ) from error


def exit_process(status: int) -> None:
    """End this process after a failure; on several hosts at once: the runtime would wait for the others first."""
    if not jax.distributed.is_initialized() or count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(LAST_WORDS)
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
