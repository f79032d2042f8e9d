"""Scores trained runs side by side: python -m gen.evaluate RUN [RUN ...] [--metrics tstr frechet ...]

A folder of images, which any model may have made, is scored like a run: python -m gen.evaluate RUN FOLDER

Each number is written to evaluation.json of its run or folder, with its protocol: a description of how it was computed. A number
that the file has already, with the same protocol, is not computed again. Runs are only compared if their protocols are the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import tyro

from gen.errors import UserError, note, printable_line, run_command, show
from gen.evaluation.plan import open_subjects, plan_scores
from gen.evaluation.score import Options, Score
from gen.files import expand_paths
from gen.runs import directory

RUN_ENTRIES = ("checkpoint", "run", "base", "folder")
"""Entries of a protocol that say which run or folder was scored. Compared runs may differ in them."""
DRAWN_ENTRIES = ("labels", "captions", "request")
"""Entries of a protocol that say for which labels, captions or request images were generated. Folders do not have them."""


def main() -> None:
    """Runs the command line, and prints the table of all numbers."""
    arguments = list(rewrite_request(sys.argv[1:]))
    options = expand_paths(tyro.cli(Options, args=arguments, prog="python -m gen.evaluate"))
    show(format_table(scores(options)))


def rewrite_request(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments, with `--request.FIELD VALUE` and `--request.FIELD=VALUE` replaced by `--request FIELD=VALUE`.

    Raises: UserError for a field without a value.
    """
    # The command-line parser does not know these options: their names depend on the run's family, and no run is open yet.
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
    """Computes the scores of runs and folders of images. Returns {run or folder: {name of a score: number}}.

    Each number is written to evaluation.json in its run or folder, with its protocol (how it was computed).

    Raises: UserError, before anything is generated, if a score can't be computed, or can't be compared between the
    runs.
    """
    plans: dict[str, list[Score]] = {}
    # All runs are opened first, so that a wrong path fails before a classifier is trained for the features.
    for subject in open_subjects(options):
        note(f"{subject.workdir}: {subject.summary}")
        plan = plan_scores(subject)
        for line in plan.left_out:
            note(f"{subject.workdir}: {line}")
        plans[str(subject.workdir)] = plan.scores
    check_comparable(plans)
    return {workdir: complete(Path(workdir), plan) for workdir, plan in plans.items()}


def complete(workdir: Path, plan: Iterable[Score]) -> dict[str, float]:
    """Returns {name: number} of the scores in `plan`.

    A number that evaluation.json in `workdir` already holds with the same protocol is reused. Otherwise it is computed,
    and written at once, so an interruption loses only the number in progress.
    """
    numbers: dict[str, float] = {}
    known = directory.read_evaluation(workdir) or directory.Evaluation()
    for score in plan:
        # The protocol in the form in which JSON returns it: tuples become lists.
        protocol = json.loads(json.dumps(score.protocol))
        # The numbers of a score are computed together, so all are computed again if one is missing or has another protocol.
        if all(name in known.metrics and known.protocol.get(name) == protocol for name in score.names):
            numbers |= {name: known.metrics[name] for name in score.names}
            continue
        note(f"{workdir}: {', '.join(score.names)} ...")
        new = {name: float(value) for name, value in zip(score.names, score.compute(), strict=True)}
        directory.write_evaluation(workdir, new, dict.fromkeys(new, protocol))
        numbers |= new
    return numbers


def check_comparable(plans: Mapping[str, Iterable[Score]]) -> None:
    """Checks that numbers of the same name can be compared. plans: {run or folder: its scores}.

    Raises: UserError if the protocols of such numbers differ in other entries than RUN_ENTRIES. If one of the two is of a folder of
    images, they may also differ in DRAWN_ENTRIES.
    """
    # All names of a score share its protocol, so the first one is enough.
    known = [(score.names[0], workdir, score.protocol) for workdir, plan in plans.items() for score in plan]
    # All pairs are checked: two runs may each be comparable with a folder of images, but not with each other.
    for (name, workdir, ours), (other_name, other, theirs) in combinations(known, 2):
        if name == other_name and (differ := _differences(ours, theirs)):
            raise UserError(
                f"{name} of {workdir} and of {other} can't be compared, since their protocols differ; score the runs in "
                f"separate commands",
                f"  {'; '.join(differ)}",
            )


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Returns a line for each entry in which two protocols differ, so that their numbers can't be compared."""
    # The protocol of an unconditional model has no entry "labels". Its classes are as frequent as in the training split.
    a, b = ({"labels": "training", **protocol} for protocol in (ours, theirs))
    allowed = (*RUN_ENTRIES, *(DRAWN_ENTRIES if "folder" in {**a, **b} else ()))
    return [f"{k}: {a.get(k)} and {b.get(k)}" for k in {**a, **b} if k not in allowed and a.get(k) != b.get(k)]


def format_table(numbers: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the text of a table. numbers: {run: {name of a number: value}}.

    Each run has a column, and each number has a line. "-": the run does not have the number.
    """
    numbers = {printable_line(workdir): column for workdir, column in numbers.items()}
    names = dict.fromkeys(name for column in numbers.values() for name in column)
    lines = [["", *numbers]]
    for name in names:
        lines.append([name, *(f"{column[name]:.4g}" if name in column else "-" for column in numbers.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line) for line in padded)


if __name__ == "__main__":
    run_command(main)
