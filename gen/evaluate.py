"""Score trained runs side by side: python -m gen.evaluate RUN [RUN ...] [--metrics tstr frechet ...]

Every number goes into evaluation.json of its run with its protocol, and what is there under the same protocol isn't
computed again. Runs are compared under one protocol only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tyro

from gen.errors import UserError, run_command
from gen.evaluation import images, texts
from gen.evaluation.score import Options, Score, Subject
from gen.runs import directory, trained

OWN = ("checkpoint", "run", "base")  # entries of a protocol in which runs that are compared may differ


def main() -> None:
    print(table(scores(tyro.cli(Options, prog="python -m gen.evaluate"))))


def scores(options: Options) -> dict[str, dict[str, float]]:
    """{run: {name: number}}; each number is in evaluation.json of its run too, with its protocol.

    Raises: UserError for what can't be computed or compared, before anything is generated.
    """
    if not options.runs:
        raise UserError("no run is named: python -m gen.evaluate RUN [RUN ...]")
    subjects = [opened(workdir, options) for workdir in options.runs]
    plans = {str(subject.workdir): planned(subject, options) for subject in subjects}
    check_comparable(plans)
    return {workdir: completed(Path(workdir), plan) for workdir, plan in plans.items()}


def opened(workdir: Path, options: Options) -> Subject:
    """Raises: UserError if there is no such run or checkpoint, or its data are others now."""
    config, model = trained.load_model(workdir, options.trust)
    step = trained.choose_step(workdir, config, options.step)
    moved = {} if options.data_name is None else {"name": options.data_name}
    data = trained.build_dataset(workdir, options.data_dir, options.trust, **moved)
    say(f"{workdir}: checkpoint {step}")
    return Subject(
        workdir, step, config, model, data, cache(lambda: trained.restore_state(workdir, model, step, options.base))
    )


def planned(subject: Subject, options: Options) -> list[Score]:
    """What is computed of a run. Raises: UserError for what can't be, before anything is generated."""
    if "image" in subject.data.spec:
        return images.planned(subject, options)
    if "tokens" in subject.data.spec:
        return texts.planned(subject, options)
    raise UserError(f"{subject.workdir} makes neither images nor texts, which there are scores of")


def completed(workdir: Path, wanted: Iterable[Score]) -> dict[str, float]:
    """The numbers that are there under the same protocol, and the others, computed and written at once."""
    found: dict[str, float] = {}
    old = directory.read_evaluation(workdir) or {"metrics": {}, "protocol": {}}
    for score in wanted:
        protocol = json.loads(json.dumps(score.protocol))  # where a tuple is a list
        if all(name in old["metrics"] and old["protocol"].get(name) == protocol for name in score.names):
            found |= {name: old["metrics"][name] for name in score.names}
            continue
        say(f"{workdir}: {', '.join(score.names)} ...")
        new = {name: float(value) for name, value in zip(score.names, score.compute(), strict=True)}
        directory.write_evaluation(workdir, new, dict.fromkeys(new, protocol))
        found |= new
    return found


def check_comparable(plans: Mapping[str, Iterable[Score]]) -> None:
    """Raises: UserError for a number whose protocols, in two runs, differ in more than the run."""
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for workdir, plan in plans.items():
        for _, (name, *_), theirs, _ in plan:
            other, ours = first.setdefault(name, (workdir, theirs))
            differ = [k for k in {**ours, **theirs} if k not in OWN and ours.get(k) != theirs.get(k)]
            if differ:
                entries = "; ".join(f"{k}: {ours.get(k)} and {theirs.get(k)}" for k in differ)
                raise UserError(f"{name} of {other} and of {workdir} don't compare; score them apart\n  {entries}")


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A column a run, a line a number."""
    names = dict.fromkeys(name for numbers in found.values() for name in numbers)
    shown = lambda numbers, name: f"{numbers[name]:.4g}" if name in numbers else "-"
    lines = [["", *found], *([name, *(shown(numbers, name) for numbers in found.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
    return "\n".join("  ".join(pad(line)) for line in lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
