"""Starts train.py as one process or several on this machine, for tests that send signals to them or kill them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
QUICK = [
    *("--model.network.hidden", "24", "--model.latents", "3", "--model.test-samples", "4"),
    *("--model.validation-samples", "2", "--data.batch-size", "16", "--log.no-tensorboard"),
]
"""Options that make vae_digits as small as possible."""
CHEAP = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""XLA flags that cut the compile time to a quarter, and the number of memory maps. A process may have 65,530 maps; LLVM crashes beyond
that. The main job of .ci/run compiles as users do."""
if jax.__version_info__ < (0, 11):  # later versions refuse the flag: they have no other emitters
    CHEAP += " --xla_cpu_use_fusion_emitters=false"


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment without the settings of the tests' own process, except for the folder of compiled programs."""
    return {k: v for k, v in environ.items() if not k.startswith(("JAX_", "XLA_")) or "_CACHE_" in k}


def environment(cache: Path) -> dict[str, str]:
    """Returns the environment of a process on the CPU, with a folder for prepared data and cheap compilation."""
    own = {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": CHEAP}
    return inherited(os.environ) | own


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def hosts(
    n: int, arguments: Sequence[object], env: dict[str, str], logs: Path, each: Sequence[Sequence[object]] | None = None
):
    """Yields n processes that train together, with one device each, and kills them at the end.

    each: additional arguments of each process. The output of process I goes to logs/host-I.txt.
    """
    logs.mkdir(parents=True, exist_ok=True)
    common = ["--parallel.coordinator", f"127.0.0.1:{free_port()}", "--parallel.hosts", n, "--parallel.cpu-devices", 1]
    common += ["--parallel.heartbeat-seconds", 5, "--parallel.startup-seconds", 60]
    started = []
    try:
        for i in range(n):
            shared = [*common, "--parallel.host", i] if n > 1 else []
            command = [sys.executable, ROOT / "train.py", *arguments, *shared, *(each[i] if each else [])]
            with open(logs / f"host-{i}.txt", "w") as output:
                started.append(
                    subprocess.Popen([str(c) for c in command], env=env, stdout=output, stderr=subprocess.STDOUT)
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def statuses(processes: Sequence[subprocess.Popen], seconds: float = 240) -> list[int]:
    """Waits for the processes. Returns their exit statuses."""
    end = time.monotonic() + seconds
    return [process.wait(max(0.1, end - time.monotonic())) for process in processes]


def until(happens: Callable[[], bool], processes: Sequence[subprocess.Popen], seconds: float = 240) -> bool:
    """Waits until it happens or a process ends. Returns whether it happened."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(p.poll() is None for p in processes):
        if happens():
            return True
        time.sleep(0.001)
    return happens()
