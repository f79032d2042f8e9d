"""Two programs that take turns on one machine: each in a process of its own, told what to do in lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

PAUSE = 0.3  # seconds; OpenMP's threads keep a core busy for 0.2


class Side(NamedTuple):
    """What one of the two does."""

    run: Callable[[int], None]
    """So many calls, until the last has ended."""
    check: Callable[[Any], None]
    """Read or write, at a path, what the other side is compared with."""
    facts: Callable[[], dict[str, Any]]
    """What is known of it, and of its process, when it has run."""
    steps: int = 1
    """Of a call."""


Ask = Callable[..., Any]
"""(name of what to do, argument) -> what the process answers."""


@contextmanager
def process(module: str, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Ask]:
    """A side in a process: python -m module args. It ends with the context. Raises: RuntimeError if it ends before."""
    # -u: what it says to the person comes at once
    with subprocess.Popen(
        [sys.executable, "-u", "-m", module, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
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
                raise RuntimeError(f"{module} {' '.join(args)} ended with status {child.wait()}, see above")
            return json.loads(line)

        try:
            yield ask
        finally:
            child.kill()


def serve(build: Callable[[], Side]) -> None:
    """Be such a process, until its input ends. The first thing that is timed may be "first": seconds to build the side and step."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    begun, side = time.perf_counter(), build()
    for line in sys.stdin:
        do, argument = json.loads(line)
        answer: Any = None
        match do:
            case "first":
                side.run(1)
                answer = time.perf_counter() - begun
            case "run":
                answer = timed(side.run, -(-argument // side.steps)) / side.steps
            case "check":
                side.check(argument)
            case "facts":
                answer = side.facts()
        print(json.dumps(answer), file=answers, flush=True)


def timed(run: Callable[[int], None], n: int) -> float:
    """Seconds a call."""
    begun = time.perf_counter()
    run(n)
    return (time.perf_counter() - begun) / n


def in_turn(sides: Mapping[str, Ask], turns: int, seconds: float) -> dict[str, list[float]]:
    """{side: seconds a step in each of its turns}, each turn about so many seconds long. Before a turn the other side's threads
    have time to fall asleep, and a few steps that don't count."""
    steps = {}
    for name, ask in sides.items():
        ask("run", 2)
        steps[name] = max(1, round(seconds / ask("run", 2)))
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, ask in sides.items():
            time.sleep(PAUSE)
            ask("run", -(-steps[name] // 5))
            measured[name].append(ask("run", steps[name]))
    return measured


def peak_memory() -> int:
    """Bytes that this process had in memory at most. (ru_maxrss would be its parent's, where that was more.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
