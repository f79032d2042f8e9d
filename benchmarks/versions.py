"""Compares the speed of this checkout with another one: python -m benchmarks.versions OTHER_CHECKOUT [JOB ...] [--turns N]

Both checkouts run the jobs of `python -m benchmarks` in turns, each in its own process, with the Python of this command. It
shows what a change costs; PyTorch is not needed. The other checkout must have benchmarks/ours.py.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import program
from benchmarks.__main__ import JOBS, Job
from benchmarks.turns import process, take_turns
from gen.errors import UserError, run_command

ROOT = Path(__file__).parent.parent


def main(
    other: Annotated[Path, tyro.conf.Positional],
    jobs: Annotated[tuple[Job, ...], tyro.conf.Positional] = (),
    turns: int = 15,
    seconds: float = 0.5,
) -> None:
    """Prints one line for each job: milliseconds per step, or seconds per start, and the ratio here / there.

    other: the other checkout. jobs: the jobs to run; default: all. turns: number of turns of each side. seconds: length of a turn.
    """
    other = other.resolve()
    if not (other / "benchmarks" / "ours.py").is_file():
        raise UserError(f"{other} is not a checkout of gen with benchmarks/ours.py")
    print("| job | here | there | ratio of medians | ratios from turn to turn |\n|---|---:|---:|---:|---:|", flush=True)
    for job in jobs or (*JOBS, *program.JOBS):
        here, there = measure(job, other, turns, seconds)
        # Turns that follow each other have the same conditions, so their ratios vary less than the times do.
        ratios = sorted(a / b for a, b in zip(here, there, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        medians = statistics.median(here), statistics.median(there)
        print(
            f"| {job} | {1e3 * medians[0]:.2f} ms | {1e3 * medians[1]:.2f} ms | {medians[0] / medians[1]:.3f} "
            f"| {low:.3f} to {high:.3f} |",
            flush=True,
        )


def measure(job: str, other: Path, turns: int, seconds: float) -> tuple[list[float], list[float]]:
    """Returns the seconds per step (of start_up: per start) in each turn, of this checkout and of the other one."""
    if job == "start_up":
        # The first start of each fills its cache.
        pairs = [(program.first_step(ROOT), program.first_step(other)) for _ in range(1 + max(3, turns // 3))][1:]
    elif job == "end_to_end":
        pairs = [(program.step_of_runs(ROOT), program.step_of_runs(other)) for _ in range(max(3, turns // 5))]
    else:
        with ExitStack() as held:
            roots = {"here": ROOT, "there": other}
            sides = {
                name: held.enter_context(process("benchmarks.ours", job, "float32", root=r))
                for name, r in roots.items()
            }
            times = take_turns(sides, turns, seconds)
        return times["here"], times["there"]
    here, there = zip(*pairs, strict=True)
    return list(here), list(there)


if __name__ == "__main__":
    run_command(partial(tyro.cli, main))
