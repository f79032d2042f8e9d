"""Names places in the code, and makes a process kill itself when it passes one of them for the n-th time.

A place is one or several functions of gen or of a library. `install` wraps each of them in a counter, and `arm` chooses the place and
the count at which this process ends. `python -m tests.places KILL COUNTS train.py ...` is a new process that ends at the place
"import".
"""

from __future__ import annotations

import mmap
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from typing import Any

PLACES = {
    "import": ("importlib.machinery:SourceFileLoader.exec_module",),
    # The start of a run.
    "backend": ("gen.runtime.backend:start_backend",),
    "data": ("gen.runs.base:build_data",),
    "cache": ("gen.data.cache:load_or_make", "gen.data.cache:save"),
    "engine": ("gen.runtime.engine:compile_engine",),
    "compile": ("jax._src.compiler:compile_or_get_cached",),
    "lock": ("gen.runs.directory:lock_run",),
    "config": ("gen.runs.directory:write_config",),
    "reference": ("gen.runs.directory:write_reference",),
    "restore": ("gen.runs.checkpoint:restore",),
    "open log": ("gen.runs.log:open_log",),
    "truncate": ("os:truncate",),
    # A step, its evaluation, and its log.
    "step": ("gen.runs.log:RunLog.step",),
    "line": ("gen.runs.log:RunLog.metrics",),
    "telemetry": ("gen.runs.log:RunLog.telemetry",),
    "flush": ("gen.runs.log:RunLog.end",),
    "evaluation": ("gen.train:Monitor.evaluate",),
    "samples": ("gen.runs.run:write_samples",),
    "alarms": ("gen.train:Monitor.check_alarms",),
    "rollback": ("gen.train:roll_back",),
    # A save.
    "save": ("gen.runs.checkpoint:Saver.__call__",),
    "commit": ("orbax.checkpoint:AsyncCheckpointer.wait_until_finished",),
    "seal": ("gen.runs.manifest:seal",),
    "retention": ("gen.runs.ranking:steps_to_keep",),
    "removal": ("shutil:rmtree",),
    "finish save": ("gen.runs.checkpoint:Saver.close",),
    # The end of a run.
    "final test": ("gen.train:test",),
    "scores": ("gen.runs.directory:write_evaluation",),
    "close log": ("gen.runs.log:RunLog.close",),
    # Calls of the operating system, by gen and by Orbax.
    "folder": ("os:mkdir",),
    "rename": ("os:replace", "os:rename"),
    "sync": ("os:fsync",),
    "unlink": ("os:unlink",),
}
"""{name: functions as MODULE:ATTRIBUTE}. A passage of any of the functions is a passage of the place."""
BEFORE_IMPORTS = ("import",)
"""Places of a process that has not imported gen yet. All others are installed after all imports."""
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "USR1": signal.SIGUSR1, "INT": signal.SIGINT}


@dataclass(frozen=True)
class Kill:
    """A signal that a process sends to itself, and the place at which it does."""

    signal: str
    """A name of SIGNALS, or TERM+N: SIGTERM, then SIGKILL as soon as any places were passed N times more."""
    when: str
    """before or after the call."""
    place: str
    passage: int
    """The passage of the place, from 1, counted over the whole process."""

    def __str__(self) -> str:
        return f"{self.signal}:{self.when}:{self.place}:{self.passage}"

    @classmethod
    def parse(cls, text: str) -> Kill:
        """Returns the kill of a text that `str` made. Raises: ValueError for another text."""
        name, when, place, passage = text.split(":")
        if name.split("+")[0] not in SIGNALS or when not in ("before", "after") or place not in PLACES:
            raise ValueError(f"{text!r} is no SIGNAL:before|after:PLACE:PASSAGE")
        return cls(name, when, place, int(passage))


class Counts:
    """Passages of each place, in a file that the processes of a start share. It outlives their kill."""

    def __init__(self, path: Path):
        if not path.exists():
            path.write_bytes(bytes(8 * (len(PLACES) + 1)))
        with open(path, "r+b") as file:
            self.numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def add(self, place: str) -> None:
        self.numbers[1 + list(PLACES).index(place)] += 1

    def of(self, place: str) -> int:
        return self.numbers[1 + list(PLACES).index(place)]

    @property
    def fired(self) -> bool:
        """Whether the process has sent its signal."""
        return bool(self.numbers[0])

    def fire(self) -> None:
        self.numbers[0] = 1


class _Trigger:
    """What an armed process knows: its counts, its kill, and how many passages are left until a second signal."""

    def __init__(self, counts: Counts, kill: Kill | None):
        self.counts, self.kill = counts, kill
        # Of this process alone: several hosts share the counts.
        self.passages = dict.fromkeys(PLACES, 0)
        self.left: int | None = None
        # A signal handler may pass a place while its thread holds the lock.
        self.lock = threading.RLock()

    def enter(self, place: str) -> int:
        """Counts a passage, and returns its number."""
        with self.lock:
            self.counts.add(place)
            self.passages[place] += 1
            passage = self.passages[place]
            if self.left is not None:
                self.left -= 1
        if self.left is not None and self.left <= 0:
            _send(signal.SIGKILL)
        return passage

    def reach(self, when: str, place: str, passage: int) -> None:
        """Sends the signal if this is the place."""
        kill = self.kill
        if kill is None or (kill.when, kill.place, kill.passage) != (when, place, passage):
            return
        name, _, later = kill.signal.partition("+")
        self.left = int(later) if later else None
        self.counts.fire()
        _send(SIGNALS[name])


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    if number == signal.SIGKILL:
        # A process ends a moment after its SIGKILL, and must not work on until then.
        time.sleep(60)


_trigger: _Trigger | None = None


def arm(counts: Counts, kill: Kill | None) -> None:
    """Counts the passages of this process from here on, and ends it at its place."""
    global _trigger
    _trigger = _Trigger(counts, kill)


def install(names: Collection[str]) -> None:
    """Puts a counter around the functions of these places, wherever a module has imported them.

    Raises: ImportError or AttributeError if one of them does not exist.
    """
    for name in names:
        for target in PLACES[name]:
            owner, attribute = find(target)
            old = getattr(owner, attribute)
            new = _counted(name, old)
            setattr(owner, attribute, new)
            if ismodule(owner):
                for module in list(sys.modules.values()):
                    if getattr(module, "__dict__", {}).get(attribute) is old:
                        setattr(module, attribute, new)


def find(target: str) -> tuple[Any, str]:
    """Returns the module or class that holds a function, and the function's name there. target: MODULE:ATTRIBUTE."""
    module, _, path = target.partition(":")
    owner: Any = import_module(module)
    *classes, attribute = path.split(".")
    for name in classes:
        owner = getattr(owner, name)
    getattr(owner, attribute)
    return owner, attribute


def _counted(place: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        trigger = _trigger
        if trigger is None:
            return function(*arguments, **options)
        passage = trigger.enter(place)
        trigger.reach("before", place, passage)
        result = function(*arguments, **options)
        trigger.reach("after", place, passage)
        return result

    return call


def main() -> None:
    """Runs a script that ends itself at a place before its imports are done."""
    kill, counts, *sys.argv = sys.argv[1:]
    arm(Counts(Path(counts)), Kill.parse(kill))
    install(BEFORE_IMPORTS)
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
