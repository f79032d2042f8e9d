"""Two hosts that are killed, stopped, stalled, or different: python -m tests.two_hosts --count 60

Each scenario starts two small trainings on this machine, and kills, stops, stalls or changes one of them. Then both must have the
right exit status, and a line that says why they ended. A scenario that fails is printed with the command that repeats it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from tests.processes import CHEAP, QUICK, ROOT, environment, free_port

HEARTBEAT = 8
"""Seconds of silence after which a host counts as dead."""
STARTUP = 90
"""Seconds that the hosts wait for each other."""
LONG, SHORT = HEARTBEAT + 6, 2
"""Seconds for which a host is stopped."""
PATIENCE = 600
"""Seconds after which a scenario has failed."""
STEPS = {"short": 20, "long": 100_000}
NOISE = re.compile(r"Traceback|^    @ +0x|\*\*\* |terminate called|^[EF]\d{4} \d\d:", re.MULTILINE)
"""Stacks of Python and of C++, and messages of the runtime."""
GONE = "another host has ended|host [01]: "
CODE = "gen/families/vae/objectives.py", "reconstruction + self.beta(step) * penalty"
Moment = Literal["start", "import", "compile", "train", "save"]


class Scenario(NamedTuple):
    """Two hosts, what happens to one of them, and how both must end."""

    name: str
    statuses: tuple[int, int]
    """Exit statuses that are right: of host 0 and of host 1."""
    reasons: tuple[str | None, str | None] = (None, None)
    """Regular expressions for the last line of each host. None: it may say anything."""
    steps: Literal["short", "long"] = "long"
    moment: Moment = "start"
    victim: int = 0
    """The host to which something is done."""
    act: Callable[[subprocess.Popen[bytes]], None] | None = None
    """What is done to it at that moment."""
    arguments: tuple[Sequence[str], Sequence[str]] = ((), ())
    variables: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
    edit: tuple[str, str, str] | None = None
    """(file, text, new text) of the copy of the code that the victim runs."""
    prepare: Callable[[Path], object] | None = None
    """What is done to the run directory before the start."""
    delays: tuple[float | None, float | None] = (0, 0)
    """Seconds before each host is started. None: it is never started."""


def of_victim(victim: int, its: object, other: object) -> tuple:
    """Returns a pair, by host, of values for the victim and for the other host."""
    return (its, other) if victim == 0 else (other, its)


def send(*numbers: int) -> Callable[[subprocess.Popen[bytes]], None]:
    """Returns an act: these signals, half a second apart."""

    def act(process: subprocess.Popen[bytes]) -> None:
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.5)

    return act


def stall(seconds: float) -> Callable[[subprocess.Popen[bytes]], None]:
    """Returns an act: the process stands still for some seconds."""

    def act(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    return act


def signals_at_moments() -> list[Scenario]:
    """Returns scenarios in which something happens to one host at some moment."""
    found: list[Scenario] = []
    moments: tuple[Moment, ...] = ("import", "compile", "train", "save")
    for victim in (0, 1):
        both = lambda text: (text, text)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            for moment in moments:
                reasons = both("stopped at step")
                if moment == "import":
                    reasons = of_victim(victim, "stopped", f"did not meet|{GONE}")
                if moment == "compile":
                    reasons = both(f"stopped|{GONE}")
                name = f"{number.name} to host {victim} at {moment}"
                found.append(Scenario(name, (75, 75), reasons, "long", moment, victim, send(number)))
        for moment in moments:
            statuses, reasons = of_victim(victim, -9, 75), of_victim(victim, None, f"did not meet|{GONE}")
            name = f"SIGKILL of host {victim} at {moment}"
            found.append(Scenario(name, statuses, reasons, "long", moment, victim, send(signal.SIGKILL)))
        for moment in moments[1:]:
            name = f"host {victim} stalls for {LONG} s at {moment}"
            found.append(Scenario(name, (75, 75), both(GONE), "long", moment, victim, stall(LONG)))
        name = f"host {victim} stalls for {SHORT} s at train"
        found.append(Scenario(name, (0, 0), (None, None), "short", "compile", victim, stall(SHORT)))
        name = f"Ctrl-C at host {victim} at compile"
        found.append(Scenario(name, (130, 130), both("interrupted"), "long", "compile", victim, send(signal.SIGINT)))
        name = f"Ctrl-C at host {victim} at train"
        found.append(Scenario(name, (75, 75), both("stopped at step"), "long", "train", victim, send(signal.SIGINT)))
    return found


def differences() -> list[Scenario]:
    """Returns scenarios in which the hosts differ."""
    options = {
        "seed": ("the hosts have different configs: seed is", "--seed", "7"),
        "steps": ("the hosts have different configs: steps is", "--steps", "21"),
        "batch": ("the hosts have different configs: data.batch_size", "--data.batch-size", "32"),
        "data": ("the hosts have different configs: data.train", "--data.train", "train[:50%]"),
        "engine": ("the hosts have different configs: parallel.engine", "--parallel.engine", "jit"),
        "workdir": ("the hosts have different configs: workdir is", "--workdir", "elsewhere"),
        "missing data": (
            "can't be read|not a folder|no such|does not exist|not found|no images|none",
            "--data.name",
            "folder:missing",
        ),
        "devices": ("same number of devices", "--parallel.cpu-devices", "2"),
    }
    variables = {
        "XLA_FLAGS": ("different environments: XLA_FLAGS", f"{CHEAP} --xla_cpu_enable_fast_math=true"),
        "JAX_ENABLE_X64": ("different settings: jax_enable_x64", "1"),
        "JAX_DEFAULT_MATMUL_PRECISION": ("different settings: jax_default_matmul_precision", "highest"),
        "JAX_DEBUG_NANS": ("different settings: jax_debug_nans", "1"),
    }
    found = []
    for victim in (0, 1):
        for name, (reason, *arguments) in options.items():
            given = of_victim(victim, tuple(arguments), ())
            found.append(Scenario(f"other {name} at host {victim}", (2, 2), (reason, reason), "short", arguments=given))
        file, text = CODE
        edit = file, text, text.replace("+ ", "+ 3.0 * ")
        reason = "program of the update on host 1 .*objectives.py"
        found.append(
            Scenario(f"other code at host {victim}", (2, 2), (reason, reason), "short", victim=victim, edit=edit)
        )
    for name, (reason, value) in variables.items():
        found.append(Scenario(f"other {name}", (2, 2), (reason, reason), "short", variables=({}, {name: value})))
    comment = (CODE[0], CODE[1], CODE[1] + "  # the bound")
    found.append(Scenario("another comment in the code", (0, 0), (None, None), "short", victim=1, edit=comment))
    dumps = ({}, {"XLA_FLAGS": f"{CHEAP} --xla_dump_hlo_as_text=false"})
    found.append(Scenario("another flag that changes no number", (0, 0), (None, None), "short", variables=dumps))
    return found


def places() -> list[Scenario]:
    """Returns scenarios in which something is wrong with the run directory, or with the start."""
    reason = "is a folder, but a run has a file"
    found = [
        Scenario(f"{name} is a folder", (2, 2), (reason, reason), "short", prepare=_folder(name))
        for name in ("metrics.jsonl", "config.json")
    ]
    reason = "Is a directory; the fix"
    for host in (0, 1):
        prepare = _folder(f"logs/host-{host:03d}.log")
        found.append(Scenario(f"host {host} can't write its log", (2, 2), (reason, reason), "short", prepare=prepare))
    reason = "No space left on device; the fix"
    found.append(Scenario("the disk is full", (2, 2), (reason, reason), "long", prepare=_small_disk))
    found.append(
        Scenario("the disk is read-only", (2, 2), ("Read-only", "Read-only"), "short", prepare=_read_only_disk)
    )
    late = ["--parallel.startup-seconds", "20"]
    for missing in (0, 1):
        delays = of_victim(missing, None, 0)
        statuses, reasons = of_victim(missing, 0, 75), of_victim(missing, None, "did not meet within 20 s")
        found.append(
            Scenario(f"host {missing} never comes", statuses, reasons, "short", arguments=(late, late), delays=delays)
        )
        found.append(Scenario(f"host {missing} comes late", (0, 0), steps="short", delays=of_victim(missing, 15, 0)))
    return found


def _folder(name: str) -> Callable[[Path], object]:
    return lambda workdir: (workdir / name).mkdir(parents=True)


def _small_disk(workdir: Path) -> None:
    workdir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", workdir], check=True)


def _read_only_disk(workdir: Path) -> None:
    workdir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k,ro", "tmpfs", workdir], check=True)


def scenarios() -> list[Scenario]:
    """Returns all scenarios."""
    return [*signals_at_moments(), *differences(), *places()]


def has_come(moment: Moment, workdir: Path, begun: float) -> bool:
    """Returns whether a run has come to a moment. begun: when its processes were started, time.monotonic()."""
    metrics = workdir / "metrics.jsonl"
    match moment:
        case "start":
            return True
        case "import":
            return time.monotonic() - begun > 3
        case "compile":
            return (workdir / ".lock").exists()
        case "train":
            return metrics.exists() and metrics.read_bytes().count(b"\n") > 5
        case "save":
            return any((workdir / "checkpoints").glob("*"))


def run(scenario: Scenario, folder: Path, env: Mapping[str, str]) -> str | None:
    """Runs a scenario. Returns what is wrong, None if nothing is. folder: an empty folder. env: of the processes."""
    workdir = folder / "run"
    if scenario.prepare:
        scenario.prepare(workdir)
    try:
        processes = start(scenario, folder, workdir, env)
        try:
            act(scenario, workdir, processes)
            end = time.monotonic() + PATIENCE
            for process in filter(None, processes):
                process.wait(max(1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"it did not end within {PATIENCE} s"
        finally:
            for process in filter(None, processes):
                process.kill()
                process.wait()
    finally:
        subprocess.run(["umount", "-l", workdir], capture_output=True)
    return wrong(scenario, folder, [process.returncode if process else 0 for process in processes])


def start(
    scenario: Scenario, folder: Path, workdir: Path, env: Mapping[str, str]
) -> list[subprocess.Popen[bytes] | None]:
    """Starts the hosts of a scenario. None: a host that never comes."""
    common = [
        "vae_digits",
        *QUICK,
        "--steps",
        str(STEPS[scenario.steps]),
        "--save.every",
        "10",
        "--evaluate-every",
        "0",
    ]
    common += ["--log.every", "1", "--workdir", str(workdir), "--parallel.coordinator", f"127.0.0.1:{free_port()}"]
    common += ["--parallel.hosts", "2", "--parallel.cpu-devices", "1", "--parallel.heartbeat-seconds", str(HEARTBEAT)]
    common += ["--parallel.startup-seconds", str(STARTUP), "--parallel.grace-seconds", "60"]
    started: list[subprocess.Popen[bytes] | None] = [None, None]
    # The one that comes first is started first.
    for host in sorted((0, 1), key=lambda host: scenario.delays[host] or 0):
        if (delay := scenario.delays[host]) is None:
            continue
        time.sleep(delay)
        code = ROOT
        if scenario.edit and scenario.victim == host:
            code = copy_code(folder / "code", *scenario.edit)
        command = [sys.executable, str(code / "train.py"), *common, "--parallel.host", str(host)]
        variables = {**env, "PYTHONPATH": str(code), **scenario.variables[host]}
        with open(folder / f"host-{host}.txt", "wb") as output:
            started[host] = subprocess.Popen(
                [*command, *scenario.arguments[host]],
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
    return started


def copy_code(folder: Path, file: str, text: str, new: str) -> Path:
    """Copies gen with a change in one file."""
    for name in ("gen", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    content = (folder / file).read_text()
    assert text in content, f"{file} has no {text!r}"
    (folder / file).write_text(content.replace(text, new))
    return folder


def act(scenario: Scenario, workdir: Path, processes: Sequence[subprocess.Popen[bytes] | None]) -> None:
    """Waits for the scenario's moment, and does what it does to its victim."""
    victim = processes[scenario.victim]
    if scenario.act is None or victim is None:
        return
    begun = time.monotonic()
    while not has_come(scenario.moment, workdir, begun) and time.monotonic() - begun < PATIENCE:
        if any(process and process.poll() is not None for process in processes):
            return
        time.sleep(0.002)
    scenario.act(victim)


def wrong(scenario: Scenario, folder: Path, statuses: Sequence[int]) -> str | None:
    """Returns what is wrong about how the hosts ended, None if nothing is."""
    if tuple(statuses) != scenario.statuses:
        return f"the statuses are {tuple(statuses)} instead of {scenario.statuses}"
    for host, reason in enumerate(scenario.reasons):
        path = folder / f"host-{host}.txt"
        said = path.read_text(errors="replace") if path.exists() else ""
        if noise := NOISE.search(said):
            return f"host {host} printed {noise[0]!r}"
        # gloo prints a line without an end.
        last = said.rstrip("\n").rpartition("\n")[2]
        if reason and not re.search(reason, last):
            return f"the last line of host {host} is {last[-300:]!r}; it lacks {reason!r}"
    return None


def main(count: int = 60, start: int = 0, only: str | None = None, keep: bool = False) -> None:
    """Run scenarios, and print those that are wrong.

    Args:
        count: number of scenarios.
        start: number of the first one.
        only: run only those whose names contain this text.
        keep: keep the folders of scenarios that are wrong.
    """
    chosen = list(enumerate(scenarios()))[start : start + count]
    chosen = [(i, scenario) for i, scenario in chosen if only is None or only in scenario.name]
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    env = environment(folder / "cache")
    right = 0
    for i, scenario in chosen:
        begun = time.monotonic()
        inside = folder / str(i)
        inside.mkdir()
        reason = run(scenario, inside, env)
        right += reason is None
        seconds = time.monotonic() - begun
        repeat = f"; to repeat: python -m tests.two_hosts --start {i} --count 1 --keep"
        print(f"{i:3} {seconds:4.0f} s  {scenario.name}: {f'{reason}{repeat}' if reason else 'right'}", flush=True)
        if not (keep and reason):
            shutil.rmtree(inside, ignore_errors=True)
    print(f"{right} of {len(chosen)} scenarios are right")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(right != len(chosen))


if __name__ == "__main__":
    tyro.cli(main)
