"""Sets up JAX's backend before the first array is made, and finds facts about the CPU."""

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
"""XLA flag that lists the operations for which XLA calls YNNPACK on a CPU. gen sets it to an empty list: a step of a VAE takes 3.6 ms
without YNNPACK, and 5.2 ms with it."""

Device = Any
"""A jax.Device. It is Any because type checkers do not accept jax.Device as a type."""
MAX_CPUS = 8
"""Largest number of CPUs of a machine on which `_keep_memory` is used. It was not measured on larger machines."""


def meet_hosts(config: Parallel) -> None:
    """Starts JAX and joins the other hosts by `start_backend`, if there are several hosts. With one host it does nothing.

    Call it before any work that can fail, so that the failure of one host reaches the others.
    """
    if hosts.are_several(config.coordinator, config.hosts, config.host):
        start_backend(config)


def start_backend(config: Parallel) -> None:
    """Sets up and starts JAX's backend, and joins the other hosts if there are several. Call it before the first array is made.

    Compiled programs are kept in the user's cache folder, unless JAX has another cache already.

    Raises: UserError if JAX cannot start on the platform of JAX_PLATFORMS, or if the config asks for devices that JAX can't give.
    """
    if jax.distributed.is_initialized():
        # `meet_hosts` has started the backend already.
        return
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = cache_folder() / f"{PROGRAMS}{_instructions()}"
        keep_programs(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # By default JAX keeps only programs that took a second to compile. Small models have many that take less.
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
    # The hosts meet before the first device is used. Afterwards this process could no longer join them.
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
    """Starts JAX on its platform, unless it has started already.

    Raises: UserError with the fix if JAX cannot start; Requeue if another host was lost meanwhile.
    """
    try:
        with hosts.requeue_if_lost():
            jax.devices()
    # AssertionError: JAX raises it for CUDA if neither the plugin nor a GPU is found.
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        # JAX's message ends with its own advice in parentheses, which is cut off.
        reason = str(error).partition(" (")[0].strip(" .") or "no such device or plugin was found"
        raise UserError(
            f"JAX cannot start on {asked!r} (JAX_PLATFORMS): {reason}; the fix: JAX_PLATFORMS=cpu{_install(asked)}"
            if asked
            else f"JAX cannot start: {reason}; the fix: JAX_PLATFORMS=cpu"
        ) from None


def _install(asked: str) -> str:
    """Returns the words ", or for ...: pip install ..." if JAX lacks the package of a platform, otherwise "".

    asked: value of JAX_PLATFORMS, names of platforms with commas between them.
    """
    names = asked.split(",")
    if {"gpu", "cuda"} & set(names) and importlib.util.find_spec("jax_plugins") is None:
        return ", or for an NVIDIA GPU: pip install 'gen[gpu]'"
    if "tpu" in names and importlib.util.find_spec("libtpu") is None:
        return ", or for a TPU: pip install 'gen[tpu]'"
    return ""


def _keep_memory() -> None:
    """Makes glibc keep freed memory, and makes JAX run each step in the thread that calls it. This makes steps on a CPU faster.

    XLA allocates one large block per step. By default glibc returns this block to the system after each step, and the next step
    gets its pages by page faults: 80,000 faults, a fifth of the time of a step with 10 million parameters.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        # Only the heap of the main thread keeps blocks above 32 MiB. So steps must run in the main thread.
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
        for option, value in ((trim_threshold, -1), (mmap_max, 0)):
            mallopt(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def cpu_name() -> str:
    """Returns the name of the CPU, as the system gives it."""
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found.group(1) if found else platform.processor() or platform.machine()


def _instructions() -> str:
    """Returns a short digest of the CPU's instruction set, for the name of the cache. A program for another CPU may not run here."""
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", _cpuinfo())
    return hashlib.sha256((flags.group(1) if flags else cpu_name()).encode()).hexdigest()[:8]


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
