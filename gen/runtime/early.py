"""Prepares a training process before JAX is imported: limits of the system, signals, and messages of the runtime.

Importing JAX takes seconds, or a minute on a network file system. So this module only imports modules that are fast to import.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gen.errors import REQUEUE, UserError
from gen.runtime.signals import SIGNALS

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
"""Environment variable with the minimum severity of messages that JAX's runtime prints: 0 (all) to 3 (only fatal errors)."""
GOOGLE = "0x1ae0"
"""Vendor number of TPUs on the PCI bus."""
OBJECTS = 100_000
"""Number of new objects after which Python searches for garbage."""
MIN_FILES = 100
"""Minimum limit of open files for a run. A small run has 60 files open at a time."""
ENOUGH_FILES = 4096
"""Limit of open files that a run sets, if the system allows it."""
MIN_MEMORY = 3 * 2**30
"""Minimum limit of address space for a run, in bytes. JAX and its threads reserve much address space, but use little memory."""


def prepare_process(arguments: Sequence[str]) -> None:
    """Checks the limits of the system, and sets up signals, the runtime's messages and Python's garbage collection.

    Call it before JAX is imported.

    arguments: the command line.

    Raises: UserError if a limit is too low to train.
    """
    for number in SIGNALS:
        signal.signal(number, _leave)
    check_limits()
    several = in_cluster() or any(each.startswith("--parallel.hosts") for each in arguments)
    # 1 is the value that JAX sets when it is imported, and child processes inherit it. So it is not a choice of the user.
    if several and os.environ.get(LOG_LEVEL, "1") == "1":
        # If a host is lost, the runtime prints several lines on all other hosts. gen.runtime.failures prints one line instead.
        os.environ[LOG_LEVEL] = "3"
    # Imports and compilation make many objects, and hardly any of them is garbage. With the default of 700, searching them takes a tenth
    # of the time to the first step.
    gc.set_threshold(OBJECTS)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process at once after a signal. At this time the process has no work that must be finished first."""
    # Not by an exception: it could be raised during an import, and other libraries catch all exceptions there.
    os.write(
        2, f"{signal.Signals(number).name}: stopped; the same command continues from the last checkpoint\n".encode()
    )
    os._exit(REQUEUE)


def check_limits() -> None:
    """Increases the limit of open files up to ENOUGH_FILES, if the system allows it. Raises: UserError if a limit is too low to train."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < ENOUGH_FILES:
        # A process may raise its soft limit up to the hard limit without special rights.
        files = ENOUGH_FILES if most == resource.RLIM_INFINITY else min(most, ENOUGH_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
        if files < MIN_FILES:
            raise UserError(f"the limit of open files is {files}; the fix: ulimit -n 1024")
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if memory != resource.RLIM_INFINITY and memory < MIN_MEMORY:
        gib = MIN_MEMORY >> 30
        raise UserError(
            f"the limit of memory is {memory / 2**30:.1f} GiB; the fix: at least {gib} (ulimit -v {gib << 20})"
        )


def in_cluster() -> bool:
    """Returns whether this process may be one of several: in SLURM, Open MPI, a Kubernetes job, or on TPUs."""
    # srun sets SLURM_STEP_NUM_TASKS. The shell of a batch script does not have it, and is a single process.
    slurm = "SLURM_PROCID" in os.environ and _is_several("SLURM_STEP_NUM_TASKS")
    vendors = (file.read_text().strip() for file in Path("/sys/bus/pci/devices").glob("*/vendor"))
    tpu = importlib.util.find_spec("libtpu") and GOOGLE in vendors
    pods = "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes")
    return slurm or _is_several("OMPI_COMM_WORLD_SIZE") or bool(pods) or bool(tpu)


def _is_several(name: str) -> bool:
    return int(os.environ.get(name) or 1) > 1


def leave(status: int) -> None:
    """Ends the process with this exit status after a failure. One of several hosts ends at once: see `hosts.exit_process`."""
    # gen.runtime.hosts imports JAX, so it may not have been imported yet.
    hosts = sys.modules.get("gen.runtime.hosts")
    (hosts.exit_process if hosts else sys.exit)(status)
