"""Settings of JAX's backend before the first array is made, and facts about the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import sys
from pathlib import Path

import jax

from gen.config import Parallel
from gen.errors import UserError
from gen.files import cache_folder
from gen.runtime import hosts

YNN = "--xla_cpu_experimental_ynn_fusion_type"
"""What XLA leaves to YNNPACK on a processor, unless told otherwise nothing: a VAE's step takes 3.6 ms without it and 5.2 with."""

MAX_CPUS = 8  # processors, on which alone what `_keep_memory` brings was measured


def start_backend(config: Parallel) -> None:
    """Settings of the backend; call it before the first array is made. Compiled programs are kept in the user's cache.

    Raises: UserError if there are fewer devices than asked for.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / f"compiled-{_instructions()}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if jax.__version_info__ < (0, 12) and YNN not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {YNN}="
    if sys.platform == "linux" and len(os.sched_getaffinity(0)) <= MAX_CPUS:
        _keep_memory()
    if config.cpu_devices is not None:
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError:
            raise UserError("cpu_devices is set once, before JAX starts, and it has started") from None
    hosts.join(config.coordinator, config.hosts, config.host, config.startup_seconds, config.heartbeat_seconds)
    if config.devices is not None and config.devices > jax.device_count():
        raise UserError(
            f"{config.devices} devices asked for, {jax.device_count()} {jax.default_backend()} there; "
            f"on a CPU: --parallel.cpu-devices {config.devices}"
        )
    if config.devices not in (None, jax.device_count()) and hosts.count() > 1:
        raise UserError("several hosts use all of their devices; leave --parallel.devices out")


def _keep_memory() -> None:
    """Have glibc keep what is freed, and each step run in the thread that asks for it, whose heap is the one that grows without
    limit. In others glibc gives blocks over 32 MiB back to the system, and XLA takes one for each step, whose pages then come
    one fault at a time: 80,000 of them, and a fifth of the time of a step of 10 million parameters."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        trim_threshold, mmap_max = -1, -4
        for option, value in ((trim_threshold, -1), (mmap_max, 0)):
            mallopt(option, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def cpu_name() -> str:
    """The processor's name, as the system has it."""
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found.group(1) if found else platform.processor() or platform.machine()


def _instructions() -> str:
    """A short digest of the processor's instruction set: a program compiled for another may not run on this one."""
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", _cpuinfo())
    return hashlib.sha256((flags.group(1) if flags else cpu_name()).encode()).hexdigest()[:8]


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
