"""Scores trained runs side by side: python -m gen.evaluate RUN [RUN ...] [--metrics tstr frechet ...]

Each number is written into evaluation.json of its run, with its protocol: how it was computed. A number that is already there
under the same protocol is not computed again. Runs are only compared under the same protocol.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tyro

from gen.errors import UserError, run_command
from gen.evaluation.plan import open_subject, plan_scores
from gen.evaluation.score import Options, Score
from gen.files import expand_paths
from gen.runs import directory

RUN_ENTRIES = ("checkpoint", "run", "base")
"""Entries of a protocol that may differ between runs that are compared."""


def main() -> None:
    arguments = list(rewrite_request(sys.argv[1:]))
    options = expand_paths(tyro.cli(Options, args=arguments, prog="python -m gen.evaluate"))
    print(format_table(scores(options)))


def rewrite_request(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments with `--request.FIELD VALUE` and `--request.FIELD=VALUE` as `--request FIELD=VALUE`.

    Raises: UserError for a field without a value.
    """
    # tyro could only list these options once the run is opened, since their names depend on its family.
    prefix = "--request."
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith(prefix):
            yield argument
            continue
        field, equals, value = argument.removeprefix(prefix).partition("=")
        if not equals and (value := next(rest, "")) == "":
            raise UserError(f"{argument} has no value; the fix: {argument} VALUE")
        yield from ("--request", f"{field}={value}")


def scores(options: Options) -> dict[str, dict[str, float]]:
    """Returns {run: {name: number}}, and writes each number with its protocol into evaluation.json of its run.

    Raises: UserError for anything that can't be computed or compared, before anything is generated.
    """
    if not options.runs:
        raise UserError("no run is named; the fix: python -m gen.evaluate RUN [RUN ...]")
    plans: dict[str, list[Score]] = {}
    # All runs are opened first, so that a wrong path fails before a classifier is trained for the features.
    subjects = [open_subject(workdir, options) for workdir in options.runs]
    for subject in subjects:
        report(f"{subject.workdir}: checkpoint {subject.step}")
        plans[str(subject.workdir)] = plan_scores(subject)
    check_comparable(plans)
    return {workdir: complete(Path(workdir), plan) for workdir, plan in plans.items()}


def complete(workdir: Path, plan: Iterable[Score]) -> dict[str, float]:
    """Returns the planned numbers of a run. Reuses a stored number if its protocol is the same, otherwise computes it.

    Each computed number is written at once, so an interruption loses only the number in progress.
    """
    numbers: dict[str, float] = {}
    known = directory.read_evaluation(workdir) or directory.Evaluation()
    for score in plan:
        # As it is read back from the file: tuples become lists.
        protocol = json.loads(json.dumps(score.protocol))
        # Numbers of a score are computed together, so one that is missing or has another protocol means all.
        if all(name in known.metrics and known.protocol.get(name) == protocol for name in score.names):
            numbers |= {name: known.metrics[name] for name in score.names}
            continue
        report(f"{workdir}: {', '.join(score.names)} ...")
        new = {name: float(value) for name, value in zip(score.names, score.compute(), strict=True)}
        directory.write_evaluation(workdir, new, dict.fromkeys(new, protocol))
        numbers |= new
    return numbers


def check_comparable(plans: Mapping[str, Iterable[Score]]) -> None:
    """Raises: UserError for a number whose protocols in two runs differ in more than RUN_ENTRIES."""
    first: dict[str, tuple[str, Mapping[str, object]]] = {}
    for workdir, plan in plans.items():
        for score in plan:
            # All names of a score share its protocol.
            name, theirs = score.names[0], score.protocol
            other, ours = first.setdefault(name, (workdir, theirs))
            differ = [k for k in {**ours, **theirs} if k not in RUN_ENTRIES and ours.get(k) != theirs.get(k)]
            if differ:
                entries = "; ".join(f"{k}: {ours.get(k)} and {theirs.get(k)}" for k in differ)
                raise UserError(
                    f"{name} of {other} and of {workdir} can't be compared, since their protocols differ; score the runs "
                    f"in separate commands\n  {entries}"
                )


def format_table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a table with a column for each run and a line for each number. A dash: the run does not have the number."""
    names = dict.fromkeys(name for column in numbers.values() for name in column)
    lines = [["", *numbers]]
    for name in names:
        lines.append([name, *(f"{column[name]:.4g}" if name in column else "-" for column in numbers.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line) for line in padded)


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
