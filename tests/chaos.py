"""Kills a training again and again, and checks its end: python -m tests.chaos --family vae --kills 50 --seed 0

A run is killed at random moments, at least a third of them inside a save, or told to stop (SIGTERM), and started again each
time. In the end its last checkpoint, metrics.jsonl and evaluation.json must equal, bit for bit, the files of a run that was not
interrupted.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from tests.processes import QUICK, environment, hosts, statuses, until

FAMILIES = {
    "vae": ["vae_digits", *QUICK],
    "gan": [
        *("gan_digits", "--model.generator.widths", "16", "16", "--model.discriminator.widths", "16", "16"),
        *("--data.batch-size", "16", "--alarms.action", "off", "--log.no-tensorboard"),
    ],
    "lm": [
        *("lm_pydoc", "--model.network.layers", "2", "--model.network.width", "16", "--model.network.heads", "2"),
        *("--model.network.unroll", "1", "--data.tokenizer", "byte", "--data.length", "32"),
        *("--data.batch-size", "8", "--log.no-tensorboard"),
    ],
}
# Steps between saves.
EVERY = 60
# Steps after which a process is killed, at most.
LIFE = 3 * EVERY


def chaos(family: str, kills: int, seed: int, folder: Path, n: int = 1, say: Callable[[str], None] = print) -> int:
    """Trains with kills in `folder`, on n hosts of which one is killed at a time. Returns the number of kills inside a save.

    Raises: AssertionError with the difference to a run that was not interrupted.
    """
    draw, env = random.Random(seed), environment(folder / "cache")
    steps = (kills + 1) * LIFE
    common = [
        *FAMILIES[family],
        "--steps",
        steps,
        "--save.every",
        EVERY,
        "--evaluate-every",
        EVERY // 2,
        "--log.every",
        1,
    ]
    start = lambda workdir: hosts(n, [*common, "--workdir", workdir], env, folder / "logs")
    said = lambda: (folder / "logs" / "host-0.txt").read_text()[-2000:]
    whole, hurt = folder / "whole", folder / "hurt"
    with start(whole) as running:
        assert statuses(running, 3600) == [0] * n, said()

    inside = 0
    for kill in range(kills):
        in_save = partial(saving, hurt, lives(hurt), time.time())
        a_third = inside * 3 < kill + 1  # of all so far are to be inside a save
        due, number = (in_save, signal.SIGKILL) if a_third else moment(draw, hurt)
        with start(hurt) as running:
            assert until(due, running), f"kill {kill + 1}: not reached\n{said()}"
            victim = draw.choice(running)
            victim.send_signal(number)
            victim.wait(120)
            caught = number == signal.SIGKILL and in_save()
            # Others leave by themselves, to be started again, or are aborted by the runtime.
            left = [p.wait(60) for p in running if p is not victim or number == signal.SIGTERM]
            assert all(status in (75, -signal.SIGABRT) for status in left), (left, said())
        inside += caught
        say(f"{number.name} {kill + 1} of {kills}{' inside a save' * caught}, after {lines(hurt)} lines")
    with start(hurt) as running:
        assert statuses(running, 3600) == [0] * n, said()
    compare(whole, hurt, steps)
    return inside


def moment(draw: random.Random, workdir: Path) -> tuple[Callable[[], bool], signal.Signals]:
    """Returns a random moment to end a process, and the signal: SIGTERM, at which the run saves, in a third of the cases."""
    number = signal.SIGTERM if draw.random() < 1 / 3 else signal.SIGKILL
    if draw.random() < 0.15:  # while it starts
        end = time.monotonic() + draw.uniform(0.5, 3)
        return lambda: time.monotonic() > end, signal.SIGKILL
    least = lines(workdir) + draw.randint(1, LIFE - 1)
    return lambda: lines(workdir) >= least, number


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lives(workdir: Path) -> int:
    """Returns the number of processes that have trained there."""
    log = workdir / "logs" / "host-000.log"
    return log.read_text().count("compiled in") if log.exists() else 0


def saving(workdir: Path, before: int, since: float) -> bool:
    """Returns whether process number `before` + 1 is inside a save: a checkpoint is half written, or not sealed yet.

    Leftovers of earlier processes, older than `since`, don't count. They are removed before the first step.
    """
    if lives(workdir) == before:
        return False
    folder = workdir / "checkpoints"
    open_ = [p for p in folder.glob("[0-9]*") if p.name.isdecimal() and not (p / "manifest.json").exists()]
    return any(modified(p) > since for p in [*folder.glob("*.orbax-checkpoint-tmp*"), *open_])


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # renamed just now
        return 0.0


def compare(whole: Path, hurt: Path, steps: int) -> None:
    """Raises: AssertionError for the first thing that differs."""
    one, other = (path / "checkpoints" / str(steps) for path in (whole, hurt))
    sums = [json.loads((path / "manifest.json").read_text())["sha256"] for path in (one, other)]
    arrays = [{k: v for k, v in found.items() if not k.startswith(("meta", "_"))} for found in sums]
    parts = {k.split("/")[0] for k in arrays[0]}
    assert {"params", "opt_state"} <= parts, parts
    timed = ("_METADATA", "_sharding", "array_metadatas", "commit_success")  # of when and where it was written
    content = [{k: v for k, v in found.items() if not any(t in k for t in timed)} for found in arrays]
    different = [k for k in content[0].keys() | content[1].keys() if content[0].get(k) != content[1].get(k)]
    assert not different, f"the checkpoints differ in {different[:5]}"
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (whole / name).read_bytes() == (hurt / name).read_bytes(), f"{name} differs"
    found = [json.loads(line) for line in (hurt / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in found if line["split"] == "train"]
    assert trained == list(range(1, steps + 1)), "metrics.jsonl has a gap or a repeated step"
    with np.load(whole / "reference.npz") as a, np.load(hurt / "reference.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a), "reference.npz differs"


def main(family: Literal["vae", "gan", "lm"] = "vae", kills: int = 50, seed: int = 0, hosts: int = 1) -> None:
    """Kill a family's training, and print how it ended."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    begun = time.monotonic()
    inside = chaos(family, kills, seed, folder, hosts, say=lambda text: print(text, flush=True))
    minutes = (time.monotonic() - begun) / 60
    print(
        f"{family}: {kills} of {kills} kills survived, {inside} SIGKILLs inside a save; bit-identical; {minutes:.0f} minutes"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except AssertionError as error:
        sys.exit(f"failed: {error}")
