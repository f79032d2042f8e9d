"""The checkpoints of a run: which there are, which to keep, and which is the best. It reads facts, no arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gen import files
from gen.config import Save
from gen.errors import UserError
from gen.runs.manifest import damage, is_sealed


class Facts(NamedTuple):
    """Numbers that are saved with a state, as JSON."""

    metrics_bytes: int = 0
    """Length of metrics.jsonl at this step. A resumed run truncates the file to it."""
    validation: Mapping[str, float] = {}
    """{metric: value} if the step was evaluated. They decide which checkpoint is the best."""
    due: bool = True
    """Whether `save.every` asks for this checkpoint. Otherwise it was saved because a signal stopped the run, or because its
    evaluation was the best so far."""
    faults: Sequence[Sequence[object]] = ()
    """The last entries of gen.runtime.faults.Record."""
    healthy: bool = True
    """Whether the losses and gradients before it were not far outside of the run's history."""
    merged: str | None = None
    """The base of a run that gen.runs.merge made, as JSON."""


def steps(folder: Path) -> list[int]:
    """Returns the committed steps in ascending order, sound or not."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def newest(folder: Path, warn: Callable[[str], None]) -> int | None:
    """Returns the newest sound step. None: there is no checkpoint. warn: receives a line for each damaged step.

    Raises: UserError if there are checkpoints and none is sound.
    """
    return _first_sound(folder, sorted(steps(folder), reverse=True), warn)


def scheduled(folder: Path) -> int | None:
    """Returns the newest sound step that the config asked for. None: there is none.

    Other steps depend on when a run was stopped, or on `save.best`, which may change between launches. So a rollback to them
    would not be reproducible.
    """
    return newest_with(folder, "due")


def newest_with(folder: Path, fact: Literal["due", "healthy"]) -> int | None:
    """Returns the newest sound step that has this fact. None: there is none."""
    found = [step for step in sorted(steps(folder), reverse=True) if _has(folder, step, fact)]
    return next((step for step in found if damage(folder, step) is None), None)


def best(folder: Path, config: Save, warn: Callable[[str], None]) -> int | None:
    """Returns the sound step with the best validation metric, without one the newest sound step. Otherwise as `newest`."""
    ranked = sorted(steps(folder), key=lambda step: (score(folder, step, config), step), reverse=True)
    return _first_sound(folder, ranked, warn)


def read_facts(folder: Path, step: int) -> Facts:
    """Returns the facts that were saved with a step. Raises: UserError if they are damaged."""
    found = files.read_json(folder / str(step) / "meta" / "metadata")
    kinds = {"validation": dict, "metrics_bytes": int, "faults": list, "due": bool, "healthy": bool}
    if not isinstance(found, dict) or any(type(found[k]) is not kind for k, kind in kinds.items() if k in found):
        raise UserError(f"checkpoint {folder / str(step)} has no facts")
    return Facts(**{name: found[name] for name in Facts._fields if name in found})


def steps_to_keep(folder: Path, config: Save) -> set[int]:
    """Returns the last sealed steps, the last scheduled one (a rollback needs it), the last healthy one and the best one.

    An unsealed step can go: it is saved again as soon as training reaches it.
    """
    sealed = [step for step in steps(folder) if is_sealed(folder / str(step))]
    due, good = ([step for step in sealed if _has(folder, step, fact)] for fact in ("due", "healthy"))
    ranked = sorted(sealed, key=lambda step: (score(folder, step, config), step))
    return {*sealed[-config.keep :], *due[-1:], *good[-1:], *ranked[-1:]}


def _has(folder: Path, step: int, fact: Literal["due", "healthy"]) -> bool:
    try:
        return getattr(read_facts(folder, step), fact)
    except (OSError, UserError):
        return False


def score(folder: Path, step: int, config: Save) -> float:
    """Returns the validation metric of a step, negated if lower is better. -inf: the step was not evaluated."""
    try:
        return value_of(read_facts(folder, step).validation, config)
    except (OSError, UserError):
        return -math.inf if config.best else 0.0


def value_of(validation: Mapping[str, float], config: Save) -> float:
    """Returns the metric that chooses the best checkpoint, negated if lower is better. -inf: it is not among them."""
    if config.best is None:
        return 0.0
    metric, end = config.best
    try:
        value = float(validation[metric])
    except (KeyError, TypeError, ValueError, OverflowError):
        return -math.inf
    return value if end == "max" else -value


def _first_sound(folder: Path, order: list[int], warn: Callable[[str], None]) -> int | None:
    for step in order:
        reason = damage(folder, step)
        if reason is None:
            return step
        warn(f"checkpoint {folder / str(step)} is unsound and not used: {reason}")
    if order:
        raise UserError(f"no sound checkpoint in {folder}; start again in another --workdir, or restore the folder")
    return None
