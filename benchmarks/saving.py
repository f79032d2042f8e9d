"""What saving costs: python -m benchmarks.saving [--every 60] [--saves 3]

A transformer of 100 million parameters with Adam is trained on this machine and saved once a minute, as gen/train.py does it. The
loop is blocked while a state is copied off the devices; the rest is written beside it. Then the same state is saved in Orbax's two
formats with nothing beside, for the processor time of each.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import tyro

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
from gen.train import feed

CONFIG = Config(
    model=LM(network=Architecture(layers=14, width=768, heads=12), dtype="bfloat16"),
    data=Text(name="pydoc", tokenizer="bpe", vocabulary=20_000, length=32, batch_size=2),
    steps=1_000_000,
)


class Cost(NamedTuple):
    """Of a stretch of time, in seconds."""

    wall: float
    processor: float


@contextmanager
def measured(costs: list[Cost]) -> Iterator[None]:
    """Appends what the time inside took."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    costs.append(Cost(time.perf_counter() - wall, time.process_time() - processor))


def trained(every: float, saves: int, folder: Path) -> tuple[State, list[Cost], list[Cost], list[Cost]]:
    """The last state; the costs of the stretches between saves without one under way and with, and what each save blocked."""
    backend.start_backend(CONFIG.parallel)
    data = CONFIG.data.build()
    model = with_preprocess(CONFIG.model.build(data.spec, CONFIG.steps), data.preprocess)
    engine = runtime_engine.compile_engine(model, CONFIG.parallel, CONFIG.seed, CONFIG.data.batch_size)
    batch = feed(data, model, CONFIG, engine.rows)
    state, alone, beside, blocked = engine.init(), [], [], []

    def train(costs: list[Cost], seconds: float) -> None:
        """Steps for so long; the cost of one is appended."""
        nonlocal state
        steps, end, both = 0, time.monotonic() + seconds, []
        with measured(both):
            while time.monotonic() < end:
                state, metrics = engine.update(state, batch(steps))
                float(metrics["loss"])
                steps += 1
        costs.append(Cost(*(x / steps for x in both[0])))

    train([], 1)
    train(alone, every)
    with checkpoint.saver(folder / "checkpoints", Save(), 0) as save:
        for _ in range(saves):
            with measured(blocked):
                save(engine.whole(state), {"validation": {}})
            train(beside, every)
    return state, alone, beside, blocked


def formats(state: State, folder: Path) -> dict[str, Cost]:
    """What saving takes with nothing beside it, by format: once to warm up, then once for the number."""
    found = {}
    for name, how in {"plain": {"use_ocdbt": False, "use_zarr3": False}, "OCDBT": {}}.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as orbax:
            costs: list[Cost] = []
            for i in range(2):
                tree: Any = {"params": state.params, "opt_state": state.opt_state}
                with measured(costs):
                    orbax.save(folder / f"{name}-{i}", args=ocp.args.PyTreeSave(tree))
        found[name] = costs[-1]
    return found


def main(every: float = 60.0, saves: int = 3) -> None:
    """Train, save, and print the costs."""
    folder = Path(tempfile.mkdtemp(prefix="saving-"))
    try:
        state, alone, beside, blocked = trained(every, saves, folder)
        numbers = sum(x.size for x in jax.tree.leaves(state.params))
        size = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        print(
            f"{numbers / 1e6:.0f} million parameters, {size / 2**30:.2f} GiB with Adam's moments, a save each {every:g} s"
        )
        share = sum(c.wall for c in blocked) / sum(every + c.wall for c in blocked)
        print(f"blocked: {', '.join(f'{c.wall:.2f} s' for c in blocked)}: {share:.2%} of the time")
        slower = sum(c.wall for c in beside) / len(beside) / alone[0].wall - 1
        print(f"a step takes {alone[0].wall:.2f} s, and {slower:+.1%} over the minutes with a save")
        for name, cost in formats(state, folder).items():
            print(f"{name}: {cost.processor:.1f} processor-seconds, {cost.wall:.1f} s, with nothing beside")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
