"""Compares the speed of this checkout with another: python -m benchmarks.versions OTHER_CHECKOUT [JOB ...] [--turns N]

It shows whether a change made a job slower or faster. Both checkouts run the jobs of `python -m benchmarks` in turns, each in a
separate process, with the Python of this command. PyTorch is not needed. The other checkout must have benchmarks/ours.py. Times
during which other programs used the machine are measured again, and a job is refused if the machine stays busy.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import machine, program
from benchmarks.__main__ import JOBS, Job, check_refused
from benchmarks.machine import Busy, Watch
from benchmarks.turns import process, ratios, take_turns
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
    print(machine.begin() + "\n")
    print("| job | here | there | ratio of medians | ratios from turn to turn |\n|---|---:|---:|---:|---:|", flush=True)
    asked, refused = jobs or (*JOBS, *program.JOBS), 0
    for job in asked:
        try:
            print(line(job, *measure(job, other, turns, seconds, Watch())), flush=True)
        except Busy as error:
            print(f"| {job} | refused: {error.load} | | | |", flush=True)
            refused += 1
    check_refused(refused, len(asked))


def line(job: str, here: Sequence[float], there: Sequence[float]) -> str:
    """Returns the row of a job. here, there: seconds of each turn."""
    ratio, low, high = ratios(here, there)
    milliseconds = (f"{1e3 * statistics.median(times):.2f} ms" for times in (here, there))
    return f"| {job} | {' | '.join(milliseconds)} | {ratio:.3f} | {low:.3f} to {high:.3f} |"


def measure(job: str, other: Path, turns: int, seconds: float, watch: Watch) -> tuple[list[float], list[float]]:
    """Returns the seconds per step (of start_up: per start) in each turn, of this checkout and of the other one.

    Raises: Busy if the machine stays busy.
    """
    watch.wait_until_quiet()
    roots = {"here": ROOT, "there": other}
    if job == "start_up":
        for root in roots.values():  # the first start of each fills its cache
            program.first_step(root)

        def start_each() -> list[float]:
            return [program.first_step(root) for root in roots.values()]

        pairs = [watch.measure(start_each) for _ in range(max(3, turns // 3))]
    elif job == "end_to_end":
        pairs = [[program.step_of_runs(root, watch) for root in roots.values()] for _ in range(max(3, turns // 5))]
    else:
        with ExitStack() as held:
            sides = {
                name: held.enter_context(process("benchmarks.ours", job, "float32", root=r))
                for name, r in roots.items()
            }
            times = take_turns(sides, turns, seconds, watch)
        return times["here"], times["there"]
    here, there = zip(*pairs, strict=True)
    return list(here), list(there)


if __name__ == "__main__":
    run_command(partial(tyro.cli, main))
