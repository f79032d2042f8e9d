"""Measures the time that saving takes: python -m benchmarks.saving [--every 60] [--saves 3]

Trains a transformer with 100 million parameters and Adam, and saves it every --every seconds, as gen/train.py does. Training is
blocked while the state is copied from the devices, and continues while the files are written. A checkpoint is lost if the run is
killed before its files are written and sealed, so the length of this time is printed too. Then the same state is saved in Orbax's
two formats while nothing else runs, to measure the CPU time of each format. Times during which other programs used the machine
are measured again, and the command ends if the machine stays busy.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import tyro

from benchmarks import machine
from benchmarks.machine import Watch
from gen.config import Config, Save
from gen.core import State
from gen.data.preprocess import with_preprocess
from gen.data.text import Text
from gen.errors import run_command
from gen.families.language import LM
from gen.networks.transformer import Architecture
from gen.runs import checkpoint
from gen.runtime import backend
from gen.runtime import engine as runtime_engine
from gen.runtime.feed import feed

CONFIG = Config(
    model=LM(network=Architecture(layers=14, width=768, heads=12), dtype="bfloat16"),
    data=Text(name="pydoc", tokenizer="bpe", vocabulary=20_000, length=32, batch_size=2),
    steps=1_000_000,
)


class Cost(NamedTuple):
    """The cost of a piece of work, in seconds."""

    wall: float
    """Elapsed time."""
    cpu: float
    """CPU time over all threads of this process."""


@contextmanager
def measure(costs: list[Cost]) -> Iterator[None]:
    """Appends the cost of the block to `costs`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu))


@contextmanager
def watch_seals(folder: Path) -> Iterator[list[float]]:
    """Yields a list to which the seconds between the last write of each checkpoint and its name are appended."""
    windows: list[float] = []
    ended = threading.Event()

    def work() -> None:
        begun: dict[str, float] = {}
        while not ended.wait(0.002):
            for path in folder.glob(f"*{checkpoint.UNSEALED}"):
                begun.setdefault(path.name, time.perf_counter())
            for name in [name for name in begun if (folder / name.removesuffix(checkpoint.UNSEALED)).exists()]:
                windows.append(time.perf_counter() - begun.pop(name))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield windows
    finally:
        ended.set()
        thread.join()


def train_and_save(
    every: float, saves: int, folder: Path, watch: Watch
) -> tuple[State, Cost, list[Cost], list[Cost], list[float]]:
    """Trains and saves. every: seconds between saves.

    Returns the last state, the cost of a step without a save, the costs of a step during each save, the cost of each call that
    starts a save, and the seconds that each checkpoint is written and not sealed.

    Raises: Busy if the machine stays busy.
    """
    backend.start_backend(CONFIG.parallel)
    data = CONFIG.data.build()
    model = with_preprocess(CONFIG.model.build(data.spec, CONFIG.steps), data.preprocess)
    engine = runtime_engine.compile_engine(model, CONFIG.parallel, CONFIG.seed, CONFIG.data.batch_size)
    batch = feed(data, model, CONFIG, engine.rows)
    state = engine.init()

    def train(seconds: float) -> Cost:
        """Trains for this many seconds, and returns the cost of one step."""
        nonlocal state
        steps, end, costs = 0, time.monotonic() + seconds, []
        with measure(costs):
            while time.monotonic() < end:
                state, metrics = engine.update(state, batch(steps))
                float(metrics["loss"])
                steps += 1
        return Cost(*(x / steps for x in costs[0]))

    train(1)
    alone = watch.measure(partial(train, every))
    with (
        watch_seals(folder / "checkpoints") as windows,
        checkpoint.saver(folder / "checkpoints", Save(), 0) as save,
    ):

        def save_and_train() -> tuple[Cost, Cost]:
            """Returns the cost of starting a save, and of a step while it is written."""
            costs: list[Cost] = []
            with measure(costs):
                save(engine.whole(state))
            return costs[0], train(every)

        rounds = [watch.measure(save_and_train) for _ in range(saves)]
    return state, alone, [during for _, during in rounds], [blocked for blocked, _ in rounds], windows


def formats(state: State, folder: Path, watch: Watch) -> dict[str, Cost]:
    """Returns the cost of saving in each format while nothing else runs. The first save of a format is a warm-up.

    Raises: Busy if the machine stays busy.
    """
    tree: Any = {"params": state.params, "opt_state": state.opt_state}
    found = {}
    for name, how in {"plain": {"use_ocdbt": False, "use_zarr3": False}, "OCDBT": {}}.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as orbax:
            save_once(orbax, folder / f"{name}-warm", tree)
            # A repeated save writes the folder again.
            found[name] = watch.measure(partial(save_once, orbax, folder / name, tree))
    return found


def save_once(orbax: ocp.Checkpointer, folder: Path, tree: Any) -> Cost:
    """Saves a tree, and returns the cost."""
    costs: list[Cost] = []
    shutil.rmtree(folder, ignore_errors=True)
    with measure(costs):
        orbax.save(folder, args=ocp.args.PyTreeSave(tree))
    return costs[0]


def main(every: float = 60.0, saves: int = 3) -> None:
    """Trains, saves, and prints the costs. every: seconds between saves. saves: number of saves."""
    print(machine.begin(), flush=True)
    watch, folder = Watch(), Path(tempfile.mkdtemp(prefix="saving-"))
    try:
        state, alone, during, blocked, windows = train_and_save(every, saves, folder, watch)
        numbers = sum(x.size for x in jax.tree.leaves(state.params))
        size = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        print(
            f"{numbers / 1e6:.0f} million parameters, {size / 2**30:.2f} GiB with Adam's moments, a save every {every:g} s"
        )
        share = sum(c.wall for c in blocked) / sum(every + c.wall for c in blocked)
        print(f"training was blocked for {', '.join(f'{c.wall:.2f} s' for c in blocked)}: {share:.2%} of the time")
        print(f"a checkpoint was written and not sealed for {', '.join(f'{window:.2f} s' for window in windows)}")
        slower = sum(c.wall for c in during) / len(during) / alone.wall - 1
        print(f"a step takes {alone.wall:.2f} s, and {slower:+.1%} in the periods with a save")
        for name, cost in formats(state, folder, watch).items():
            print(f"{name}: {cost.cpu:.1f} s of CPU time, {cost.wall:.1f} s elapsed, while nothing else runs")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
