"""What the training program costs beside its compiled step: a run from end to end, and the time to the first step."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.turns import process

ROOT = Path(__file__).parent.parent
EPOCH = 23  # steps of 64 digits
SHORT, LONG = 4 * EPOCH, 24 * EPOCH
"""Steps of two runs, which differ by 20 epochs."""
CONFIG = str(ROOT / "benchmarks" / "dcgan.py")
LIMIT = 6.0  # seconds that a start may take
FIRST = "compiled in"  # what train.py says when the first step is done
COMMON = ("--parallel.cpu-devices", "1", "--alarms.action", "off", "--evaluate-every", "0")


def end_to_end(turns: int) -> dict[str, Any]:
    """Epochs of train.py, with reading, logging and a checkpoint at the end of every fifth, over as many bare updates.

    What a run does once is in a short run as in a long one, so their difference is what epochs take. The bare updates are as many,
    before and after: a processor is faster for the first seconds after a rest."""
    with process("benchmarks.ours", "dcgan_64", "float32") as ask:
        ask("run", EPOCH)
        bare, whole = [], []
        for _ in range(max(1, turns // 5)):
            bare.append(ask("run", LONG - SHORT))
            short, long = (trained(steps) for steps in (SHORT, LONG))
            whole.append((long - short) / (LONG - SHORT))
            bare.append(ask("run", LONG - SHORT))
    ours, against = statistics.median(whole), statistics.median(bare)
    return {
        "ratio": ours / against,
        "what": "a step of train.py (DCGAN) over a bare one",
        "ours": f"{1e3 * ours:.1f}",
        "against": f"{1e3 * against:.1f} (bare)",
        "whole": whole,
        "bare": bare,
    }


def trained(steps: int) -> float:
    """Seconds of a whole run of so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        program = [sys.executable, "train.py", CONFIG, "--workdir", f"{folder}/run"]
        options = ["--steps", str(steps), "--save.every", str(5 * EPOCH), *COMMON]
        subprocess.run([*program, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def start_up(turns: int) -> dict[str, Any]:
    """Seconds from `python train.py` to the end of the first step, with what a run before has left in the cache."""
    times = [first_step() for _ in range(1 + max(3, turns // 3))][1:]
    return {
        "ratio": statistics.median(times) / LIMIT,
        "what": f"start of train.py (DCGAN) to its first step, s, over {LIMIT:.0f} s",
        "ours": f"{statistics.median(times):.2f} (least {min(times):.2f})",
        "against": f"{LIMIT:.0f}",
        "times": times,
    }


def first_step() -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        program = [sys.executable, "-u", "train.py", CONFIG, "--workdir", f"{folder}/run", *COMMON]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(FIRST):
                    break
            seconds = time.perf_counter() - begun
            child.kill()
    return seconds


JOBS = {"end_to_end": end_to_end, "start_up": start_up}
