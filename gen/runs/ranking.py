"""Lists the checkpoints of a run, and decides which to keep and which is the best.

It reads the `Facts` of checkpoints, such as validation metrics, and hashes their files to find damage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gen import files
from gen.config import Save
from gen.errors import UserError
from gen.runs import owner
from gen.runs.manifest import broken, damage, is_sealed, was_sealed
from gen.runtime.faults import check_kept


class Facts(NamedTuple):
    """Values that a checkpoint holds next to the state's arrays, as JSON."""

    metrics_bytes: int = 0
    """Length of metrics.jsonl at this step, in bytes. A resumed run truncates the file to this length."""
    validation: Mapping[str, float] = {}
    """{metric: value} on the validation split, from which the best checkpoint is chosen. {}: this step was not evaluated."""
    due: bool = True
    """Whether `save.every` asks for this checkpoint. Otherwise it was saved because a signal stopped the run, or because its
    evaluation was the best so far."""
    faults: Sequence[Sequence[object]] = ()
    """Histories of losses and gradient norms, for the limits of the next steps (gen.runtime.faults.Record.kept)."""
    healthy: bool = True
    """False if a recent loss or gradient norm was far above the run's history, so that the run may have exploded."""
    merged: str | None = None
    """Only in runs that gen.runs.merge wrote: the BaseRecord of the merged base, as JSON. None in other runs."""
    metrics_sha256: str | None = None
    """SHA-256 of metrics.jsonl at this step. None: an older version of gen saved the checkpoint without it."""
    step: int | None = None
    """The step at which the checkpoint was saved. A folder with another name is a copy. None: saved by an older version of gen."""
    owner: Mapping[str, object] | None = None
    """gen.runs.owner.Owner of the run that saved the checkpoint, as JSON. None: saved by an older version of gen."""


def steps(folder: Path) -> list[int]:
    """Returns the steps of all checkpoints in ascending order, damaged ones included."""
    if not folder.is_dir():
        return []
    # gen writes no leading zeros, so a folder "007" is not a checkpoint.
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.name == str(int(p.name)))


def newest(folder: Path, warn: Callable[[str], None]) -> int | None:
    """Returns the newest step whose checkpoint is undamaged. None: there is no checkpoint, or none was ever completely saved.

    warn: called with a line of text for each damaged checkpoint that is newer, or if none was ever completely saved.

    Raises: UserError if checkpoints were saved, but all are damaged.
    """
    found = steps(folder)
    if found and not any(was_sealed(folder / str(step)) for step in found):
        warn(f"no checkpoint in {folder} was ever sealed (the first save was interrupted); training begins at step 0")
        return None
    return _first_undamaged(folder, found[::-1], warn)


def check_owner(workdir: Path, warn: Callable[[str], None]) -> None:
    """Checks that config.json, spec.json and other constant files have not changed since checkpoints were saved.

    warn: called with a line of text if this can't be checked, because an older version of gen saved all checkpoints.

    Raises: UserError that names the file which has changed or is missing.
    """
    folder = workdir / "checkpoints"
    known = {step: theirs for step in steps(folder) if (theirs := owner.read_owner(folder / str(step)))}
    changed = {step: owner.changed_file(theirs, workdir) for step, theirs in known.items()}
    # If a checkpoint agrees with the files, they have not changed. Checkpoints that disagree are then copies from another run,
    # which are reported when they are read.
    if None in changed.values():
        return
    for step in sorted(changed, reverse=True):
        # A damaged checkpoint proves nothing about the files.
        if broken(folder / str(step)) is None:
            file = workdir / str(changed[step])
            wrong = "has changed since" if file.exists() else "is missing, and was there when"
            raise UserError(f"{file} {wrong} checkpoint {step} was saved; the fix: restore it from a copy of the run")
    if not known and any(is_sealed(folder / str(step)) for step in steps(folder)):
        warn(
            f"{workdir} was saved by an older version of gen, so changes of its config and its data's files go unnoticed"
        )


def scheduled(folder: Path) -> int | None:
    """Returns the newest undamaged step that `save.every` asked for, to roll back to. None if no step qualifies.

    Other steps were saved because the run was stopped, or by `save.best`, which may change between launches. So a rollback to
    them would not be reproducible.
    """
    return newest_with(folder, "due")


def newest_with(folder: Path, fact: Literal["due", "healthy"]) -> int | None:
    """Returns the newest undamaged step whose `Facts` have True in the field `fact`. None if no step qualifies."""
    found = [step for step in sorted(steps(folder), reverse=True) if _has(folder, step, fact)]
    return next((step for step in found if damage(folder, step) is None), None)


def best(folder: Path, config: Save, warn: Callable[[str], None]) -> int | None:
    """Returns the undamaged step with the best value of the metric `save.best`. If no step has a value: the newest one.

    None: there is no checkpoint. warn: called with a line of text for each damaged checkpoint that is better or newer.

    Raises: UserError if there are checkpoints, but all are damaged or incomplete.
    """
    ranked = sorted(steps(folder), key=lambda step: (score(folder, step, config), step), reverse=True)
    return _first_undamaged(folder, ranked, warn)


def read_facts(folder: Path, step: int) -> Facts:
    """Reads the `Facts` in a step's checkpoint. Raises: UserError if they are damaged; FileNotFoundError if missing."""
    path = folder / str(step)
    found = files.read_json(path / "meta" / "metadata")
    if not isinstance(found, dict):
        raise UserError(f"checkpoint {path} has no facts; the fix: remove it, and an earlier checkpoint is used")
    for name, fits in FACTS.items():
        if name in found and not fits(found[name]):
            shown = json.dumps(found[name])[:80]
            raise UserError(
                f"checkpoint {path} has damaged facts: {name} is {shown}; the fix: remove it, and an earlier one is used"
            )
    return Facts(**{name: found[name] for name in Facts._fields if name in found})


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_text(value: object) -> bool:
    return type(value) is str


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(type(number) in (int, float) for number in value.values())


def _is_owner(value: object) -> bool:
    return owner.parse(value) is not None


FACTS: dict[str, Callable[[object], bool]] = {
    "metrics_bytes": _is_count,
    "validation": _are_numbers,
    "due": _is_flag,
    "faults": check_kept,
    "healthy": _is_flag,
    "merged": _is_text,
    "metrics_sha256": _is_text,
    "step": _is_count,
    "owner": _is_owner,
}
"""{fact: function that checks a value}. Facts that are missing in a checkpoint get their defaults."""


def steps_to_keep(folder: Path, config: Save) -> set[int]:
    """Returns the steps of the checkpoints to keep.

    These are the last `save.keep` checkpoints, the last one that is `due` (a rollback needs it), the last one that is
    `healthy` (after an explosion, users go back to it), and the best one. Checkpoints without a manifest are
    incomplete, and not kept.
    """
    sealed = [step for step in steps(folder) if is_sealed(folder / str(step))]
    due, good = ([step for step in sealed if _has(folder, step, fact)] for fact in ("due", "healthy"))
    # The order of `best`, so that the step which it would choose is kept.
    ranked = sorted(sealed, key=lambda step: (score(folder, step, config), step))
    return {*sealed[-config.keep :], *due[-1:], *good[-1:], *ranked[-1:]}


def _has(folder: Path, step: int, fact: Literal["due", "healthy"]) -> bool:
    try:
        return getattr(read_facts(folder, step), fact)
    except (OSError, UserError):
        return False


def score(folder: Path, step: int, config: Save) -> float:
    """Returns `value_of` for the validation metrics in a step's checkpoint. Unreadable metrics count as missing."""
    try:
        return value_of(read_facts(folder, step).validation, config)
    except (OSError, UserError):
        return -math.inf if config.best else 0.0


def value_of(validation: Mapping[str, float], config: Save) -> float:
    """Returns the value of the metric `save.best`, negated if lower is better, so that the best checkpoint has the largest value.

    -inf: `validation` does not have the metric, or it is NaN. 0: `save.best` is None.
    """
    if config.best is None:
        return 0.0
    metric, end = config.best
    try:
        value = float(validation[metric])
    except (KeyError, TypeError, ValueError, OverflowError):
        return -math.inf
    # NaN has no place in an order.
    if math.isnan(value):
        return -math.inf
    return value if end == "max" else -value


def _first_undamaged(folder: Path, order: list[int], warn: Callable[[str], None]) -> int | None:
    """Returns the first undamaged step of `order`, and warns about the steps before it. None: `order` is empty.

    Raises: UserError if all steps are damaged.
    """
    for step in order:
        reason = damage(folder, step)
        if reason is None:
            return step
        warn(f"checkpoint {folder / str(step)} is damaged and not used: {reason}")
    if order:
        raise UserError(
            f"no undamaged checkpoint in {folder}; the fix: restore the folder, or start again in another --workdir"
        )
    return None
