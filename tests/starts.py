"""Small runs of every family, and starts of them: forked processes that train until the run's end or a named place (tests/places.py).

A fork takes milliseconds, and a new Python process takes seconds to import JAX. So the process that imports this module must never
use JAX itself: XLA's threads would not survive the fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

import gen.train
from gen import config as configs
from gen.config import Alarms, Config, Faults, Log, Parallel, Save
from gen.core import Family, GenerativeModel
from gen.data.images import Images
from gen.data.text import Text
from gen.errors import run_command
from gen.families.language.language import LanguageModel
from gen.families.vae import VAE
from gen.networks.vae import Perceptron
from gen.optim.adapters import LoRA
from gen.runtime import hosts
from tests import places
from tests.places import Counts, Kill
from tests.processes import ROOT, free_port

MAX_SECONDS = 600
"""A start that takes longer hangs."""


class Engine(NamedTuple):
    """The launch settings of a start that may change between starts."""

    parallel: Parallel
    steps_per_call: int = 1
    hosts: int = 1


def _several_hosts(n: int) -> Engine:
    return Engine(Parallel(cpu_devices=1, heartbeat_seconds=20, startup_seconds=60), hosts=n)


ENGINES = {
    "pmap1": Engine(Parallel("pmap", cpu_devices=1)),
    "pmap2": Engine(Parallel("pmap", cpu_devices=2)),
    "pmap1x10": Engine(Parallel("pmap", cpu_devices=1), 10),
    "pmap2x10": Engine(Parallel("pmap", cpu_devices=2), 10),
    "jit1": Engine(Parallel("jit", cpu_devices=1)),
    "jit2": Engine(Parallel("jit", cpu_devices=2)),
    "fsdp2": Engine(Parallel("jit", cpu_devices=2, fsdp=True)),
    "hosts2": _several_hosts(2),
}


@dataclass(frozen=True)
class Scenario:
    """A small run."""

    name: str
    """Name of a config."""
    data: str = "digits"
    engines: tuple[str, ...] = ("pmap1", "pmap2", "jit1", "jit2")
    """Engines among which starts may change. The first one is used most."""
    save: Save = Save(every=4)
    evaluate_every: int = 6
    steps: int = 12
    faults: Faults = Faults()
    spikes: tuple[int, ...] = ()
    """Steps at which every metric is NaN."""
    lora: str | None = None
    """Scenario of the base. None: all weights are trained, from scratch."""


SCENARIOS = {
    "vae": Scenario(
        "vae_digits",
        engines=("pmap1", "pmap2", "jit1", "jit2", "fsdp2"),
        save=Save(every=4, best=("neg_elbo", "min")),
        evaluate_every=3,
    ),
    "gan": Scenario("gan_digits", "pictures"),
    "lm": Scenario("lm_pydoc", "text"),
    "mlm": Scenario("mlm_pydoc", "text"),
    "seq2seq": Scenario("seq2seq_docstring", "pairs"),
    "lora": Scenario("lm_pydoc", "text", lora="lm"),
    "rollback": Scenario("gan_digits", "pictures", faults=Faults("rollback"), spikes=(6, 7, 11)),
    "ten": Scenario("vae_digits", engines=("pmap1x10", "pmap2x10"), save=Save(every=10), evaluate_every=20, steps=40),
    "hosts": Scenario("vae_digits", engines=("hosts2",)),
}


def make_data(folder: Path) -> None:
    """Writes 60 pictures in 3 classes, a text, and pairs of a number and its digits as words."""
    draw = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    for i, picture in enumerate(pixels):
        path = folder / "pictures" / f"class{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.txt").write_text(" ".join(draw.choices(words, k=20)))
    pairs = [{"source": str(7 * i), "target": " ".join(words[int(d)] for d in str(7 * i))} for i in range(60)]
    (folder / "pairs").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@cache
def configure(name: str, engine: str, folder: Path) -> Config:
    """Returns the config of a scenario. folder: of the data, and of the runs left alone, one of which may be the base."""
    scenario, (parallel, steps_per_call, _) = SCENARIOS[name], ENGINES[engine]
    config = configs.load(scenario.name)
    base = folder / "whole" / f"{scenario.lora}-pmap1"
    return replace(
        config,
        model=_shrink(config.model),
        data=_data(scenario.data, folder),
        steps=scenario.steps,
        steps_per_call=steps_per_call,
        evaluate_every=scenario.evaluate_every,
        parallel=parallel,
        save=scenario.save,
        faults=scenario.faults,
        log=Log(every=1, tensorboard=False, request=("n=2",)),
        alarms=Alarms(),
        **({"init_from": str(base), "finetune": "lora", "lora": LoRA(rank=2)} if scenario.lora else {}),
    )


def _shrink(model: Family) -> Family:
    small: Any = model.tiny()
    if isinstance(model, LanguageModel):
        # The schedules of the configs warm up for longer than a small run.
        return replace(small, optim=replace(small.optim, lr=1e-3))
    # A matrix of 64 x 64 is the smallest that FSDP shards.
    return replace(small, network=Perceptron((64, 64))) if isinstance(model, VAE) else small


def _data(name: str, folder: Path) -> Images | Text:
    if name == "digits":
        return Images(name="digits", batch_size=16, train="train[:200]", validation="train[200:232]", test="test[:32]")
    if name == "pictures":
        splits: Any = {"train": "train[:40]", "validation": "train[40:50]", "test": "train[50:]"}
        return Images(name=f"folder:{folder / 'pictures'}", batch_size=8, **splits)
    pairs: Any = {"pairs": "separate", "template": "{source}", "source_length": 6} if name == "pairs" else {}
    source = f"jsonl:{folder / 'pairs'}" if pairs else f"text:{folder / 'text'}"
    return Text(name=source, tokenizer="byte", length=16, batch_size=8, **pairs)


class End(NamedTuple):
    """How the processes of a start ended."""

    statuses: list[int]
    """Exit status of each host; the negative number of the signal that killed it."""
    output: str
    """What all of them printed."""


@dataclass(frozen=True)
class Folders:
    """Where the processes of a start work."""

    shared: Path
    """Data, and runs left alone."""
    run: Path
    cache: Path
    """The user's cache folder."""
    compiled: Path
    """Compiled programs."""
    output: Path


def start(scenario: str, engine: str, kill: Kill | None, counts: Counts, at: Folders, victim: int = 0) -> End:
    """Starts a run and waits for its end. victim: number of the host that is killed.

    Raises: AssertionError if it takes too long.
    """
    config, n = configure(scenario, engine, at.shared), ENGINES[engine].hosts
    if kill and kill.place in places.BEFORE_IMPORTS:
        return _start_fresh(scenario, engine, kill, at)
    coordinator = f"127.0.0.1:{free_port()}"
    children = []
    for host in range(n):
        meet = {"coordinator": coordinator, "hosts": n, "host": host} if n > 1 else {}
        own = replace(config, parallel=replace(config.parallel, **meet))
        train = partial(_train, own, SCENARIOS[scenario].spikes, at)
        children.append(fork(train, at.output / f"{host}.txt", counts, kill if host == victim else None))
    statuses = wait(children)
    output = "".join((at.output / f"{host}.txt").read_text(errors="replace") for host in range(n))
    assert statuses is not None, f"hangs: not ended after {MAX_SECONDS} s\n{output[-2000:]}"
    return End(statuses, output)


def fork(function: Callable[[], object], output: Path, counts: Counts | None = None, kill: Kill | None = None) -> int:
    """Calls a function in a forked process as a command. Returns the number of the process. output: file of what it prints."""
    assert threading.active_count() == 1, "threads would not survive the fork"
    sys.stdout.flush()
    if number := os.fork():
        return number
    status = 1
    try:
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if counts is not None:
            places.arm(counts, kill)
        run_command(function, hosts.exit_process)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        # As Python does at its end: it waits for the threads of pools.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(children: Sequence[int]) -> list[int] | None:
    """Waits for processes, and returns their statuses. None: they hang, and were killed."""
    end, left, found = time.monotonic() + MAX_SECONDS, list(children), {}
    while left and time.monotonic() < end:
        for child in list(left):
            number, status = os.waitpid(child, os.WNOHANG)
            if number:
                found[child] = os.waitstatus_to_exitcode(status)
                left.remove(child)
        time.sleep(0.005)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None if left else [found[child] for child in children]


def _train(config: Config, spikes: tuple[int, ...], at: Folders) -> None:
    os.environ["XDG_CACHE_HOME"] = str(at.cache)
    jax.config.update("jax_compilation_cache_dir", str(at.compiled))
    if spikes:
        gen.train.with_preprocess = _spoil(gen.train.with_preprocess, spikes)
    gen.train.train(config, at.run)
    hosts.disconnect()


def _spoil(build: Callable[..., GenerativeModel], spikes: tuple[int, ...]) -> Callable[..., GenerativeModel]:
    """Returns a function that builds the same models, whose metrics are NaN at some steps."""

    def spoiled(*arguments: Any) -> GenerativeModel:
        sound = build(*arguments)

        def update(state: Any, batch: Any, key: Any) -> Any:
            hurt = jax.numpy.isin(state.step + 1, jax.numpy.array(spikes))
            state, metrics = sound.update(state, batch, key)
            return state, {name: jax.numpy.where(hurt, jax.numpy.nan, value) for name, value in metrics.items()}

        return sound._replace(update=update)

    return spoiled


def _start_fresh(scenario: str, engine: str, kill: Kill, at: Folders) -> End:
    """As `start`, in a new Python process."""
    file = at.output / "config.py"
    content = f"configure({scenario!r}, {engine!r}, Path({str(at.shared)!r}))"
    file.write_text(f"from pathlib import Path\nfrom tests.starts import configure\nconfig = {content}\n")
    command = [
        sys.executable,
        "-m",
        "tests.places",
        kill,
        at.output / "counts",
        ROOT / "train.py",
        file,
        "--workdir",
        at.run,
    ]
    env = {**os.environ, "XDG_CACHE_HOME": str(at.cache), "JAX_COMPILATION_CACHE_DIR": str(at.compiled)}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        env=env,
        timeout=MAX_SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return End([done.returncode], done.stdout.decode(errors="replace"))
