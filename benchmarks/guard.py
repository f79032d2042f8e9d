"""Measures the time that the guard against explosions takes in training: python -m benchmarks.guard [JOB ...] [--turns 15]

The guard compares the loss and the gradient norm of each step with the run's history, on the host (gen/runtime/faults.py,
gen/runtime/levels.py). Each job trains in the loop of train.py, and turns the guard off for every other block of steps. So steps
with and without the guard run in the same process and the same compiled program, at nearly the same time. Times during which
other programs used the machine are measured again, and a job is refused if the machine stays busy.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

from benchmarks import machine, ours
from benchmarks.__main__ import check_refused
from benchmarks.machine import Busy, Watch
from benchmarks.turns import ratios
from gen import train
from gen.config import Config, Log, Parallel, Save
from gen.errors import run_command
from gen.runs import log
from gen.runs.run import Run, open_start
from gen.runtime import faults

BLOCKS = {"vae_mlp": 200, "vae_conv": 40, "gpt_small": 20, "dcgan_64": 6}
"""{job of `python -m benchmarks`: steps of a block}. The first has the shortest step."""
Job = Literal["vae_mlp", "vae_conv", "gpt_small", "dcgan_64"]
REPEATS = 5
"""Number of times that the guard alone is timed. The shortest time counts."""


class AlternatingRecord(faults.Record):
    """A record that reads every other block of steps only, and notes the time at which each block begins."""

    def __init__(self, config: Config, losses: Sequence[str], block: int) -> None:
        super().__init__(config.faults, 0, (), losses)
        self.block = block
        self.begun: list[float] = []
        """time.perf_counter() when the metrics of the first step of each block came."""
        self.seen: list[Mapping[str, float]] = []
        """The metrics of all steps."""

    def is_guarded(self, step: int) -> bool:
        """Returns whether the block of a 1-based step has the guard. The first one has it."""
        return (step - 1) // self.block % 2 == 0

    def limits(self, call: range) -> faults.Limits:
        if not self.is_guarded(call[0]):
            return faults.Limits()
        if (call[0] - 1) % self.block == 0:
            # The history continues as if the steps without the guard had not happened.
            self.ends = [call[0] - 2, call[0] - 1]
            self.at = dict.fromkeys(self.ends, self.now)
        return super().limits(call)

    def read(self, step: int, values: Mapping[str, float]) -> faults.Verdict:
        if (step - 1) % self.block == 0:
            self.begun.append(time.perf_counter())
        self.seen.append(values)
        return super().read(step, values) if self.is_guarded(step) else faults.NOTHING


class Cost(NamedTuple):
    """Seconds per step. The turns follow each other in pairs."""

    guarded: list[float]
    """With the guard, in each turn."""
    bare: list[float]
    """Without the guard, in each turn."""
    guard: float
    """The guard alone, in CPU time of the host. A GPU works meanwhile; a CPU does not."""


def main(jobs: Annotated[tuple[Job, ...], tyro.conf.Positional] = (), turns: int = 15) -> None:
    """Prints one line for each job. jobs: the jobs to run; default: all. turns: number of blocks with and without the guard."""
    print(machine.begin() + "\n")
    print(
        "| job | guard alone | part of a step | step with guard | without | ratio of medians | ratios from turn to turn |"
    )
    print("|---|" + "---:|" * 6, flush=True)
    asked, refused = jobs or tuple(BLOCKS), 0
    for job in asked:
        watch = Watch()
        try:
            watch.wait_until_quiet()
            print(line(job, watch.measure(partial(measure, ours.TRAINED[job](), BLOCKS[job], turns))), flush=True)
        except Busy as error:
            print(f"| {job} | refused: {error.load} | | | | | |", flush=True)
            refused += 1
    check_refused(refused, len(asked))


def measure(config: Config, block: int, turns: int) -> Cost:
    """Trains a config, and returns the cost of the guard. block: steps of a turn, a multiple of the config's steps per call."""
    # The first pair of blocks is not counted, and one block more ends the last pair.
    steps = block * (2 * (turns + 1) + 1)
    config = replace(config, steps=steps, evaluate_every=0, save=Save(every=steps), parallel=Parallel(cpu_devices=1))
    config = replace(config, log=Log(tensorboard=False))
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), ExitStack() as held:
        data, model, engine = train.build(config)
        run = Run(config, Path(folder) / "run", data, model, engine, None)
        start = open_start(run, held)
        record = AlternatingRecord(config, model.losses, block)
        with log.open_log(run.workdir, config.log, 0, steps, config.data.batch_size, 0, model.losses) as logger:
            train.fit(run, run.state_at(start.step), logger, record)
    seconds = [(b - a) / block for a, b in zip(record.begun, record.begun[1:], strict=False)]
    alone = min(time_guard(config, model.losses, record.seen) for _ in range(REPEATS))
    return Cost(seconds[2::2], seconds[3::2], alone)


def time_guard(config: Config, losses: Sequence[str], seen: Sequence[Mapping[str, float]]) -> float:
    """Returns the CPU seconds per step that the guard takes on the host for these metrics."""
    record = faults.Record(config.faults, 0, (), losses)
    begun = time.thread_time()
    for step, values in enumerate(seen, 1):
        record.limits(range(step, step + 1))
        record.read(step, values)
    return (time.thread_time() - begun) / len(seen)


def line(job: str, cost: Cost) -> str:
    """Returns the row of a job."""
    guarded, bare = statistics.median(cost.guarded), statistics.median(cost.bare)
    ratio, low, high = ratios(cost.guarded, cost.bare)
    return (
        f"| {job} | {1e6 * cost.guard:.1f} µs | {cost.guard / bare:.2%} | {1e3 * guarded:.3f} ms | {1e3 * bare:.3f} ms "
        f"| {ratio:.3f} | {low:.3f} to {high:.3f} |"
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
