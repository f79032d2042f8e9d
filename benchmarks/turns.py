"""Runs two programs in turns on one machine, to compare their speed. Each is a process that reads commands as lines of JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import Watch

PAUSE = 0.3  # seconds between turns; OpenMP's threads keep a core busy for 0.2 seconds after their work


class Side(NamedTuple):
    """One of the two programs."""

    run: Callable[[int], None]
    """(n) -> makes n calls, and waits until the last one has finished."""
    check: Callable[[Any], None]
    """(path) -> writes the arrays for the comparison of both sides, or reads them and compares."""
    facts: Callable[[], dict[str, Any]]
    """() -> facts about the device, the process and the computation, after it has run."""
    steps: int = 1
    """Number of steps in a call."""


Ask = Callable[..., Any]
"""(command, argument) -> the answer of the process."""


@contextmanager
def process(module: str, *args: str, env: Mapping[str, str] | None = None, root: Path | None = None) -> Iterator[Ask]:
    """Runs `python -m module args` as a side, and yields a function that sends it commands. The process ends with the context.

    root: the checkout whose code runs; None: as Python finds it.

    Raises: RuntimeError if the process ends earlier.
    """
    # -u: its messages appear at once.
    with subprocess.Popen(
        [sys.executable, "-u", "-m", module, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, **({"PYTHONPATH": str(root)} if root else {}), **(env or {})},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(do: str, argument: Any = None) -> Any:
            try:
                print(json.dumps([do, argument]), file=child.stdin, flush=True)
                line = child.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
            except BrokenPipeError:
                line = ""
            if not line:
                raise RuntimeError(
                    f"{module} {' '.join(args)} ended with status {child.wait()}; its messages above say why"
                )
            return json.loads(line)

        try:
            yield ask
        finally:
            child.kill()


def serve(build: Callable[[], Side]) -> None:
    """Answers commands on standard input until it ends.

    - "first" -> seconds to build the side and make its first call. It can only be the first command.
    - "run" and a number of steps -> seconds per step.
    - "check" and a path, and "facts": see Side.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print to stdout, which is for answers only
    begun, side = time.perf_counter(), build()
    for line in sys.stdin:
        do, argument = json.loads(line)
        answer: Any = None
        match do:
            case "first":
                side.run(1)
                answer = time.perf_counter() - begun
            case "run":
                answer = time_call(side.run, -(-argument // side.steps)) / side.steps
            case "check":
                side.check(argument)
            case "facts":
                answer = side.facts()
        print(json.dumps(answer), file=answers, flush=True)


def time_call(run: Callable[[int], None], n: int) -> float:
    """Returns the seconds per call."""
    begun = time.perf_counter()
    run(n)
    return (time.perf_counter() - begun) / n


def take_turns(sides: Mapping[str, Ask], turns: int, seconds: float, watch: Watch) -> dict[str, list[float]]:
    """Returns {side: seconds per step in each of its turns}. seconds: approximate length of a turn.

    A turn of each side makes a round. A round during which the machine was busy is repeated as a whole, so that the turns of both
    sides have the same conditions.

    Raises: Busy if the machine stays busy.
    """
    steps = {}
    for name, ask in sides.items():
        ask("run", 2)
        steps[name] = max(1, round(seconds / ask("run", 2)))

    def round_of_turns() -> dict[str, float]:
        return {name: take_turn(ask, steps[name]) for name, ask in sides.items()}

    rounds = [watch.measure(round_of_turns) for _ in range(turns)]
    return {name: [times[name] for times in rounds] for name in sides}


def take_turn(ask: Ask, steps: int) -> float:
    """Returns the seconds per step of a turn.

    It begins with a pause, so that the other side's threads go to sleep, and with a few steps that do not count.
    """
    time.sleep(PAUSE)
    ask("run", -(-steps // 5))
    return ask("run", steps)


def ratios(here: Sequence[float], there: Sequence[float]) -> tuple[float, float, float]:
    """Returns the ratio of the medians of two sides, and the quartiles of the ratios from turn to turn.

    Turns that follow each other have the same conditions, so their ratios vary less than the times do.
    """
    each = sorted(a / b for a, b in zip(here, there, strict=True))
    quarter = len(each) // 4
    return statistics.median(here) / statistics.median(there), each[quarter], each[-1 - quarter]


def product_size(on_cpu: bool, dtype: str) -> tuple[int, int]:
    """Returns the size of the square matrices that measure the peak, and how often their product is timed."""
    if not on_cpu:
        return 8192, 10
    # Without instructions for bfloat16, such a product takes seconds.
    return (2048, 10) if dtype == "float32" else (1024, 2)


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    # Not ru_maxrss: a child process starts with the value of its parent.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
