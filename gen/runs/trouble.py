"""Messages about problems of a run: the error that ends an exploded run, and the warnings that are repeated when a run ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from gen.config import Config
from gen.config.warmups import count_schedule_steps, find_schedules
from gen.core import Family
from gen.errors import UserError
from gen.optim import Optimizer, Schedule
from gen.runs import checkpoint
from gen.runs.manifest import set_aside
from gen.runs.run import Run
from gen.runtime import hosts

MAX_WARNINGS = 8
"""Largest number of different warnings that are repeated when a run ends."""
SKIPPED = "steps were left out, because their numbers were not finite or jumped"
"""The warning about skipped steps."""
NUMBER = re.compile(r"-?\d[\d.,]*(?:e[+-]?\d+)?")


def stop_exploded(run: Run, step: int, reason: str, norm: float, save: checkpoint.Saver) -> None:
    """Raises the error that ends an exploded run. First renames all checkpoints after the last healthy one.

    reason: how the run exploded, for the message. norm: lowest running mean of the run's gradient norm, from which
    `advice` computes a limit. save: the run's saver; its last save is completed first. All hosts call this function.

    Raises: UserError, always, with the last good checkpoint and the fix.
    """
    save.wait()
    kept = hosts.broadcast(partial(_keep_healthy, run.checkpoints))
    fix = f"The fix, in another --workdir: {advice(run.config.model, norm)}"
    if kept is None:
        raise UserError(f"stopped at step {step}: {reason}; there is no checkpoint from before. {fix}")
    raise UserError(
        f"stopped at step {step}: {reason}; the last good checkpoint is {kept}. {fix}. "
        "Or go on from that checkpoint, without such steps: the same command with --faults.action skip"
    )


def _keep_healthy(folder: Path) -> int | None:
    """Renames all checkpoints after the last healthy one. Returns the step of the healthy one, or None if all are unhealthy."""
    good = checkpoint.newest_with(folder, "healthy")
    for step in checkpoint.steps(folder):
        if step > (good or 0):
            set_aside(folder / str(step))
    return good


def advice(model: Family, norm: float) -> str:
    """Returns command-line options that make training more stable: a third of the learning rates, and clipped gradients.

    norm: lowest running mean of the run's gradient norm. Gradients are clipped to three times this norm. If no option
    fits the model, the advice is in words.
    """
    options: list[str] = []
    for field in fields(model):
        optim = getattr(model, field.name)
        if not isinstance(optim, Optimizer):
            continue
        path = f"--model.{field.name.replace('_', '-')}"
        if (lr := _third(optim.lr)) is not None:
            options.append(f"{path}.lr {lr}")
        if optim.clip is None:
            options.append(f"{path}.clip {_round(3 * norm):g}")
    return " ".join(options) or "a lower learning rate or clipped gradients"


def _third(lr: object) -> str | None:
    if isinstance(lr, Schedule):
        # Only some schedules have a peak. For the others no learning rate is advised.
        peak: Any = getattr(lr, "peak", None)
        return None if peak is None else f'"{replace(lr, peak=_round(peak / 3))}"'  # pyright: ignore[reportCallIssue]
    return f"{_round(lr / 3):g}" if isinstance(lr, float | int) else None


def _round(x: float) -> float:
    """Returns x rounded to one significant digit."""
    return float(f"{x:.1g}")


def unreached(config: Config) -> list[str]:
    """Returns a warning for each schedule whose warm-up is longer than the run."""
    return [
        f"{path} {schedule} never reaches its value after the warm-up: it counts {steps} steps; the fix: a shorter warm-up"
        for path, schedule in find_schedules(config.model, "model")
        if getattr(schedule, "warmup", 0) > (steps := count_schedule_steps(config, path))
    ]


def repeat_warnings(telemetry: Path) -> list[str]:
    """Returns a line for each kind of warning in a telemetry.jsonl, with the first and the last step of such warnings.

    Warnings that differ only in their numbers are of the same kind. The line has the text of the last one. After MAX_WARNINGS
    lines, a line with the number of other kinds follows.
    """
    kinds: dict[str, dict[int, str]] = {}
    for step, text in sorted(_read_warnings(telemetry)):
        kinds.setdefault(NUMBER.sub("#", text), {})[step] = text
    lines = []
    for found in kinds.values():
        steps = list(found)
        where = f"at step {steps[0]}" if len(steps) == 1 else f"at {len(steps)} steps from {steps[0]} to {steps[-1]}"
        lines.append(f"warned {where}: {found[steps[-1]]}")
    more = len(lines) - MAX_WARNINGS
    return lines[:MAX_WARNINGS] + ([f"and {more} other warnings, in {telemetry}"] if more > 0 else [])


def _read_warnings(telemetry: Path) -> Iterator[tuple[int, str]]:
    if not telemetry.exists():
        return
    # Parsing is slow, and most lines are about speed, so only lines with these words are parsed.
    with open(telemetry, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if '"alarm"' in line or '"skipped"' in line]
    for line in lines:
        # A line may have been cut off by a crash.
        try:
            record = json.loads(line)
            step, text = int(record["step"]), str(record.get("alarm", SKIPPED))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        yield step, text
