"""Kills runs at named places of the code, and checks how they end: python -m tests.chaos --kills 1000 --seed 0

A plan starts a small run again and again. Each start kills itself with a signal when it passes a named place (tests/places.py) for
the n-th time. Starts may have different engines, devices and steps per call. At the end, the run must equal a run that was never
killed: bit for bit if all starts had the same engine, and otherwise up to 1e-5.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Read when JAX is imported. The tests' own cache of programs is used if there is one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import tyro

from tests import same
from tests.places import BEFORE_IMPORTS, PLACES, SIGNALS, Counts, Kill, install
from tests.processes import CHEAP
from tests.starts import ENGINES, SCENARIOS, End, Folders, fork, make_data, start, wait

MAX_STARTS = 12
"""Kills of one run, at most."""
ONLY_LATER = ("restore", "removal", "unlink")
"""Places that a run may pass only after it was killed."""

BEFORE_HANDLERS = 30
"""Modules of the project and of Python that a command imports, at most, before it handles signals."""

SAMPLE = (
    "rollback, pmap1:0:KILL:after:lock:1, pmap1:0:TERM:before:rename:2, pmap1:0:KILL:after:rollback:1, "
    "pmap1:0:KILL:before:seal:1, pmap1:0:INT:after:commit:1, pmap1:0:USR1:before:final test:1, pmap1",
    "lm, pmap1:0:KILL:before:import:700, pmap1:0:KILL:after:cache:2, jit1:0:TERM+3:after:flush:1, pmap1",
    "vae, pmap1:0:KILL:after:commit:2, pmap1",
)
"""Plans that come to every place in a minute."""


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    engine: str
    kill: Kill | None = None
    host: int = 0
    """The host that is killed."""

    def __str__(self) -> str:
        return f"{self.engine}:{self.host}:{self.kill}" if self.kill else self.engine

    @classmethod
    def parse(cls, text: str) -> Start:
        engine, _, rest = text.partition(":")
        host, _, kill = rest.partition(":")
        return cls(engine, Kill.parse(kill), int(host)) if rest else cls(engine)


@dataclass(frozen=True)
class Plan:
    """A scenario and its starts, of which the last one is left alone."""

    scenario: str
    starts: tuple[Start, ...]

    def __str__(self) -> str:
        return ", ".join([self.scenario, *map(str, self.starts)])

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Returns the plan of a text that `str` made."""
        scenario, *starts = text.split(", ")
        return cls(scenario, tuple(map(Start.parse, starts)))


class Failure(Exception):
    """A plan whose run did not end as it must."""


class Chaos:
    """Runs plans in a folder, and counts the kills and the passages of each place."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.kills: Counter[tuple[str, str]] = Counter()
        """{(place, signal): number}."""
        self.passages: Counter[str] = Counter()
        self.compiled = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", folder / "compiled"))
        make_data(folder)

    def whole(self, scenario: str, engine: str) -> Path:
        """Returns a run of this scenario and engine that was left alone. Raises: Failure if it fails."""
        at = self.folder / "whole" / f"{scenario}-{engine}"
        if not at.exists():
            at.mkdir(parents=True)
            self._end(scenario, Start(engine), Folders(self.folder, at, at / "cache", self.compiled, at))
        return at

    def census(self, scenario: str) -> Counts:
        """Returns how often a run of a scenario passes each place if it is left alone."""
        return Counts(self.whole(scenario, SCENARIOS[scenario].engines[0]) / "counts")

    def run(self, plan: Plan) -> None:
        """Runs a plan. Raises: Failure with the reason."""
        at = self.folder / "hurt"
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir()
        # Programs are compiled again, and killed meanwhile, only if the plan says so.
        cold = any(each.kill and each.kill.place == "compile" for each in plan.starts)
        folders = Folders(self.folder, at / "run", at / "cache", at / "compiled" if cold else self.compiled, at)
        for number, begun in enumerate(plan.starts):
            used = {each.engine for each in plan.starts[: number + 1]}
            if self._end(plan.scenario, begun, folders) == 0:
                self._compare(plan.scenario, used, folders)
                return
        raise Failure("the last start of a plan must be left alone")

    def _end(self, scenario: str, begun: Start, at: Folders) -> int:
        """Makes a start, and checks how it ends. Returns the status of the host that was to be killed."""
        if base := SCENARIOS[scenario].lora:
            self.whole(base, "pmap1")
        (at.output / "counts").unlink(missing_ok=True)
        counts = Counts(at.output / "counts")
        try:
            end = start(scenario, begun.engine, begun.kill, counts, at, begun.host)
        except AssertionError as error:
            raise Failure(f"{begun}: {error}") from None
        self.passages.update({place: counts.of(place) for place in PLACES})
        if begun.kill and counts.fired:
            self.kills[begun.kill.place, begun.kill.signal.split("+")[0]] += 1
        if problem := judge(begun, end, counts.fired):
            raise Failure(f"{begun}: {problem}\n{end.output[-3000:]}")
        return end.statuses[begun.host]

    def _compare(self, scenario: str, engines: set[str], at: Folders) -> None:
        steps, engine = SCENARIOS[scenario].steps, next(iter(engines))
        if len(engines) == 1:
            compare = partial(same.compare_bits, self.whole(scenario, engine), at.run, steps)
        else:
            compare = partial(same.compare_close, self.whole(scenario, SCENARIOS[scenario].engines[0]), at.run, steps)
        output = at.output / "compared.txt"
        if wait([fork(compare, output)]) != [0]:
            raise Failure(output.read_text().strip().splitlines()[-1])


def judge(begun: Start, end: End, fired: bool) -> str | None:
    """Returns what is wrong with the end of a start. None: nothing."""
    status, others = end.statuses[begun.host], [s for i, s in enumerate(end.statuses) if i != begun.host]
    if not fired:
        return None if {status, *others} == {0} else f"status {status} {others} of a start that was left alone"
    assert begun.kill is not None
    if status not in expected(begun.kill):
        return f"status {status}"
    if "Traceback" in end.output:
        return "a traceback"
    # The other hosts leave by themselves. At the very end they may be finished.
    if not all(other in (0, 75, max(status, 0)) for other in others):
        return f"status {others} of the other host"
    return None


def expected(kill: Kill) -> tuple[int, ...]:
    """Returns the statuses with which a process may end after its signal."""
    name, _, later = kill.signal.partition("+")
    if name == "KILL":
        return (-signal.SIGKILL,)
    # A process has the system's own handlers while it imports the few modules that set others.
    early = (-SIGNALS[name],) if kill.place in BEFORE_IMPORTS and kill.passage <= BEFORE_HANDLERS else ()
    second = (-signal.SIGKILL,) if later else ()
    # A Ctrl-C is an interruption, except during the steps, where it saves first.
    return (75, *early, *second, *((130,) if name == "INT" else ()))


def draw_plan(draw: random.Random, scenario: str, census: Counts) -> Plan:
    """Returns a random plan. Half of the plans have the same engine in all starts."""
    engines = SCENARIOS[scenario].engines
    usual = draw.choice((engines[0], *engines))
    mixed = draw.random() < 0.5
    starts = [
        draw_start(draw, draw.choice(engines) if mixed else usual, census) for _ in range(draw.randint(4, MAX_STARTS))
    ]
    return Plan(scenario, (*starts, Start(draw.choice(engines) if mixed else usual)))


def draw_start(draw: random.Random, engine: str, census: Counts) -> Start:
    """Returns a start that ends itself at a random place."""
    hosts = ENGINES[engine].hosts
    host = draw.randrange(hosts)
    if hosts == 1 and draw.random() < 0.01:
        # The modules of JAX and of gen.
        name = draw.choice(("KILL", "TERM"))
        return Start(engine, Kill(name, draw.choice(("before", "after")), "import", draw.randint(1, 1500)))
    known = [place for place in PLACES if place not in BEFORE_IMPORTS and (census.of(place) or place in ONLY_LATER)]
    place = draw.choice(known)
    # A start that continues a run passes a place less often, and a start that does not come to its passage ends the plan.
    most = max(2, census.of(place) // hosts)
    passage = draw.randint(1, min(3, most) if draw.random() < 0.75 else most)
    name = draw.choice(("KILL", "KILL", "KILL", "TERM", "USR1", "INT", f"TERM+{draw.randint(1, 20)}"))
    return Start(engine, Kill(name, draw.choice(("before", "after")), place, passage), host)


def draw_plans(seed: int, scenarios: Sequence[str], chaos: Chaos) -> Iterator[Plan]:
    """Yields plans without end, of each scenario in turn."""
    draw = random.Random(seed)
    while True:
        for scenario in scenarios:
            yield draw_plan(draw, scenario, chaos.census(scenario))


def run_plans(chaos: Chaos, plans: Iterable[Plan], kills: int, say: Callable[[str], None]) -> list[str]:
    """Runs plans until enough kills are made. Returns a line for each plan that failed."""
    begun, failed, told = time.monotonic(), [], 0
    for plan in plans:
        try:
            chaos.run(plan)
        except Failure as error:
            failed.append(str(error).splitlines()[0])
            say(f"FAILED {error}\nrepeat: python -m tests.chaos --replay {str(plan)!r}")
        done = chaos.kills.total()
        if done // 10 > told or done >= kills:
            told = done // 10
            say(
                f"{done} kills, {len(failed)} failures, {time.monotonic() - begun:.0f} s, {cpu_seconds():.0f} s of CPU time"
            )
        if done >= kills:
            break
    return failed


def cpu_seconds() -> float:
    """Returns the CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summarize(chaos: Chaos) -> str:
    """Returns a table of the kills by place and signal."""
    lines = [f"{'place':12} {'passages':>9} " + " ".join(f"{name:>5}" for name in SIGNALS)]
    for place in PLACES:
        numbers = " ".join(f"{chaos.kills[place, name]:5}" for name in SIGNALS)
        lines.append(f"{place:12} {chaos.passages[place]:9} {numbers}")
    return "\n".join(lines)


class Options(NamedTuple):
    """Kill runs at named places, and compare their ends with runs left alone."""

    kills: int = 100
    """Number of kills and signals."""
    seed: int = 0
    scenario: str | None = None
    """Only this scenario."""
    replay: str | None = None
    """Run this plan alone."""
    sample: bool = False
    """Run the fixed sample of tests/test_chaos.py, and fail if a place is never passed."""


def main(options: Options) -> int:
    """Runs the command. Returns its exit status."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAP}"
    # A shell may have started this command in the background, where SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install([place for place in PLACES if place not in BEFORE_IMPORTS])
    # The collector would go through all modules again and again, in every child.
    gc.freeze()
    begun, say = time.monotonic(), partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(Path(folder))
        failed = run_plans(chaos, *choose_plans(options, chaos), say)
    never = [place for place in PLACES if not chaos.passages[place]] if options.sample else []
    say(summarize(chaos))
    if never:
        say(f"never passed: {', '.join(never)}")
    spent = f"{time.monotonic() - begun:.0f} s, {cpu_seconds():.0f} s of CPU time"
    say(f"{chaos.kills.total()} kills, {len(failed)} failures, {spent}")
    return 1 if failed or never else 0


def choose_plans(options: Options, chaos: Chaos) -> tuple[Iterable[Plan], int]:
    """Returns the plans that the options ask for, and the number of kills after which to stop."""
    if options.replay:
        return [Plan.parse(options.replay)], sys.maxsize
    if options.sample:
        return map(Plan.parse, SAMPLE), sys.maxsize
    scenarios = [options.scenario] if options.scenario else list(SCENARIOS)
    return draw_plans(options.seed, scenarios, chaos), options.kills


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
