"""Settings of JAX's backend before the first array is made, and facts about the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import jax

from gen.config import Parallel
from gen.data.limit import PROGRAMS
from gen.errors import UserError
from gen.files import cache_folder
from gen.runtime import agreement, hosts
from gen.runtime.programs import keep_programs

YNN = "--xla_cpu_experimental_ynn_fusion_type"
"""XLA flag for the operations that it gives to YNNPACK on a CPU. Set to none: a VAE's step takes 3.6 ms without, 5.2 ms with."""

Device = Any
"""A jax.Device. JAX declares it in a way that type checkers do not accept as a type."""
MAX_CPUS = 8
"""`_keep_memory` was only measured on machines with at most this many CPUs."""


def meet_hosts(config: Parallel) -> None:
    """Starts the backend if there are several hosts, as `start_backend` does."""
    if hosts.are_several(config.coordinator, config.hosts, config.host):
        start_backend(config)


def start_backend(config: Parallel) -> None:
    """Sets up JAX's backend. Call it before the first array is made. Compiled programs are kept in the user's cache folder.

    Raises: UserError if JAX cannot start on the platform of JAX_PLATFORMS, or if there are fewer devices than the config asks
    for.
    """
    if jax.distributed.is_initialized():
        # Several hosts have met already, which starts the backend.
        return
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = cache_folder() / f"{PROGRAMS}{_instructions()}"
        keep_programs(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if jax.__version_info__ < (0, 12) and YNN not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {YNN}="
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) <= MAX_CPUS:
        _keep_memory()
    if config.cpu_devices is not None:
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError:
            raise UserError("cpu_devices can only be set before JAX starts, and JAX has started") from None
    hosts.join(config.coordinator, config.hosts, config.host, config.startup_seconds, config.heartbeat_seconds)
    start_devices()
    agreement.check_devices([device.process_index for device in jax.devices()])
    if config.devices is not None and config.devices > jax.device_count():
        raise UserError(
            f"parallel.devices is {config.devices}, and there are {jax.device_count()} {jax.default_backend()} devices; "
            f"the fix on a CPU: --parallel.cpu-devices {config.devices}"
        )
    if config.devices not in (None, jax.device_count()) and hosts.count() > 1:
        raise UserError("several hosts always use all of their devices; the fix: leave out --parallel.devices")


def start_devices() -> None:
    """Starts JAX on its platform, if it has not started. Raises: UserError with the fix if it cannot."""
    try:
        jax.devices()
    # JAX fails an assertion if it asks for CUDA, and neither its plugin nor a GPU is there.
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        # JAX ends its reason with a fix of its own, in parentheses.
        reason = str(error).partition(" (")[0].strip(" .") or "no such device or plugin was found"
        raise UserError(
            f"JAX cannot start on {asked!r} (JAX_PLATFORMS): {reason}; the fix: JAX_PLATFORMS=cpu{_install(asked)}"
            if asked
            else f"JAX cannot start: {reason}; the fix: JAX_PLATFORMS=cpu"
        ) from None


def _install(asked: str) -> str:
    """Returns the other fix for platforms whose package is missing, "" if it is installed or there is none."""
    names = asked.split(",")
    if {"gpu", "cuda"} & set(names) and importlib.util.find_spec("jax_plugins") is None:
        return ", or for an NVIDIA GPU: pip install 'gen[gpu]'"
    if "tpu" in names and importlib.util.find_spec("libtpu") is None:
        return ", or for a TPU: pip install 'gen[tpu]'"
    return ""


def _keep_memory() -> None:
    """Makes glibc keep freed memory, and runs each step in the thread that asks for it.

    XLA allocates one large block per step. By default glibc returns such a block to the system each time, and the next step
    gets its pages one fault at a time: 80,000 faults, a fifth of the time of a step with 10 million parameters.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        # The heap of the main thread grows without limit. Heaps of other threads return blocks over 32 MiB in any case.
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
        for option, value in ((trim_threshold, -1), (mmap_max, 0)):
            mallopt(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def cpu_name() -> str:
    """Returns the name of the CPU, as the system gives it."""
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found.group(1) if found else platform.processor() or platform.machine()


def _instructions() -> str:
    """Returns a short digest of the CPU's instruction set. A program compiled for another CPU may not run on this one."""
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", _cpuinfo())
    return hashlib.sha256((flags.group(1) if flags else cpu_name()).encode()).hexdigest()[:8]


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
