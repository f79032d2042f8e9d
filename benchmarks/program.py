"""The jobs end_to_end and start_up of `python -m benchmarks`: the overhead of train.py per step, and its time to the first step."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import Watch
from benchmarks.turns import process

ROOT = Path(__file__).parent.parent
EPOCH = 23  # steps, each of 64 digits
SHORT, LONG = 4 * EPOCH, 24 * EPOCH
"""Steps of two runs. They differ by 20 epochs."""
CONFIG = "benchmarks/dcgan.py"
LIMIT = 6.0  # seconds that train.py may take to its first step
FIRST = "compiled in"  # train.py prints this after the first step
COMMON = ("--parallel.cpu-devices", "1", "--alarms.action", "off", "--evaluate-every", "0")


def end_to_end(turns: int, watch: Watch) -> dict[str, Any]:
    """Returns the time per step of train.py relative to a compiled update alone.

    The steps of train.py include reading data, logging, the guard against explosions, and a checkpoint every five epochs. Their
    time is the difference of a long and a short run, so that start and end of a run do not count. The compiled update is measured
    before and after the runs, because a CPU is faster in the first seconds after a pause.
    """
    with process("benchmarks.ours", "dcgan_64", "float32") as ask:
        ask("run", EPOCH)
        bare, whole = [], []
        for _ in range(max(1, turns // 5)):
            bare.append(watch.measure(lambda: ask("run", LONG - SHORT)))
            whole.append(step_of_runs(ROOT, watch))
            bare.append(watch.measure(lambda: ask("run", LONG - SHORT)))
    ours, against = statistics.median(whole), statistics.median(bare)
    return {
        "ratio": ours / against,
        "what": "a step of train.py (DCGAN) over a compiled update alone",
        "ours": f"{1e3 * ours:.1f}",
        "against": f"{1e3 * against:.1f} (update alone)",
        "whole": whole,
        "bare": bare,
    }


def step_of_runs(root: Path, watch: Watch) -> float:
    """Returns the seconds per step of train.py in a checkout, from a short and a long run."""
    short, long = (watch.measure(partial(time_run, root, steps)) for steps in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


def time_run(root: Path, steps: int) -> float:
    """Returns the seconds that a whole run of this many steps takes."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        program = [sys.executable, "train.py", CONFIG, "--workdir", f"{folder}/run"]
        options = ["--steps", str(steps), "--save.every", str(5 * EPOCH), *COMMON]
        subprocess.run([*program, *options], cwd=root, env=environment(root), check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def start_up(turns: int, watch: Watch) -> dict[str, Any]:
    """Returns the seconds from `python train.py` to the end of the first step. An earlier run has filled the cache."""
    first_step(ROOT)
    times = [watch.measure(lambda: first_step(ROOT)) for _ in range(max(3, turns // 3))]
    return {
        "ratio": statistics.median(times) / LIMIT,
        "what": f"seconds from the start of train.py (DCGAN) to its first step, over {LIMIT:.0f} s",
        "ours": f"{statistics.median(times):.2f} (minimum {min(times):.2f})",
        "against": f"{LIMIT:.0f}",
        "times": times,
    }


def first_step(root: Path) -> float:
    """Returns the seconds from the start of train.py in a checkout to the end of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        program = [sys.executable, "-u", "train.py", CONFIG, "--workdir", f"{folder}/run", *COMMON]
        with subprocess.Popen(program, cwd=root, env=environment(root), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            # Reads lines up to the one that train.py prints after its first step.
            next((line for line in child.stdout if line.startswith(FIRST)), None)
            seconds = time.perf_counter() - begun
            child.kill()
    return seconds


def environment(root: Path) -> dict[str, str]:
    """Returns the environment in which Python finds the code of a checkout."""
    return {**os.environ, "PYTHONPATH": str(root)}


JOBS = {"end_to_end": end_to_end, "start_up": start_up}
