"""Damages the files of a run directory one by one, and uses the run: python -m tests.damage --count 200

One file of a small run is deleted, cut, emptied, zeroed, extended, has bits flipped, or is replaced by a folder, a link, a pipe or
another file. Then the run is trained on, sampled and scored. Each use must give the numbers of an undamaged run, or print a line
that names the file, or end with status 2 and such a line. A test fails if there is a traceback, or if numbers differ and no line
says why.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from gen import config as configs
from gen import evaluate, sample
from gen.config import Config, Log, Parallel, Save
from gen.errors import run_command
from gen.evaluation.score import Options
from gen.optim import Optimizer
from gen.train import train

SECONDS = 300
"""Seconds after which a use counts as hanging."""
STEPS = 6


class Damage(NamedTuple):
    """One file of one run, and what happens to it."""

    run: str
    file: str
    operation: str


class End(NamedTuple):
    """How a use of a run ended."""

    status: int
    said: str
    result: object
    """Its numbers."""


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def change_digit(path: Path, draw: random.Random) -> None:
    """Changes a digit, so that JSON stays JSON."""
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if byte in b"0123456789"]
    if places:
        i = draw.choice(places)
        content[i] = ord(str((int(chr(content[i])) + 1) % 10))
    path.write_bytes(content)


def to_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def to_pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path, draw: random.Random, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def to_other_file(path: Path, draw: random.Random) -> None:
    """Replaces a file by one of its neighbours."""
    others = [p for p in path.parent.iterdir() if p.is_file() and p != path] or [path]
    content = draw.choice(sorted(others)).read_bytes()
    path.write_bytes(content)


OPERATIONS: dict[str, Callable[[Path, random.Random], Any]] = {
    "delete": lambda path, draw: path.unlink(),
    "truncate": lambda path, draw: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path, draw: path.write_bytes(b""),
    "flip": flip,
    "digit": change_digit,
    "zero": lambda path, draw: path.write_bytes(bytes(path.stat().st_size)),
    "append": lambda path, draw: path.write_bytes(path.read_bytes() + b"\x00garbage\n"),
    "folder": to_folder,
    "pipe": to_pipe,
    "link": partial(to_link, target="config.json"),
    "link out": partial(to_link, target="/nowhere"),
    "other file": to_other_file,
    # Done by `inflict`, which knows the other run.
    "other run": lambda path, draw: None,
    "copy of a checkpoint": lambda path, draw: None,
}


def make_configs(folder: Path) -> dict[str, Config]:
    """Returns a small config of images and one of texts."""
    text = folder / "topics.txt"
    text.write_text("\n\n".join(topics.values())[:20_000])
    quick: dict[str, Any] = {
        "steps": STEPS,
        "evaluate_every": 2,
        "save": Save(every=2, keep=3),
        "log": Log(every=1),
        "parallel": Parallel(devices=1),
    }
    vae, lm = configs.load("vae_digits"), configs.load("lm_pydoc")
    model: Any = lm.model.tiny()
    words = replace(lm.data, name=f"text:{text}", split="tail:0.1", tokenizer="byte", length=16, batch_size=8)  # pyright: ignore
    return {
        "vae": replace(vae, model=vae.model.tiny(), data=replace(vae.data, batch_size=8), steps_per_call=1, **quick),
        "lm": replace(lm, model=replace(model, optim=Optimizer(lr=1e-3)), data=words, **quick),
    }


def files_of(workdir: Path) -> list[str]:
    return sorted(str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file())


def inflict(damage: Damage, workdir: Path, other: Path, seed: int) -> None:
    """Damages a run. other: the same run with another seed."""
    draw, path = random.Random(seed), workdir / damage.file
    if damage.operation == "other run":
        if (other / damage.file).is_file():
            shutil.copy(other / damage.file, path)
    elif damage.operation == "copy of a checkpoint":
        step = Path(damage.file).parts[1] if damage.file.startswith("checkpoints/") else "2"
        shutil.copytree(workdir / "checkpoints" / step, workdir / "checkpoints" / "7")
    else:
        OPERATIONS[damage.operation](path, draw)


def call(use: Callable[[], object]) -> End:
    """Calls a use of a run as its command does, in this process."""
    said, status, result = io.StringIO(), [0], []

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            run_command(lambda: result.append(use()), status.append)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return End(status[-1], said.getvalue(), result[-1] if result else None)


def resume(config: Config, workdir: Path) -> object:
    train(replace(config, steps=STEPS + 2), workdir)
    newest = workdir / "checkpoints" / str(STEPS + 2)
    sums = json.loads((newest / "manifest.json").read_text())["sha256"]
    timed = ("meta/", "_METADATA", "_CHECKPOINT", "_sharding", "array_metadatas", "commit_success")
    arrays = {name: sum_ for name, sum_ in sums.items() if not any(word in name for word in timed)}
    metrics = (workdir / "metrics.jsonl").read_bytes()
    return arrays, metrics, json.loads((workdir / "evaluation.json").read_text())["metrics"]


def draw_samples(config: Config, workdir: Path) -> object:
    out = workdir.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    words = ["--mode", "reconstruct"] if "image" in str(type(config.data)) else ["--tokens", "8"]
    sample.main([str(workdir), "--n", "4", "--out", str(out), *words])
    with np.load(out / "samples.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays}


def score(config: Config, workdir: Path) -> object:
    images: dict[str, Any] = {"metrics": ("kid",), "n": 64, "features": "pixels"}
    options = Options((workdir,), **images if "image" in str(type(config.data)) else {})
    return list(evaluate.scores(options).values())


USES: dict[str, Callable[[Config, Path], object]] = {"resume": resume, "sample": draw_samples, "evaluate": score}


def judge(damage: Damage, end: End, sound: End) -> str:
    """Returns "same", "named" or "refused", or what is wrong."""
    place = Path(damage.file)
    name = "/".join(place.parts[:2]) if place.parts[0] == "checkpoints" else place.name
    if damage.operation == "copy of a checkpoint":
        name = "checkpoints/7"
    named = name in end.said
    if end.status == 0 and end.result == sound.result:
        return "same"
    if "Traceback" in end.said or end.status not in (0, 2):
        return f"wrong: status {end.status}: {end.said.strip().splitlines()[-1]}"
    if not named:
        return f"wrong: {name} is not named: {end.said.strip().splitlines()[-1] if end.status else 'other numbers'}"
    return "refused" if end.status else "named"


class Bench:
    """Small undamaged runs, and how their uses end."""

    def __init__(self, folder: Path, runs: tuple[str, ...] = ("vae", "lm")):
        self.folder = folder
        self.configs = {name: config for name, config in make_configs(folder).items() if name in runs}
        self.sound: dict[tuple[str, str], End] = {}
        for name, config in self.configs.items():
            for seed, place in ((0, name), (1, f"{name}-other")):
                end = call(partial(train, replace(config, seed=seed), folder / place))
                assert end.status == 0, end.said
            call(partial(score, config, folder / name))
            for use in USES:
                with self.copy(name) as workdir:
                    self.sound[name, use] = end = call(partial(USES[use], config, workdir))
                assert end.status == 0 and end.result, end.said

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        workdir = self.folder / "copy"
        shutil.copytree(self.folder / name, workdir)
        try:
            yield workdir
        finally:
            shutil.rmtree(workdir)

    def damages(self, count: int, seed: int) -> list[Damage]:
        """Returns different damages: half of files outside of checkpoints, and a third of the newest checkpoint."""
        draw, found = random.Random(seed), {}
        while len(found) < count:
            run = draw.choice(sorted(self.configs))
            names = [name for name in files_of(self.folder / run) if not name.startswith(("samples/", "logs/"))]
            names += [name for name in files_of(self.folder / run) if name.startswith(("samples/", "logs/"))][-2:]
            inside = [name for name in names if name.startswith("checkpoints/")]
            newest = [name for name in inside if name.startswith(f"checkpoints/{STEPS}/")]
            outside = [name for name in names if name not in inside]
            pool = draw.choices((outside, newest, inside), (3, 2, 1))[0]
            found[Damage(run, draw.choice(pool), draw.choice(sorted(OPERATIONS)))] = None
        return list(found)

    def check(self, damage: Damage, seed: int) -> dict[str, str]:
        """Returns {use: how it ended}."""
        ends = {}
        for use in USES:
            with self.copy(damage.run) as workdir:
                inflict(damage, workdir, self.folder / f"{damage.run}-other", seed)
                end = call(partial(USES[use], self.configs[damage.run], workdir))
                ends[use] = judge(damage, end, self.sound[damage.run, use])
        return ends


def main(count: int = 200, seed: int = 0, run: str | None = None, file: str = "", operation: str = "") -> None:
    """Damage runs, and print what went wrong. run, file, operation: repeat one damage."""
    folder, begun = Path(tempfile.mkdtemp(prefix="damage-")), time.monotonic()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    bench = Bench(folder, ("vae", "lm") if run is None else (run,))
    damages = bench.damages(count, seed) if run is None else [Damage(run, file, operation)]
    good, kinds = 0, Counter[str]()
    for done, damage in enumerate(damages, 1):
        ends = bench.check(damage, seed)
        wrong = {use: end for use, end in ends.items() if end.startswith("wrong")}
        good += not wrong
        kinds.update(ends.values())
        # Every use compiles programs of its own. The memory of some hundred of them has more parts than Linux gives a process.
        jax.clear_caches()
        print(f"{done} of {len(damages)}", end="\r", file=sys.stderr, flush=True)
        if wrong or run is not None:
            print(f"{damage}: {ends}", flush=True)
        if wrong:
            again = f"--seed {seed} --run {damage.run} --file {damage.file} --operation {damage.operation!r}"
            print(f"  repeat: python -m tests.damage {again}", flush=True)
    shutil.rmtree(folder)
    uses = ", ".join(f"{kinds[kind]} {kind}" for kind in ("same", "named", "refused"))
    minutes = (time.monotonic() - begun) / 60
    print(f"{good} of {len(damages)} damages are healed, named or refused ({uses} uses; {minutes:.0f} minutes)")
    sys.exit(good < len(damages))


if __name__ == "__main__":
    tyro.cli(main)
