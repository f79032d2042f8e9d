"""Bad steps: their metrics are not finite, or their loss jumps.

The engine discards the change of a bad step (gen/runtime/engine.py). This file decides which loss is a jump, and when a run
stops. The step number never decreases, so each batch is used once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gen.config import Faults
from gen.errors import UserError

MIN_LOSSES = 50
"""Number of losses that must be known before a loss can count as a jump."""
MEMORY = 200
"""Number of losses that the running moments remember, roughly."""


class History(NamedTuple):
    """Summary of the steps so far."""

    count: int = 0
    """Number of good steps."""
    mean: float = 0.0
    """Running mean of the sum of losses."""
    variance: float = 0.0
    """Its running variance."""
    bad: int = 0
    """Number of bad steps since the last checkpoint."""


def guards(config: Faults) -> bool:
    """Returns whether the engine must discard bad steps as they happen."""
    return config.action != "stop" or config.spike is not None


def limit(config: Faults, history: History) -> float:
    """Returns the threshold of a jump: a step with a larger sum of losses is bad. inf: none."""
    if config.spike is None or history.count < MIN_LOSSES:
        return math.inf
    return history.mean + config.spike * math.sqrt(history.variance)


def after(history: History, values: Mapping[str, float], losses: Sequence[str] = ("loss",)) -> History:
    """Returns the history with one more step. values: the metrics of the step; losses: the names of its losses."""
    if values.get("skipped"):
        return history._replace(bad=history.bad + 1)
    loss = sum(values[name] for name in losses)
    # An average over all steps at first, then an exponential one.
    new = 1 / min(history.count + 1, MEMORY)
    away = loss - history.mean
    variance = (1 - new) * (history.variance + new * away**2)
    return History(history.count + 1, history.mean + new * away, variance, history.bad)


class Record:
    """The histories of the last steps.

    The limit of step s uses the history up to step s - 2. The loop has always read that step by then, whether or not it has
    read step s - 1. So a resumed run applies the same limits.
    """

    def __init__(self, config: Faults, start: int, kept: Sequence[Sequence[float]], losses: Sequence[str] = ("loss",)):
        """start: the last step done. kept: `Record.kept` of that step's checkpoint, or () at step 0."""
        self.config, self.losses = config, losses
        before, last = [History(*values) for values in kept] or [History(), History()]  # pyright: ignore[reportArgumentType]
        self.of = {start - 1: before, start: last}

    def limit(self, step: int) -> float:
        """Returns the threshold of a jump at this step: the step is bad if its sum of losses is larger."""
        return limit(self.config, self.of[step - 2]) if step - 2 in self.of else math.inf

    def read(self, step: int, values: Mapping[str, float]) -> bool:
        """Records the metrics of a step. Returns whether it was bad. Raises: UserError if that ends the run."""
        self.of[step] = now = after(self.of[step - 1], values, self.losses)
        self.of.pop(step - 3, None)
        if not values.get("skipped"):
            return False
        if self.config.action == "stop" or now.bad >= self.config.patience:
            why = f"{now.bad} bad steps since the last checkpoint" if now.bad > 1 else "a bad step"
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name in self.losses)
            # What has just failed is no advice.
            other = ", or --faults.action rollback" if self.config.action == "stop" else ""
            raise UserError(
                f"stopped at step {step} by {why} (not finite, or a jump: {shown}); the last checkpoint is kept. A lower "
                f"learning rate or clipped gradients (optim.clip) may help{other}"
            )
        return True

    def kept(self, step: int, due: bool) -> list[History]:
        """Returns what a checkpoint of the step keeps for the next Record. due: whether it is a regular checkpoint.

        A regular checkpoint resets the count of bad steps, in this record as well.
        """
        kept = [self.of.get(s, History()) for s in (step - 1, step)]
        self.of = dict(zip((step - 1, step), [h._replace(bad=0) for h in kept] if due else kept, strict=True))
        return list(self.of.values())
