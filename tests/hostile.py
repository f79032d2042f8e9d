"""Gives gen hostile runs, manifests, arrays, tokenizers, pictures, texts and archives: python -m tests.hostile --count 300

gen must use each input, or refuse it with one short message and status 2. An input must not cause a traceback, take more than a
gigabyte of memory, run code, change a file of the user, or print a character that controls the terminal. The command prints a line
for each failure.
"""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import tyro

from gen import config as configs
from gen import sample
from gen.config import Log, Parallel, Save
from gen.errors import run_command
from gen.train import train

MAX_GROWTH = 2**30
"""Bytes that an input may take at its peak, over what the process had before."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that must not be printed."""
EVIL = "x\x1b]0;pwned\x07\x1b[31mEVIL\r\u202egnp.exe\nerror: forged"
"""A name that changes the title and the colours of a terminal, reverses the order of its letters, and begins another line."""
PRECIOUS = "precious"


class World(NamedTuple):
    """Sound inputs, of which hostile ones are made."""

    run: Path
    """A trained VAE, with samples and their manifest in generated/."""
    text: Path
    """A language model."""
    gpt2: Path
    """A GPT-2 in the files of Hugging Face's transformers, from which `text` was imported."""


class Case(NamedTuple):
    """A hostile input."""

    kind: str
    name: str
    act: Callable[[World, Path], object]
    """(world, an empty folder) -> makes the input in the folder, and gives it to gen. Links lead to victim.txt or nothing.txt."""
    refused: bool | None = True
    """Whether gen must refuse it. None: it may be refused or used."""


def make_world(folder: Path) -> World:
    """Trains a tiny VAE, and imports a tiny GPT-2."""
    from gen.interop.convert import import_run
    from tests.hostile_cases import write_gpt2

    config = configs.load("vae_digits")
    quick = {
        "steps": 2,
        "evaluate_every": 0,
        "save": Save(every=2),
        "log": Log(every=1),
        "parallel": Parallel(devices=1),
    }
    data = replace(config.data, batch_size=8)
    train(replace(config, model=config.model.tiny(), data=data, **quick), folder / "run")
    sample.main([str(folder / "run"), "--n", "4", "--out", str(folder / "run" / "generated")])
    write_gpt2(folder / "gpt2")
    import_run(folder / "gpt2", folder / "text")
    return World(folder / "run", folder / "text", folder / "gpt2")


def failure(case: Case, world: World, folder: Path) -> str | None:
    """Tries a case in an empty folder. Returns what is wrong with its end, or None."""
    victim, nothing, home = folder / "victim.txt", folder / "nothing.txt", Path.cwd()
    victim.write_text(PRECIOUS)
    (folder / "private").mkdir()
    (folder / "place").mkdir()
    found: dict[str, object] = {}
    os.chdir(folder)
    try:
        with _captured(found), _measured(found):
            status = _status(case, world, folder / "place")
    finally:
        os.chdir(home)
    printed = str(found["printed"])
    ends = {True: (2,), False: (0,), None: (0, 2)}[case.refused]
    after = printed.rpartition("error: ")[2] if status == 2 else ""
    wrong = {
        f"status {status}": status not in ends,
        "a traceback": "Traceback" in printed,
        "a control character": CONTROL.search(printed) is not None,
        "a long error": len(after.strip().splitlines()) > 3,
        f"{int(str(found['growth'])) >> 20} MiB of memory": int(str(found["growth"])) > MAX_GROWTH,
        "a file of the user was written": victim.read_text() != PRECIOUS or nothing.exists(),
        "a file was written outside": bool(list((folder / "private").iterdir())),
        "code was run": (folder / "code-was-run").exists(),
    }
    reasons = [reason for reason, is_wrong in wrong.items() if is_wrong]
    return f"{'; '.join(reasons)}: {printed[-300:]!a}" if reasons else None


def _status(case: Case, world: World, folder: Path) -> object:
    try:
        run_command(lambda: case.act(world, folder))
    except SystemExit as end:
        return end.code
    return 0


@contextmanager
def _captured(found: dict[str, object]) -> Iterator[None]:
    """Collects everything that is printed inside, also by libraries that are not in Python."""
    before, kept = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as file:
        stream = io.TextIOWrapper(io.FileIO(os.dup(file.fileno()), "w"), encoding="utf-8", write_through=True)
        sys.stdout = sys.stderr = stream
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            stream.close()
            sys.stdout, sys.stderr = before
            for number, old in enumerate(kept, 1):
                os.dup2(old, number)
                os.close(old)
            file.seek(0)
            found["printed"] = file.read().decode("utf-8", "replace")


@contextmanager
def _measured(found: dict[str, object]) -> Iterator[None]:
    """Measures by how many bytes the memory of the process grows inside, at its peak."""
    # Linux counts the peak from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    try:
        yield
    finally:
        found["growth"] = _memory("VmHWM") - before


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def try_all(cases: list[Case], world: World, folder: Path, say: Callable[[str], None]) -> int:
    """Tries the cases, and says a line for each failure. Returns the number of failures."""
    failures = 0
    for case in cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun = time.monotonic()
        reason = failure(case, world, folder)
        if reason:
            failures += 1
            say(f"{case.kind}: {case.name}: {reason}; again: python -m tests.hostile --only {case.kind}:{case.name!r}")
        elif time.monotonic() - begun > 20:
            say(f"{case.kind}: {case.name}: took {time.monotonic() - begun:.0f} s")
    return failures


def main(count: int = 1000, seed: int = 0, only: str = "") -> None:
    """Try hostile inputs. count: how many, drawn by the seed if there are more. only: KIND, or KIND:NAME."""
    from tests.hostile_cases import all_cases

    cases = [case for case in all_cases() if f"{case.kind}:{case.name}".startswith(only)]
    random.Random(seed).shuffle(cases)
    cases = sorted(cases[:count], key=lambda case: case.kind)
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    begun = time.monotonic()
    world = make_world(folder / "world")
    failures = 0
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [case for case in cases if case.kind == kind]
        failed = try_all(of_kind, world, folder / "tried", lambda text: print(text, flush=True))
        print(f"{kind}: {len(of_kind) - failed} of {len(of_kind)} right", flush=True)
        failures += failed
    print(f"{len(cases) - failures} of {len(cases)} right in {(time.monotonic() - begun) / 60:.0f} minutes")
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    tyro.cli(main)
