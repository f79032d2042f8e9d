"""Reads facts about the machine on which times are measured: its CPU, and how much other programs use it during a measurement."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gen.errors import UserError

T = TypeVar("T")

MAX_OTHERS = 0.05
"""A measurement counts if other programs, and other virtual machines, used at most this share of the cores."""
MAX_LOAD_AVERAGE = 0.25
"""Where only the load average is known, the machine is busy if it is above this number per core before a command begins."""
MAX_REPEATS = 10
"""Number of busy measurements of a job that are repeated, before the job is refused."""
WAIT = 2.0
"""Seconds before a busy measurement is repeated."""
WATCHED = 1.0
"""Seconds that the machine is watched before a job begins."""
MIN_COUNTED = 0.5
"""Minimum fraction of the time that /proc/stat must have counted. In some containers /proc/stat never changes."""
MIN_NAMED = 0.05
"""A program is named if it used at least this number of cores."""

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
    "sve2": "SVE2",
    "bf16": "BF16",
    "sme": "SME",
}
"""{flag of /proc/cpuinfo: name} of the instruction sets that decide how fast matrix products are."""


class Processor(NamedTuple):
    """A processor, and the part of it that this process may use."""

    name: str
    version: str
    """Family and model, or on ARM implementer and part. "": unknown."""
    instructions: tuple[str, ...]
    """Its instruction sets for vectors and matrices."""
    cores: int
    """Number of logical CPUs that this process may use."""
    quota: float | None
    """Limit of this container on the CPU time of the process, in cores. None: no limit is known."""

    def __str__(self) -> str:
        known = [self.name, self.version, ", ".join(self.instructions), f"{self.cores} cores"]
        if self.quota is not None and self.quota < self.cores:
            known.append(f"CPU time limited to {self.quota:g} cores")
        return "; ".join(filter(None, known))


def read_processor() -> Processor:
    """Returns the processor of this machine."""
    # Not at the top: importing it imports JAX, which the process that only waits for others does not need.
    from gen.runtime.backend import cpu_name

    info = _read("/proc/cpuinfo")
    return Processor(cpu_name(), *parse_cpuinfo(info), len(usable_cores()), _quota())


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the version and the instruction sets of the first CPU in the text of /proc/cpuinfo."""
    fields = dict(re.findall(r"^(.+?)[ \t]*:[ \t]*(.*)$", text.split("\n\n")[0], re.MULTILINE))
    names = {"cpu family": "family", "model": "model", "CPU implementer": "implementer", "CPU part": "part"}
    version = " ".join(f"{short} {fields[name]}" for name, short in names.items() if name in fields)
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return version, tuple(name for flag, name in INSTRUCTIONS.items() if flag in flags)


def usable_cores() -> set[int]:
    """Returns the numbers of the logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """Returns the CPU time per second that the control group of this container allows. None: it is not limited."""
    v2 = _read("/sys/fs/cgroup/cpu.max").split()
    v1 = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    for found in (v2, v1):
        if len(found) == 2 and found[0].isdigit() and found[1].isdigit():
            return int(found[0]) / int(found[1])
    return None


class Reading(NamedTuple):
    """Counters of the machine at one moment. All times are in seconds."""

    time: float
    """time.monotonic()."""
    cores: int
    counted: float = 0.0
    """All time that the system has counted, over the usable cores. It never changes on systems that count nothing."""
    idle: float = 0.0
    """Time in which the usable cores had nothing to do."""
    stolen: float = 0.0
    """Time in which the host gave the usable cores to other virtual machines."""
    own: float = 0.0
    """CPU time of this process and of its children."""
    others: Mapping[int, tuple[str, float]] = {}
    """{process: (program, CPU time)} of all other processes that can be seen."""


class Load(NamedTuple):
    """How much of the machine was used by others between two readings, in cores."""

    cores: int
    others: float
    """Other processes."""
    stolen: float
    """Other virtual machines."""
    programs: tuple[tuple[str, float], ...] = ()
    """(program, cores) of the other processes with the most CPU time."""

    @property
    def is_busy(self) -> bool:
        return self.others + self.stolen > MAX_OTHERS * self.cores

    def __str__(self) -> str:
        named = ", ".join(f"{program} {used:.1f}" for program, used in self.programs)
        users = {
            f"other processes ({named or 'none that can be seen'})": self.others,
            "other virtual machines": self.stolen,
        }
        said = [f"{who} used {used:.1f} of {self.cores} cores" for who, used in users.items() if used >= MIN_NAMED]
        return "the machine is busy: " + ", and ".join(said)


class Busy(UserError):
    """Other programs used the machine during a measurement, so its time says nothing."""

    def __init__(self, load: object):
        self.load = load
        super().__init__(f"{load}; the fix: run this command when nothing else runs")


def read_machine() -> Reading:
    """Returns the counters at this moment. On systems without /proc they never change."""
    cores, now = usable_cores(), time.monotonic()
    rows = [line.split() for line in _read("/proc/stat").splitlines() if re.match(r"cpu\d", line)]
    ticks = [[int(x) for x in row[1:9]] for row in rows if int(row[0][3:]) in cores]
    if not ticks:
        return Reading(now, len(cores))
    second = os.sysconf("SC_CLK_TCK")
    # The columns: user, nice, system, idle, iowait, irq, softirq, steal.
    total = [sum(column) / second for column in zip(*ticks, strict=True)]
    own, others = _split(_processes(), os.getpid(), second)
    return Reading(now, len(cores), sum(total), total[3] + total[4], total[7], own, others)


class _Process(NamedTuple):
    """A line of /proc/PID/stat. Times are in clock ticks."""

    program: str
    parent: int
    used: int
    """CPU time of the process."""
    waited: int
    """CPU time of its children that have ended."""


def _processes() -> dict[int, _Process]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        # Processes end while this reads. The name is in parentheses, and may have spaces and parentheses itself.
        with suppress(OSError):
            before, _, after = path.read_text(errors="replace").rpartition(")")
            numbers = after.split()
            own, waited = (sum(map(int, numbers[i : i + 2])) for i in (11, 13))
            found[int(path.parent.name)] = _Process(before.partition("(")[2], int(numbers[1]), own, waited)
    return found


def _split(processes: Mapping[int, _Process], root: int, second: int) -> tuple[float, dict[int, tuple[str, float]]]:
    """Returns the CPU seconds of the process `root` and its descendants, and those of each other process."""
    inside = {root}
    while more := {pid for pid, process in processes.items() if process.parent in inside} - inside:
        inside |= more
    own = sum(process.used + process.waited for pid, process in processes.items() if pid in inside)
    others = {pid: (p.program, p.used / second) for pid, p in processes.items() if pid not in inside}
    return own / second, others


def load_between(before: Reading, after: Reading) -> Load | None:
    """Returns the load between two readings. None: the system does not count it."""
    seconds, cores = after.time - before.time, after.cores
    if after.counted - before.counted < MIN_COUNTED * seconds * cores:
        return None
    stolen = after.stolen - before.stolen
    # The kernel measures idle time exactly, and samples the rest. So what is not idle is used, by this program or by others.
    used = seconds * cores - (after.idle - before.idle) - stolen
    others = max(0.0, used - (after.own - before.own))
    times = {pid: (name, t - before.others.get(pid, (name, 0.0))[1]) for pid, (name, t) in after.others.items()}
    return Load(cores, others / seconds, stolen / seconds, _largest(times.values(), seconds))


def _largest(times: Iterable[tuple[str, float]], seconds: float) -> tuple[tuple[str, float], ...]:
    """Returns (program, cores) of the three programs with the most CPU time."""
    sums: dict[str, float] = {}
    for name, used in times:
        sums[name] = sums.get(name, 0.0) + used / seconds
    most = sorted(sums.items(), key=lambda item: -item[1])[:3]
    return tuple((name, used) for name, used in most if used >= MIN_NAMED)


class Watch:
    """Watches the machine during the measurements of a job, and repeats those during which it was busy."""

    def __init__(
        self, read: Callable[[], Reading] = read_machine, wait: float = WAIT, repeats: int = MAX_REPEATS
    ) -> None:
        """wait: seconds before a measurement is repeated. repeats: number of repeated measurements."""
        self.read, self.wait, self.left = read, wait, repeats
        self.repeated = 0
        self.kept: list[Load] = []

    def observe(self, run: Callable[[], T]) -> tuple[T, Load | None]:
        """Returns the result of `run`, and the load while it ran. None: the load is not known."""
        before = self.read()
        result = run()
        return result, load_between(before, self.read())

    def measure(self, run: Callable[[], T]) -> T:
        """Returns the result of `run` from a time in which the machine was not busy.

        Raises: Busy if it stays busy.
        """
        while True:
            result, load = self.observe(run)
            if load is None or not load.is_busy:
                self.kept += [] if load is None else [load]
                return result
            if self.left <= 0:
                raise Busy(load)
            self.left, self.repeated = self.left - 1, self.repeated + 1
            time.sleep(self.wait)

    def wait_until_quiet(self) -> None:
        """Returns as soon as the machine is not busy. Raises: Busy if it stays busy."""
        self.measure(lambda: time.sleep(WATCHED))

    def facts(self) -> dict[str, Any]:
        """Returns the largest load during the measurements that count, in cores, and the number of repeated measurements."""
        others = max((load.others for load in self.kept), default=None)
        stolen = max((load.stolen for load in self.kept), default=None)
        return {"others": others, "stolen": stolen, "repeated": self.repeated}


def begin(read: Callable[[], Reading] = read_machine) -> str:
    """Returns the line that names the processor, and says so if the load of other programs can't be measured.

    Raises: Busy if the load average is high, on a system that has no other count.
    """
    _, load = Watch(read).observe(lambda: time.sleep(0.2))
    line = f"Processor: {read_processor()}."
    if load is not None:
        return line
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = len(usable_cores())
    if average > MAX_LOAD_AVERAGE * cores:
        raise Busy(f"the machine is busy: its load average is {average:.1f} with {cores} cores")
    return f"{line} The load of other programs is only known before the start: an average of {average:.1f}."


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
